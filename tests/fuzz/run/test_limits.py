"""Errors of kernels, limits of this tool and its faults are told apart, and none for another."""

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.emulated import compiler
from attn_fuzz.errors import FailedCheckError, FaultError
from attn_fuzz.interpreted import interpreter, new_memory
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets import registry
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target
from planted_limits import ERRORS, LIMITS, assertion, sum_of_a_function

if not torch.cuda.is_available():
    interpreter.install()


def calling(function: Callable[..., object]) -> Target:
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        function(torch.ones(16), torch.zeros(16))

    return dataclasses.replace(REFERENCE_FP32, name="planted", attention=attention)


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: each.__name__)
def test_an_error_of_a_kernel_is_a_verdict_on_the_kernel(error, step_case):
    verdict = try_case(step_case, calling(error), "cpu")
    assert (verdict.kind, verdict.failed) == ("raised", True), verdict.message
    assert "(attn_fuzz" not in verdict.message


def test_a_check_that_fails_while_a_target_runs_is_a_verdict_of_its_kind(step_case):
    def fails(*arguments) -> None:
        raise FailedCheckError("cache", "a scale", "it is lost")

    verdict = try_case(step_case, calling(fails), "cpu")
    assert (verdict.kind, verdict.about, verdict.message) == ("cache", "a scale", "it is lost")


def test_an_adapter_that_cannot_be_called_so_is_a_verdict_on_it(step_case):
    target = dataclasses.replace(REFERENCE_FP32, attention=lambda q, k, v: None)
    assert try_case(step_case, target, "cpu").message.startswith("TypeError: ")


@pytest.mark.parametrize("error", [torch.AcceleratorError("illegal access", 700), torch.OutOfMemoryError("out of memory")])
def test_an_error_that_a_gpu_raises_late_is_no_fault_of_the_tool(error, step_case, monkeypatch):
    """An adapter of this project waits for the GPU."""

    def wait(*arguments):
        raise error

    monkeypatch.setattr("attn_fuzz.run.case.attempt.synchronize", wait)
    assert try_case(step_case, REFERENCE_FP32, "cpu").kind == "raised"


@pytest.mark.parametrize(("function", "what"), LIMITS.items(), ids=[each.__name__ for each in LIMITS])
def test_a_limit_is_none(function, what, step_case):
    verdict = try_case(step_case, calling(function), "cpu")
    assert (verdict.kind, verdict.failed) == ("limit", False), verdict.message
    assert verdict.about.startswith(what)
    assert " (lifted by " in verdict.about


EMULATED = registry.load("planted_emulated:SMALL_TRITON@gfx942")
SMALL = {"dtype": "float16", "head_size": 16}


def emulated(case: Case, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str]) -> Any:
    """The verdict on emulated code whose text is changed."""
    right = compiler.compiled_code

    def compiled(request: bytes) -> Any:
        answer = right(request)
        changed = change(answer.text)
        assert changed != answer.text
        return answer._replace(text=changed)

    monkeypatch.setattr(compiler, "compiled_code", compiled)
    return try_case(case, EMULATED, "cpu")


def first(line: str) -> Callable[[str], str]:
    return lambda text: text.replace("\ts_endpgm", f"\t{line}\n\ts_endpgm", 1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (first("v_unheard_of v0"), "v_unheard_of"),
        (first("s_unheard_of_b64 s[0:1], s[2:3]"), "s_unheard_of_b64"),
        (first("v_add_f32 v0, v0, v0 unheard_of:3"), "v_add_f32"),
        (first("global_load_dword v0, v[0:1], off unheard"), "global_load_dword"),
        (first("v_add_f32 v0"), "v_add_f32"),
        (first("v_mov_b32 v0, unheard_of"), "unheard_of"),
        (lambda text: text.replace(".amdhsa_float_denorm_mode_32 3", ".amdhsa_float_denorm_mode_32 1"), "denorm_mode_32"),
        (lambda text: text.replace("unknown-gfx942", "unknown-gfx803"), "architecture 'gfx803'"),
    ],
)
def test_code_that_the_emulator_does_not_know_is_a_limit(change, what, step_case, monkeypatch):
    verdict = emulated(step_case, monkeypatch, change)
    assert (verdict.kind, verdict.failed) == ("limit", False), verdict.message
    assert what in verdict.about.partition(" (lifted by ")[0]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: re.sub(r"s_waitcnt .*", "s_waitcnt lgkmcnt(0)", text), "sanitizer"),
        (first("s_load_dword s0, s[0:1], 0x7000"), "sanitizer"),
    ],
)
def test_forbidden_code_is_a_verdict_on_the_kernel(change, kind, step_case, monkeypatch):
    assert emulated(step_case, monkeypatch, change).kind == kind


@pytest.mark.parametrize(
    ("module", "name", "target"),
    [
        ("attn_fuzz.interpreted.reductions", "_combined", calling(sum_of_a_function)),
        ("attn_fuzz.interpreted.together.launches", "_dims", calling(sum_of_a_function)),
        ("attn_fuzz.emulated.launches", "inputs_of", EMULATED),
        ("attn_fuzz.targets.modes.compiled", "rng_of_metadata", EMULATED),
        ("attn_amdgcn.checked", "launch", EMULATED),
    ],
)
def test_any_other_exception_of_a_tool_is_its_fault(module, name, target, step_case, monkeypatch):
    monkeypatch.setattr(importlib.import_module(module), name, None)
    with pytest.raises(FaultError, match=r"a fault of this tool, not of the kernel:(.|\n)*TypeError: "):
        try_case(step_case, target, "cpu")
    assert try_case(step_case, calling(assertion), "cpu").kind == "raised"


@pytest.mark.parametrize("with_numbers", [False, True])
def test_an_operation_of_torch_that_fails_is_its_callers(with_numbers, step_case, monkeypatch):
    """Whoever writes numbers into new memory, or notes who wrote it, stands between the caller and torch."""
    monkeypatch.setattr(new_memory, "numbers_in", lambda case: with_numbers)
    verdict = try_case(step_case, calling(lambda given, _: given.as_strided((17,), (1,))), "cpu")
    assert (verdict.kind, verdict.failed) == ("raised", True)
    assert re.search(r"out of bounds for storage .*/test_limits\.py:", verdict.message)


def test_a_fault_ends_a_run_with_the_case_and_no_failure(attn_parity, tmp_path):
    drawn = ("--examples", 4, "--seed", 1, "--corpus", "none", "--workers", 1)
    run = attn_parity("fuzz", "--target", "planted_limits:FAULTY", *drawn)
    assert run.code == 2
    assert "a fault of this tool, not of the kernel:" in run.err
    assert '"schema": "attn-parity.case' in run.err
    assert "failing" not in run.out
    assert not list(tmp_path.glob("attn-parity-runs/*.json"))


def test_a_declaration_can_be_a_limit(attn_parity):
    for target, words in (
        ("planted_limits:FLOAT32@gfx942", "float32 on gfx942, where Triton's tl.dot is XF32"),
        ("planted_limits:OF_4_BITS", "a cache of 4 bits (lifted by a contract that has them)"),
    ):
        run = attn_parity("fuzz", "--target", target)
        assert (run.code, f"target {target}: not run, by a limit of this tool: {words}" in run.err) == (3, True), run.err

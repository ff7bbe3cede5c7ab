"""The targets whose kernels are compiled for AMD GPUs and emulated: they agree, find planted bugs, and say what is wrong."""

import importlib.util
import random
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext

import attn_lab.zoo.known_bugs
import attn_optimized
import click
import hypothesis
import msgspec
import pytest
import torch
import triton
from attn_contract import ContractError, Indexer, MiscompiledError
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, Rope
from attn_fuzz.cases.tensors import build
from attn_fuzz.emulated import compiler, emulation, launches
from attn_fuzz.emulated.compiler import CompilerError
from attn_fuzz.emulated.jobs import Compiled, Job, Pointer
from attn_fuzz.errors import LimitError
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.drawing import draw_cases
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.strategies.cases import steps
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.layers import DrawnLayer, layer, with_own_numbers
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import of_architecture, registry
from attn_fuzz.targets.of_architecture import ARCHITECTURES
from attn_fuzz.targets.plans import PARTS_PER_ITERATION, UNITS_PER_ITERATION, interprets, planned
from attn_fuzz.targets.target import Gpu
from attn_fuzz.verdict.verdict import Verdict
from attn_lab.zoo import known_bugs as mutants
from attn_optimized import indexer
from attn_optimized.attention import paged_attention_calls, varlen_attention_calls
from attn_optimized.device import architecture_of, missing_compiler
from attn_optimized.kv_cache import write_kv_cache_call
from attn_optimized.launch import parts
from attn_parity.device import say_what_runs_kernels
from attn_parity.launches import chosen_architectures
from hypothesis import strategies as st

ZOO = attn_lab.zoo.known_bugs.FOLDER
TRITON_GFX942 = registry.load("triton@gfx942")


@pytest.fixture
def other_text(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], None]:
    """Has a change made in every text that the compiler returns."""
    right = compiler.compiled_code

    def change(changed: Callable[[str], str]) -> None:
        def compiled(request: bytes) -> Compiled:
            answer = right(request)
            return answer._replace(text=changed(answer.text))

        monkeypatch.setattr(compiler, "compiled_code", compiled)

    return change


def tried(case: Case) -> Verdict:
    return try_case(case, TRITON_GFX942, "cpu")


def test_drawn_examples_agree(fuzz_here):
    """The cases run on gfx1201: `tox run -e emulated-main` runs launches for gfx942."""
    ended, cases = fuzz_here("planted_emulated:SMALL_TRITON@gfx1201", examples=4, seed=4)
    assert ended.failure is None, ended.failure
    assert ended.examples == len(cases) == 4
    assert ended.ratio > 0


def test_a_mutant_is_compiled_with_its_fault_and_found(step_case, tmp_path):
    mutant = mutants.load(ZOO / "diagonal.toml")
    with Executor("triton@gfx942", "cpu", 120.0, tmp_path / "ahead.json", mutant) as executor:
        assert executor.run(step_case).kind == "bitwise"


def test_a_kernel_that_the_compiler_refuses_is_one_error(step_case, monkeypatch):
    job = Job("planted_kernel", "refused_kernel", "gfx942", {})
    right = compiler.ready
    monkeypatch.setattr(launches, "ready", lambda other: right(job))
    verdict = tried(step_case)
    assert verdict.kind == "raised"
    assert verdict.message.startswith("CompilerError: refused_kernel for gfx942: CompilationError: at 2:4: ")
    assert "unheard_of" in verdict.message
    process = compiler.compiling_process()
    assert process.poll() is None
    with pytest.raises(CompilerError, match="refused_kernel for gfx12345: ContractError: architecture: got 'gfx12345'"):
        compiler.ready(job._replace(architecture="gfx12345"))
    assert compiler.compiling_process() is process


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGKILL, "HelperKilledError"), pytest.param(signal.SIGSEGV, "CompilerError", marks=pytest.mark.nightly)],
)
def test_a_compiling_process_that_dies_is_one_error_and_another_one_starts(step_case, monkeypatch, number, error):
    compiler.compiling_process().send_signal(number)
    monkeypatch.setattr(compiler, "compiled_code", compiler.compiled_code.__wrapped__)
    verdict = tried(step_case)
    assert verdict.kind == "raised"
    said = rf"{error}: the process that compiles was killed by {number.name} \(attn_optimized/kernel_call\.py:\d+, in run\)"
    assert re.fullmatch(said, verdict.message)
    assert tried(step_case).kind == "agree"


def test_an_unknown_instruction_is_a_limit_of_the_tool(step_case, other_text):
    other_text(lambda text: text.replace("\ts_endpgm", "\tv_unheard_of v0\n\ts_endpgm", 1))
    verdict = tried(step_case)
    assert (verdict.kind, verdict.about, verdict.failed) == (
        "limit",
        "v_unheard_of (lifted by its meaning in attn_amdgcn.instructions)",
        False,
    )
    assert re.match(r"UnknownInstructionError: line \d+: `v_unheard_of v0`", verdict.message)


def test_code_that_lost_an_address_is_refused_and_does_not_run(step_case, monkeypatch):
    def refuse(assembly: str, architecture: str) -> None:
        raise MiscompiledError("attn_optimized", "planted", f"for {architecture}")

    monkeypatch.setattr("attn_fuzz.emulated.launches.refuse_miscompiled", refuse)
    monkeypatch.setattr("attn_fuzz.emulated.launches.run", None)
    verdict = tried(step_case)
    assert (verdict.kind, verdict.about) == ("refused", verdict.message)
    assert "planted not supported: for gfx942" in verdict.message


SPILLED = """{"schema":"attn-parity.case/2","target":"triton@gfx942","dtype":"bfloat16","head_size":80,"scale":1.0,
"window":[1,0],"requests":[{"query_len":1,"seq_len":33,"blocks":[0]},{"query_len":29,"seq_len":0}],"cache":{"layout":"BLOCKS_FIRST_NHD",
"block_size":48,"num_blocks":1,"padding":1,"dtype":"fp8_e4m3fn","scales":"token"},"slack":100,"program_order":"in order",
"values":{"kind":"exact"}}"""
"""Triton 3.9.0 spills a part of K's resource over the whole one, in the tile that this case has."""


def test_a_spilled_resource_is_no_failure_of_the_kernel():
    assert not tried(case_file.loads(SPILLED)).failed


def test_a_fault_counts_as_the_sanitizers_finding(step_case, other_text):
    other_text(lambda text: re.sub(r"\ts_waitcnt .*", "\ts_waitcnt lgkmcnt(0)", text))
    verdict = tried(step_case)
    assert (verdict.kind, verdict.about) == ("sanitizer", "Fault")
    assert re.search(r" for gfx942: line \d+ .* and no wait stands before its use", verdict.message)


def test_a_launch_is_compiled_with_its_own_options(step_case, monkeypatch):
    """Without them the code is another one than ships: with fused multiply-adds, and for another number of warps."""
    jobs: dict[str, Job] = {}
    ready = launches.ready
    monkeypatch.setattr(launches, "ready", lambda job: ready(jobs.setdefault(job.kernel, job)))
    assert tried(msgspec.structs.replace(step_case, rope=Rope(rotary_dim=4))).kind == "agree"
    assert jobs["write_kv_cache_kernel"].arguments["enable_fp_fusion"] is False
    assert all("num_warps" in job.arguments for job in jobs.values())


def test_jobs_of_one_text_share_a_program(step_case):
    jobs, programs = (function.cache_info().misses for function in (compiler.compiled_code, compiler.program_of))
    first, second = step_case.requests
    for query_len in (1, 2, 3):
        requests = (first, msgspec.structs.replace(second, query_len=query_len))
        assert tried(msgspec.structs.replace(step_case, requests=requests)).kind == "agree"
    assert compiler.program_of.cache_info().misses - programs < compiler.compiled_code.cache_info().misses - jobs


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [
        ("cuda", "", "it emulates a GPU that is not here: --device cpu"),
        ("cpu", "yaml", "this needs yaml, which is missing: pip install 'attn-parity[emulated]'"),
        ("cpu", "triton", "this needs triton, which is missing: pip install 'attn-parity[cpu]'"),
    ],
)
def test_it_says_why_it_is_unavailable(device, missing, words, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest))
    for architecture in ARCHITECTURES:
        assert words in (registry.load(f"triton@{architecture}").unavailable(device) or ""), architecture


@pytest.mark.parametrize(("release", "served"), [("3.6.0", False), ("3.7.0", True)])
def test_gfx1250_is_refused_by_name_under_a_triton_that_cannot_assemble_for_it(release, served, monkeypatch):
    monkeypatch.setattr(triton, "__version__", release)
    missing_compiler.cache_clear()
    said = f"Triton {release} cannot assemble kernels of many arguments for gfx1250; 3.7 and newer can"
    for name in ("triton@gfx1250", "triton-merge@gfx1250"):
        assert registry.load(name).unavailable("cpu") == (None if served else said)
    assert registry.load("triton@gfx1201").unavailable("cpu") is None
    assert ("gfx1250" in chosen_architectures(None)) is served
    with nullcontext() if served else pytest.raises(click.UsageError, match=f"--arch: {said}"):
        chosen_architectures("gfx942,gfx1250")
    monkeypatch.undo()
    missing_compiler.cache_clear()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], ["Triton interprets the kernels on the CPU"]),
        (["triton"], ["Triton interprets the kernels on the CPU"]),
        (["triton@gfx942"], ["Triton compiles the kernels for a GPU that is emulated on the CPU"]),
        (
            ["triton@gfx942", "triton"],
            ["Triton interprets the kernels on the CPU", "Triton compiles the kernels for a GPU that is emulated on the CPU"],
        ),
    ],
)
def test_the_command_line_says_what_runs_kernels(targets, said, capsys):
    say_what_runs_kernels("cpu", map(registry.load, targets))
    assert capsys.readouterr().err.splitlines() == [f"no GPU in use: {words}" for words in said]
    say_what_runs_kernels("cuda", map(registry.load, targets))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reference-fp32@gfx942", "reference-fp32 does not name the modules of its kernels"),
        ("vllm-unified-attention@sm90", "gfx90a, gfx942, gfx950, gfx1100, gfx1201, gfx1250 after the @"),
        ("vllm-unified-attention@", "expected one of invariant, "),
        ("triton@gfx942@far", "write @far@gfx942"),
        ("triton@invariant@returned", "@invariant@returned: one excludes the other"),
        ("triton@planned@gfx942", "@gfx942 alone plans for gfx942"),
        ("triton-merge@far", "a share of its merges is called so already"),
        ("nobody@gfx942", "no target 'nobody'"),
    ],
)
def test_a_mode_that_a_target_has_not_is_refused(name, words):
    with pytest.raises(registry.TargetError, match=re.escape(words)):
        registry.load(name)


def test_a_kernel_that_is_in_none_of_the_modules_is_an_error_that_says_so():
    with pytest.raises(LimitError, match=r"the modules of the target have no planted_kernel\.refused_kernel"):
        compiler.ready(Job("planted_kernel", "refused_kernel", "gfx942", {}, "planted_emulated:WITHOUT_KERNELS.modules"))


@pytest.mark.nightly
def test_the_compiling_process_ends_with_its_parent():
    """It holds the parent's stderr: this returns when both have ended."""
    code = """
import os, signal
from attn_fuzz.emulated import compiler, emulation, launches
from attn_fuzz.emulated.jobs import Job
try:
    compiler.ready(Job("no_such_module", "kernel", "gfx942", {}))
except compiler.CompilerError:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (-9, "")


def test_the_guards_around_a_tensor_are_not_the_launchs():
    storage = torch.zeros(100, dtype=torch.float16)
    arguments = {"rows": storage[10:40].view(3, 10)[:, :4], "other": storage[60:70], "none": storage[80:80], "number": 3}
    inputs = emulation.inputs_of(arguments, (1,), ["rows", "other", "number"])
    assert inputs.permitted == (spans := {"rows": [(20, 68), (120, 140)]}, spans)


@pytest.mark.parametrize(
    ("mutant", "about", "words"),
    [
        (
            "table-past-its-end",
            "load of block_table",
            r"load of block_table, \d elements past its last: "
            r"only entries of blocks that hold a key may be read: 4 bytes at byte ",
        ),
        (
            "keys-of-padding",
            "load of kv_cache",
            r"load of kv_cache, K of block \d, slot 3, .*: only slots that hold a key of a request may be read: \d+ bytes at ",
        ),
        ("cache-written-back", "store of kv_cache", r"store of kv_cache, K of block .*: nothing of it may be written: "),
    ],
)
def test_an_access_that_the_call_does_not_allow_is_told_by_tensor_and_index(mutant, about, words, step_case, tmp_path):
    bug = mutants.load(ZOO / f"{mutant}.toml")
    with Executor("triton@gfx942", "cpu", 120.0, tmp_path / "ahead.json", bug) as executor:
        verdict = executor.run(step_case)
    assert (verdict.kind, verdict.about) == ("sanitizer", about), verdict
    assert re.search(rf"attention_kernel for gfx942: {words}", verdict.message)
    assert re.search(r"\(workgroup \d+, wave \d+, lane \d+\): `\w+ .*`, line \d+ of the assembly", verdict.message)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("COMPILED", "sanitizer", r"copy_rows_kernel for gfx942: a race"),
        ("TWICE", "sanitizer", r"copy_rows_kernel for gfx942: a race"),
        ("MEANT", "agree", ""),
    ],
)
def test_a_race_of_a_kernel_of_others_is_found_unless_its_target_declares_it(name, kind, words, step_case, monkeypatch):
    monkeypatch.setattr(of_architecture, "CHECKED", 1.0)
    verdict = try_case(step_case, registry.load(f"planted_race:{name}@gfx942"), "cpu")
    assert (verdict.kind, verdict.about) == (kind, "Fault" if words else verdict.about), verdict
    assert re.search(words, verdict.message)


def test_a_share_of_launches_runs_in_a_second_order_with_other_junk():
    drawn = [of_architecture.schedules(random.Random(seed)) for seed in range(200)]
    twice = [schedules for schedules in drawn if len(schedules) == 2]
    assert 0.2 < len(twice) / len(drawn) < 0.4
    assert all(first.races and not second.races and first.seed != second.seed for first, second in twice)


@pytest.mark.parametrize(
    "name", ["triton", "triton-latent", "triton-cascade", "triton-merge", "triton-merge-parts", "triton-ranks"]
)
def test_our_targets_are_planned_for_the_architecture(name, monkeypatch):
    target = registry.load(name)
    assert target.planned is not None
    q = torch.zeros(1, 1, 16)
    assert interprets(q)
    with target.planned(Gpu("gfx942")):
        assert not interprets(q)
        assert architecture_of(q.device, q.dtype) == "gfx942"
    assert interprets(q)


def test_keys_of_drawn_steps_are_split(tmp_path):
    """They never were, because the tables split more keys than are drawn: no reduction ran, and mutants of it survived."""
    splits: list[bool] = []
    plan = FuzzPlan(target=TRITON_GFX942.name, device="cpu", examples=40, seed=0, folder=tmp_path)

    def draw(case, number):
        splits.append("split" in TRITON_GFX942.events(build(case, "cpu")))

    draw_cases(plan, TRITON_GFX942, draw, Tally())
    assert 10 <= sum(splits) < len(splits) == 40


def test_half_of_the_reductions_take_few_parts_at_once():
    """Shipped ones take as many as drawn requests have, so that a bug of a second round survived."""
    with planned(Gpu("gfx942")):
        rounds = [parts.reduce_tiles("gfx942", head_size=size, num_parts=3).block_parts for size in range(1, 101)]
    assert {*rounds} == {PARTS_PER_ITERATION, 4}
    assert 30 < rounds.count(PARTS_PER_ITERATION) < 70
    assert parts.reduce_tiles("gfx942", head_size=64, num_parts=3).block_parts == 4


def test_half_of_the_selections_look_at_few_units_in_a_turn():
    """Shipped ones look at more than a drawn request has, so that a bug of a second turn survived."""
    with planned(Gpu("gfx942")):
        layers = [Indexer(num_heads=1, head_size=32, top_k=k) for k in range(1, 101)]
        blocks = [indexer.select_tiles("gfx942", layer).block for layer in layers]
    assert {*blocks} == {UNITS_PER_ITERATION, 4096}
    assert 30 < blocks.count(UNITS_PER_ITERATION) < 70


def code_of(case: Case) -> list[tuple]:
    """The specializations that the launches of a case are compiled for, on gfx942."""
    step = build(case, "cpu")
    jobs = []
    with planned(Gpu("gfx942")):
        plan = attn_optimized.plan_of(step.q, step.layer, step.batch)
    outputs = {"out": step.out, "lse": step.lse}
    if step.kv_cache is not None:
        calls = [*paged_attention_calls(step.q, step.kv_cache, step.layer, step.batch, plan, **outputs)]
    else:
        calls = [*varlen_attention_calls(step.q, step.k, step.v, step.layer, step.batch, plan, **outputs)]
    for write in step.writes:
        if write.rotation is None and step.raw is not None:
            written = (write.k, write.v, write.view.tensor(step.raw), write.layer, write.slot_mapping)
            calls.append(write_kv_cache_call(*written, architecture="gfx942"))
    for call in calls:
        job = emulation.job_of(call, "gfx942")
        arguments = {name: value for name, value in job.arguments.items() if name not in call.launch.numbers}
        pointers = {name: (value.dtype, value.is_aligned) for name, value in arguments.items() if isinstance(value, Pointer)}
        jobs.append((job.kernel, arguments | pointers))
    return jobs


def without_reduction(jobs: list[tuple]) -> list[tuple]:
    """Its tiles have one of a few sizes, by the number of parts, which follows the number of programs."""
    return [(kernel, arguments) for kernel, arguments in jobs if "BLOCK_PARTS" not in arguments]


def changed(case: Case, name: str, value: object) -> Case:
    """A case with another value of a field, or of a field of its cache."""
    if name.startswith("cache."):
        return msgspec.structs.replace(case, cache=msgspec.structs.replace(case.cache, **{name.removeprefix("cache."): value}))
    return msgspec.structs.replace(case, **{name: value})


def fields_of(layer: DrawnLayer) -> dict[str, object]:
    return layer.case | {f"cache.{name}": value for name, value in layer.cache.items()}


@pytest.mark.nightly
def test_steps_of_a_layer_have_their_own_numbers_of_what_kernels_are_not_compiled_for():
    """For each field of a layer, and each layer that sets it: True if another value gives other code."""
    own, kept = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    support = TRITON_GFX942.support("cpu")

    @st.composite
    def layers(draw) -> tuple[DrawnLayer, DrawnLayer, DrawnLayer, Case]:
        one, another = layer(draw, support), layer(draw, support)
        return one, another, with_own_numbers(draw, support, one), draw(steps("triton@gfx942", support, one))

    @hypothesis.seed(1)
    @hypothesis.settings(INDEPENDENT, max_examples=60, phases=[hypothesis.Phase.generate])
    @hypothesis.given(layers())
    def compare(drawn) -> None:
        one, another, numbers, case = drawn
        before, others = fields_of(one), fields_of(another)
        if support.beyond(case) or not case.requests:
            return
        if not (code := code_of(case)):
            return  # a step without a token launches nothing
        for name, value in fields_of(numbers).items():
            is_own = value != before[name]
            value = value if is_own else others.get(name, before[name])
            if value == before[name]:
                continue
            try:
                changed_code = code_of(changed(case, name, value))
            except (ContractError, IndexError):  # it does not fit the layer's other fields
                continue
            is_other = changed_code != code
            if name in ("num_kv_heads", "window", "chunked_local", "selected"):
                if len(changed_code) != len(code):
                    continue  # many heads fill the GPU; a window, a chunk or a selection leaves few keys: they are not split
                is_other = without_reduction(changed_code) != without_reduction(code)
            if name == "scale" and (value > 0) != (case.scale > 0):
                assert is_other
            else:
                (own if is_own else kept)[name].append(is_other)

    compare()
    assert own.keys() >= {"scale", "num_kv_heads", "window", "sinks", "cache.planes", "cache.scales"}
    for name, found in own.items():
        assert sum(found) <= 0.2 * len(found), name
    # all steps of a layer have its type, though no kernel is compiled for it
    for name in kept.keys() - own.keys() - {"attn_type"}:
        assert any(kept[name]) or len(kept[name]) < 5, name


def test_a_target_of_gluon_kernels_runs_on_their_architectures_alone():
    name = "attn_fuzz.targets.packages.aiter.sparse:AITER_GLUON_SPARSE"
    with pytest.raises(registry.TargetError, match=f"Triton does not interpret Gluon: {name}@gfx950"):
        registry.usable(name, "cpu")
    with pytest.raises(registry.TargetError, match="its kernels are those of gfx950"):
        registry.load(f"{name}@gfx942")

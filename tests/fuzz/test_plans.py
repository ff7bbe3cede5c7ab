"""The checks around launches for GPUs that are not here fail if a wrong GPU, launch or process goes through."""

import contextlib
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import attn_optimized
import pytest
import torch
from attn_contract import UnsupportedError
from attn_fuzz.cases import tensors
from attn_fuzz.targets import no_interpreter, plans, pretended_launches, wrong_gpus
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_optimized.merge import merge_attn_states_call


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sm90", True),
        ("sm120", True),
        ("gfx90a", True),
        ("gfx1201", True),
        ("sm", False),
        ("sm9a", False),
        ("SM90", False),
        ("sm90\n", False),
        ("gfx9", False),
        ("gfx2201", False),
        ("gfx94X", False),
        ("gfx942:xnack-", False),
        ("gf942", False),
    ],
)
def test_the_form_of_an_architecture(name, expected):
    assert wrong_gpus.is_name(name) is expected


def test_a_plan_for_a_wrong_gpu_is_noticed(step_case, monkeypatch):
    step = tensors.build(step_case)
    wrong_gpus.check(step.q, step.layer, step.batch)
    monkeypatch.setattr(attn_optimized, "plan_of", lambda *arguments, **options: None)
    with pytest.raises(AssertionError, match=r"a plan with .*: expected a ContractError"):
        wrong_gpus.check(step.q, step.layer, step.batch)


def test_a_launch_of_the_interpreter_for_a_gpu_is_noticed(step_case):
    step = tensors.build(step_case)
    out, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    call = merge_attn_states_call(out, lse, out, lse, out=out)
    with pytest.raises(RuntimeError, match="a launch for sm90 has"):
        plans.run_rows(call, "sm90", out)
    part, *_ = cascade_attention_calls(step.q, step.kv_cache, step.layer, step.batch, 0, out=step.out)
    with pytest.raises(RuntimeError, match="a launch for gfx942 has"):
        plans._check_tiles(part, "gfx942")


def _twice(call: KernelCall, run: Callable[..., None]) -> None:
    run()
    run()


def _forgotten(call: KernelCall, run: Callable[..., None]) -> None:
    """Nothing is launched."""


def _on_the_current_gpu(call: KernelCall, run: Callable[..., None]) -> None:
    run(device=torch.device("cuda", torch.cuda.current_device()))


def _of_another_grid(call: KernelCall, run: Callable[..., None]) -> None:
    run(launch=dataclasses.replace(call.launch, grid=(*call.launch.grid[:-1], call.launch.grid[-1] + 1)))


def _with_another_number(call: KernelCall, run: Callable[..., None]) -> None:
    numbers = {name: value + (name == "num_tokens") for name, value in call.launch.numbers.items()}
    run(launch=dataclasses.replace(call.launch, numbers=numbers))


def _with_other_options(call: KernelCall, run: Callable[..., None]) -> None:
    run(launch=dataclasses.replace(call.launch, options={**call.launch.options, "num_warps": 16}))


def _compiled_for_the_first_tensors(call: KernelCall, run: Callable[..., None]) -> None:
    """What was compiled is kept, whatever it was compiled for."""
    key = id(call.launch)
    if key not in _KEPT:
        _KEPT[key] = call.launch.kernel[call.launch.grid](*_values(call), **call.launch.options)
        return
    pointers = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in _values(call)]
    _KEPT[key][call.launch.grid](*pointers)


_KEPT: dict[int, Any] = {}


def _values(call: KernelCall) -> list[Any]:
    values = {**call.arguments, **call.launch.constants}
    return [values[name] for name in call.launch.kernel.arg_names]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_twice, "2 launches of one call"),
        (_forgotten, "0 launches of one call"),
        (_on_the_current_gpu, "a call on GPU [01] is launched on GPU [01]"),
        (_of_another_grid, "a grid of .* is launched as"),
        (_with_another_number, "are launched as"),
        (_with_other_options, "options .*16"),
        (_compiled_for_the_first_tensors, "a kernel compiled for .* is launched on|is launched on GPU"),
    ],
)
def test_a_wrong_launch_on_a_gpu_is_noticed(fault, message, monkeypatch):
    out, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    call = merge_attn_states_call(out, lse, out, lse, out=out)
    pretended_launches.check(call, random.Random(0))
    right = KernelCall.run

    def run(call: KernelCall, device: torch.device) -> None:
        fault(call, lambda launch=call.launch, device=device: right(call._replace(launch=launch), device))

    monkeypatch.setattr(KernelCall, "run", run)
    with pytest.raises(AssertionError, match=message):
        pretended_launches.check(call, random.Random(0))


def test_a_kernel_that_is_compiled_with_other_arguments_than_it_is_launched_with_is_noticed(monkeypatch):
    out, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    call = merge_attn_states_call(out, lse, out, lse, out=out)
    monkeypatch.setattr(KernelCall, "arguments", property(lambda call: call.tensors))
    with pytest.raises(AssertionError, match="a kernel has"):
        pretended_launches.check(call, random.Random(0))


GIVEN = {"block_m": 128, "block_n": 64, "num_warps": 4, "num_stages": 3}


@pytest.mark.parametrize(
    ("change", "is_right"),
    [({}, True), ({"num_stages": 1}, True), ({"num_stages": 4}, False), ({"block_n": 32}, False), ({"num_warps": 8}, False)],
)
def test_a_plan_has_the_parameters_that_were_given_and_stages_that_fit(change, is_right, step_case, monkeypatch):
    step = tensors.build(step_case)
    choice = plans.Choice(architecture="gfx942", compute_units=3, parameters=GIVEN, batch_invariant=False)
    monkeypatch.setattr(plans, "chosen", lambda batch: choice)
    plan_of = attn_optimized.plan_of

    def other_plan(*arguments, parameters=None, **options):
        given = None if parameters is None else dataclasses.replace(parameters, **change)
        return plan_of(*arguments, parameters=given, **options)

    monkeypatch.setattr(attn_optimized, "plan_of", other_plan)
    with contextlib.nullcontext() if is_right else pytest.raises(RuntimeError, match="a plan for Choice"):
        plans._plan(step.q, step.layer, step.batch)


def _refuse(*arguments):
    raise UnsupportedError("attention", "a tensor on cpu", "there is no interpreter")


def test_a_call_that_no_kernel_can_serve_is_noticed():
    no_interpreter.check(_refuse, torch.bfloat16)
    with pytest.raises(AssertionError, match="a CPU without an interpreter: expected a refusal"):
        no_interpreter.check(lambda: None, torch.float32)
    with pytest.raises(AssertionError, match="expected a refusal, got ValueError"):
        no_interpreter.check(lambda: int("x"), torch.float32)

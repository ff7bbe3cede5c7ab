"""The checks around launches for GPUs that are not here fail if a wrong GPU, launch or process goes through."""

import contextlib
import dataclasses

import attn_optimized
import pytest
import torch
from attn_contract import UnsupportedError
from attn_fuzz.cases import tensors
from attn_fuzz.targets import no_interpreter, plans, wrong_gpus
from attn_optimized.cascade import cascade_attention_calls
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

"""The checks around launches for GPUs that are not here fail if a wrong GPU, launch or process goes through."""

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

import attn_optimized
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout, UnsupportedError
from attn_fuzz.cases import tensors
from attn_fuzz.targets import no_interpreter, planned, plans, pretended_launches, wrong_gpus, wrong_tables
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch import shared_memory, table, widths
from attn_optimized.launch.table import Parameters
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


def test_an_error_of_a_plan_that_names_another_argument_is_noticed(step_case, monkeypatch):
    step, plan_of = tensors.build(step_case), attn_optimized.plan_of

    def naming_q(*arguments, **options):
        try:
            return plan_of(*arguments, **options)
        except ContractError as error:
            raise ContractError("q", error.got, error.expected) from error

    monkeypatch.setattr(attn_optimized, "plan_of", naming_q)
    with pytest.raises(AssertionError, match="expected an error that names"):
        wrong_gpus.check(step.q, step.layer, step.batch)


def test_a_launch_of_the_interpreter_for_a_gpu_is_noticed(step_case):
    step = tensors.build(step_case)
    out, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    call = merge_attn_states_call(out, lse, out, lse, out=out)
    with pytest.raises(RuntimeError, match="a launch for sm90 has"):
        plans.run_rows(call, "sm90", out)
    part, *_ = cascade_attention_calls(step.q, step.kv_cache, step.layer, step.batch, 0, out=step.out)
    with pytest.raises(RuntimeError, match="a launch for gfx1201 has"):
        plans._check_tiles(part, "gfx1201")


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
    with contextlib.nullcontext() if is_right else pytest.raises(AssertionError, match="a plan for gfx942 has"):
        plans._plan(step.q, step.layer, step.batch)


SIZES = {"num_heads": 24, "num_kv_heads": 3, "head_size": 80, "scale": 1.0}
PAGED = Layer(**SIZES, attn_type=AttentionType.DECODER, layout=Layout.BLOCKS_FIRST_NHD)
LATENT = Layer(num_heads=24, num_kv_heads=1, head_size=576, head_size_v=512, scale=1.0, layout=Layout.LATENT)
DRAWN = 300
"""Draws that are to notice a fault: what `ci` draws, and each draws one plan and one mistake in a table."""


@pytest.mark.parametrize("layer", [PAGED, LATENT])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: replaced(plan, "tiles.widths", block_d=plan.tiles.widths.block_d * 2), "stand in"),
        (lambda plan: replaced(plan, "tiles.widths", value_size=64), "has Widths"),
        (lambda plan: replaced(plan, "tiles", block_m=256), "a tile of 256 rows"),
        (lambda plan: replaced(plan, "tiles", queries=plan.tiles.queries + 1), "heads, groups, heads of a KV head and queries"),
        (lambda plan: replaced(plan, "tiles", small_block_m=plan.tiles.block_m), "a small tile of"),
        (lambda plan: replaced(plan, "", splits=2, batch_invariant=True), "a batch-invariant plan in 2 parts"),
        (lambda plan: replaced(plan, "tiles.parameters", num_stages=9), "a plan for sm80 has"),
    ],
)
def test_a_wrong_plan_is_noticed(layer, change, message):
    q, batch = torch.empty((4096, 24, layer.head_size), dtype=torch.float16, device="meta"), prefill(4096)
    plan = attn_optimized.plan_of(q, layer, batch, architecture="sm80", compute_units=8)
    planned.check(plan, q, layer, batch, None)
    with pytest.raises(AssertionError, match=message):
        planned.check(change(plan), q, layer, batch, None)


def replaced(instance, place, **changed):
    """A dataclass with other fields in it, or in what its fields hold."""
    if place:
        name, _, rest = place.partition(".")
        changed = {name: replaced(getattr(instance, name), rest, **changed)}
    return dataclasses.replace(instance, **changed)


def prefill(tokens):
    integers = torch.empty((2,), dtype=torch.int32, device="meta")
    lengths = {"max_query_len": tokens, "max_seq_len": tokens, "num_actual_tokens": tokens}
    return Batch(query_start_loc=integers, seq_lens=integers[1:], causal=True, **lengths)


def test_stages_that_no_gpu_holds_are_noticed():
    """A tile of 64 keys of 256 dims in 16 bits has 64 KiB with its values, and 128 rows of q as much."""
    layer = Layer(**(SIZES | {"head_size": 256}), attn_type=AttentionType.ENCODER_ONLY)
    q, batch = torch.empty((4096, 24, 256), dtype=torch.float16, device="meta"), prefill(4096)
    given = Parameters(block_m=128, block_n=64, num_warps=8, num_stages=3)
    for architecture, stages in (("sm80", 1), ("sm90", 2)):
        gpu = {"architecture": architecture, "compute_units": 8, "parameters": given}
        plan = attn_optimized.plan_of(q, layer, batch, **gpu)
        assert plan.tiles.parameters.num_stages == stages
        planned.check(plan, q, layer, batch, given)
        with pytest.raises(AssertionError, match=rf"{stages + 1} stages take .* bytes of the .* of {architecture}"):
            planned.check(replaced(plan, "tiles.parameters", num_stages=stages + 1), q, layer, batch, given)


def test_the_memory_that_is_stated_is_the_memory_of_the_launches():
    assert shared_memory._MOST_BYTES == planned.SHARED_MEMORY


def noticed(check):
    """How many of DRAWN draws notice a fault."""
    attn_optimized.attention.forget_launches()  # and the plans of a fault that is no more
    found = 0
    for seed in range(DRAWN):
        try:
            check(random.Random(seed))
        except Exception:  # whatever ends a case is a finding
            found += 1
    return found


def check_drawn(choose):
    plans._check_drawn(plans.Choice(plans._architecture(choose), 3, None, False), choose)


@pytest.mark.parametrize(("name", "value"), [("MAX_HEAD_SIZE", 257), ("MAX_LATENT_SIZE", 513), ("MAX_REST_SIZE", 127)])
def test_a_limit_of_heads_that_is_another_one_is_noticed_in_drawn_sizes(name, value, monkeypatch):
    assert noticed(check_drawn) == 0
    monkeypatch.setattr(widths, name, value)
    assert noticed(check_drawn) > 3


def test_a_plan_that_is_batch_invariant_unasked_is_noticed_in_drawn_sizes(monkeypatch):
    plan_of = attn_optimized.plan_of
    invariant_by_default = functools.partial(plan_of, batch_invariant=True)
    monkeypatch.setattr(attn_optimized, "plan_of", invariant_by_default)
    assert noticed(check_drawn) > DRAWN // 3


def test_a_table_that_is_not_read_with_care_is_noticed(monkeypatch):
    assert noticed(wrong_tables.check) == 0
    for name, careless in (
        ("_without_duplicates", dict),
        ("check_type", lambda *arguments: None),
        ("check_int", lambda *arguments, minimum: None),
        ("MAX_BYTES", 1 << 21),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(table, name, careless)
            assert noticed(wrong_tables.check) > 2, name


@pytest.mark.parametrize(("architecture", "is_known"), [("sm80", False), ("sm89", True), ("gfx942", True)])
def test_a_type_that_a_gpus_compiler_refuses_is_noticed(architecture, is_known):
    out, lse = torch.zeros(3, 2, 16), torch.zeros(2, 3)
    call = merge_attn_states_call(out, lse, out, lse, out=torch.zeros_like(out), architecture=architecture)
    quantized = call._replace(tensors=call.tensors | {"out_b_ptr": out.to(torch.float8_e4m3fn)})
    plans._run(call, architecture, out.device)
    with contextlib.nullcontext() if is_known else pytest.raises(RuntimeError, match="a launch for sm80 has out_b_ptr of"):
        plans._run(quantized, architecture, out.device)


def _refuse(*arguments):
    raise UnsupportedError("attention", "a tensor on cpu", "there is no interpreter")


def test_a_call_that_no_kernel_can_serve_is_noticed():
    no_interpreter.check(_refuse, torch.bfloat16)
    with pytest.raises(AssertionError, match="a CPU without an interpreter: expected a refusal"):
        no_interpreter.check(lambda: None, torch.float32)
    with pytest.raises(AssertionError, match="expected a refusal, got ValueError"):
        no_interpreter.check(lambda: int("x"), torch.float32)

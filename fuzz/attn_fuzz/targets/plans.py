"""The launches of GPUs that are not here: launches for any architecture that the launch tables know, interpreted on a CPU.

The plan that the interpreter takes for itself has tiles, splits and formats of float8 of its own. So the tables, the waves of
compute units and the formats of GPUs would never run on a CPU. These targets have launches made for a GPU that they choose by
the lengths of a call. Attention has launch parameters that no table holds in half of the calls.
"""

import dataclasses
import functools
import random
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets import (
    planned,
    pretended_gpus,
    pretended_launches,
    wrong_gpus,
    wrong_tables,
)
from attn_fuzz.targets.aiter import missing_e4m3fnuz
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import (
    TRITON,
    TRITON_CASCADE,
    TRITON_LATENT,
    TRITON_LATENT_SCALED,
    common_prefix,
    missing_triton,
)
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall
    from attn_optimized.launch.plan import AttentionPlan

COMPUTE_UNITS = (1, 3, 8)
"""Few enough that splitting keys over them does not make more programs than are quickly interpreted."""
SIDES = (32, 64, 128)
MOST_PARTS = 128
_LONG = 4096
"""Queries of a prefill that comes to a step."""


class Choice(NamedTuple):
    """A GPU, and how its launches are planned.

    Attributes:
        architecture, compute_units: of the GPU.
        parameters: fields of `attn_optimized.launch.table.Parameters` in place of those of the table; None: the table's.
        batch_invariant: as of `paged_attention`.
    """

    architecture: str
    compute_units: int
    parameters: dict[str, Any] | None
    batch_invariant: bool


def chosen(batch: Batch) -> Choice:
    """The GPU that a call is planned for."""
    choose = choices_by((batch.query_start_loc, batch.seq_lens))
    return Choice(
        _architecture(choose),
        choose.choice(COMPUTE_UNITS),
        _parameters(choose) if choose.random() < 0.5 else None,
        choose.random() < 0.2,
    )


def _architecture(choose: random.Random) -> str:
    """One with a table of its own or of a chip like it; now and then one of NVIDIA's, or one that no table names."""
    from attn_optimized.launch.table import architectures

    strangers = (
        f"sm{choose.randint(70, 129)}",
        choose.choice((*planned.SHARED_MEMORY,)),
        f"gfx{choose.randint(0x900, 0x9FF):x}",
    )
    return choose.choice((*architectures(), *strangers))


def _parameters(choose: random.Random) -> dict[str, Any]:
    return {
        "block_m": choose.choice(SIDES),
        "block_n": choose.choice(SIDES),
        "num_warps": choose.choice((1, 2, 4, 8)),
        "num_stages": choose.randint(1, 4),
        "maxnreg": choose.choice((None, 128)),
        "waves_per_eu": choose.choice((None, 2)),
        "keys_per_split": choose.choice((16, 16, 33, 64, 512)),
        "programs_per_unit": choose.randint(1, 3),
        "uneven_waves": choose.randint(0, 4),
    }


def _plan(q: torch.Tensor, layer: Layer, batch: Batch) -> "AttentionPlan":
    """The plan of a call. What changes no output is looked at here: launch parameters, and the memory that it says it takes."""
    import attn_optimized
    from attn_optimized.launch.parts import Parts
    from attn_optimized.launch.table import Parameters

    choice = chosen(batch)
    given = None if choice.parameters is None else Parameters(**choice.parameters)
    plan = attn_optimized.plan_of(
        q,
        layer,
        batch,
        batch_invariant=choice.batch_invariant,
        architecture=choice.architecture,
        compute_units=choice.compute_units,
        parameters=given,
    )
    if plan.architecture != choice.architecture:
        raise RuntimeError(f"a plan for {choice} has {plan.architecture}")
    planned.check(plan, q, layer, batch, given)
    _check_is_invariant(q, layer, batch, choice)
    parts = Parts.empty(plan.splits, q.to("meta"), layer, batch) if plan.splits > 1 else ()
    if plan.scratch_bytes != sum(part.nbytes for part in parts):
        raise RuntimeError(f"a plan in {plan.splits} parts says that they have {plan.scratch_bytes} bytes")
    return plan


def _check_is_invariant(q: torch.Tensor, layer: Layer, batch: Batch, choice: Choice) -> None:
    """Raise a RuntimeError if a batch-invariant call has other tiles beside a long prefill than without: its sums do then."""
    import attn_optimized

    gpu = {"architecture": choice.architecture, "compute_units": choice.compute_units}
    bounds = (batch.max_query_len, 1, _LONG)
    # a bound of queries is all that a plan knows of the longest request; a bias is of no more queries than it has rows
    steps = [dataclasses.replace(batch, max_query_len=bound, qq_bias=None) for bound in bounds]
    plans = [attn_optimized.plan_of(q, layer, step, batch_invariant=True, **gpu) for step in steps]
    tiles = {(plan.tiles, plan.splits) for plan in plans}
    if len(tiles) > 1:
        raise RuntimeError(f"batch-invariant plans for {choice.architecture} under bounds of {bounds} queries: {tiles}")


def _check_drawn(choice: Choice, choose: random.Random) -> None:
    """Hold a plan of drawn sizes to what a plan is: for the GPU of a call, or for one whose shared memory is known.

    The interpreter has no table. Under launch parameters that are given it plans as a GPU does.
    """
    from attn_optimized.launch.table import Parameters

    given = Parameters(**(choice.parameters or _parameters(choose)))
    architecture = choose.choice((choice.architecture, "interpreter", *planned.SHARED_MEMORY))
    has_table = architecture != "interpreter" and choose.random() < 0.5
    planned.check_drawn(architecture, choice.compute_units, None if has_table else given, choose)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized.attention import paged_attention_calls, varlen_attention_calls

    plan = _plan(q, layer, batch)
    wrong_gpus.check(q, layer, batch)
    choose = choices_by((batch.query_start_loc, batch.seq_lens, q.shape))
    pretended_gpus.check(choose)
    _check_drawn(chosen(batch), choose)
    wrong_tables.check(choose)
    if layer.attn_type.reads_cache:
        calls = paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse)
    else:
        calls = varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse)
    for call in calls:
        _run(call, plan.architecture, q.device)


def _cascade_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized.cascade import cascade_attention_calls

    choice, prefix = chosen(batch), common_prefix(batch, layer, kv_cache)
    gpu = {"architecture": choice.architecture, "compute_units": choice.compute_units}
    calls = list(cascade_attention_calls(q, kv_cache, layer, batch, prefix, out=out, lse=lse, **gpu))
    for part in calls[:-1]:  # the last one is the reduction
        _check_tiles(part, choice.architecture)
    for call in calls:
        _run(call, choice.architecture, q.device)


def _check_tiles(call: "KernelCall", architecture: str) -> None:
    """Raise a RuntimeError if a part is not launched as the table of an architecture says. Its outputs would be the same."""
    from attn_optimized.launch.table import entries

    given = (entry.parameters for entry in entries(architecture))
    asked_for = [(one.block_n, one.num_warps, one.num_stages) for one in given]
    options = call.launch.options
    got = (call.launch.constants["KIND"].block_n, options["num_warps"], options["num_stages"])
    # of its stages a plan takes those that fit the GPU's memory
    if not any(got[:2] == one[:2] and 1 <= got[2] <= one[2] for one in asked_for):
        raise RuntimeError(f"a launch for {architecture} has {got}, expected one of {asked_for}")


def _write(k, v, kv_cache, layer, slot_mapping) -> None:
    from attn_optimized.kv_cache import write_kv_cache_call

    architecture = _architecture(choices_by(slot_mapping))
    call = write_kv_cache_call(k, v, kv_cache, layer, slot_mapping, architecture=architecture)
    run_rows(call, architecture, k)


def _write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    from attn_optimized.latent_cache import write_latent_cache_call

    architecture = _architecture(choices_by(slot_mapping))
    call = write_latent_cache_call(kv_c, k_pe, kv_cache, layer, slot_mapping, architecture=architecture)
    run_rows(call, architecture, kv_c[:, None])


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    from attn_optimized.kv_cache import rope_and_write_kv_cache_call

    architecture = _architecture(choices_by(slot_mapping))
    rows = (q, k, v, positions, cos_sin_cache)
    call = rope_and_write_kv_cache_call(*rows, kv_cache, layer, slot_mapping, is_neox=is_neox, architecture=architecture)
    run_rows(call, architecture, k)


def merge_attn_states(out_a, lse_a, out_b, lse_b, *, out, lse, **options) -> None:
    """`attn_optimized.merge_attn_states` as it is launched on a GPU that the sizes and strides of the call choose."""
    from attn_optimized.merge import merge_attn_states_call

    architecture = _architecture(choices_by((out_a.shape, out_a.stride(), lse_a.stride())))
    call = merge_attn_states_call(out_a, lse_a, out_b, lse_b, out=out, lse=lse, architecture=architecture, **options)
    run_rows(call, architecture, out_a)


def merge_attn_parts(outs, lses, *, out, lse, **options) -> None:
    """`attn_optimized.merge_attn_parts` likewise."""
    from attn_optimized.merge import merge_attn_parts_call

    architecture = _architecture(choices_by((outs.shape, outs.stride(), lses.stride())))
    call = merge_attn_parts_call(outs, lses, out=out, lse=lse, architecture=architecture, **options)
    run_rows(call, architecture, outs[0])


def run_rows(call: "KernelCall", architecture: str, rows: torch.Tensor) -> None:
    """Run a launch of a kernel that treats each row by itself. Other tiles give the same outputs, so they are looked at here.

    Args:
        rows: [rows, heads, D].

    Raises:
        RuntimeError: the launch is not that of the architecture.
    """
    from attn_optimized.launch.tiles import row_tiles

    tiles = row_tiles(architecture, head_size=rows.shape[2])
    if not tiles.options.items() <= call.launch.options.items():
        raise RuntimeError(f"a launch for {architecture} has {call.launch.options}, expected {tiles.options}")
    _run(call, architecture, rows.device)


def _run(call: "KernelCall", architecture: str, device: torch.device) -> None:
    """Run a launch of a GPU, whose compiler must know the types of its tensors: the interpreter knows them all.

    One in three is launched on GPUs that are pretended before: for all it would take 7 % of the time.

    Raises:
        AssertionError: see `pretended_launches.check`.
        RuntimeError: the compiler would refuse a tensor.
    """
    known = _known_float8(architecture)
    for name, tensor in call.tensors.items():
        if tensor is not None and _FLOAT8.get(tensor.dtype, "") not in known:
            raise RuntimeError(f"a launch for {architecture} has {name} of {tensor.dtype}, expected {known} or bits")
    choose = choices_by((call.launch.grid, call.launch.numbers))
    if choose.random() < 1 / 3:
        pretended_launches.check(call, choose)
    call.run(device)


_FLOAT8 = {torch.float8_e4m3fn: "fp8e4nv", torch.float8_e4m3fnuz: "fp8e4b8"}
"""Triton's names of types."""


@functools.cache
def _known_float8(architecture: str) -> tuple[str, ...]:
    """The float8 types that Triton's compiler for a GPU says that it knows; and none, which any compiler knows."""
    from attn_fuzz.emulated.compilation import gpu_target
    from triton.compiler import make_backend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that nothing here compiles with
        options: Any = make_backend(gpu_target(architecture)).parse_options({})
    return ("", *options.supported_fp8_dtypes)


def _missing(device: str) -> str | None:
    if device != "cpu":
        return "it interprets the launches of GPUs that are not here: --device cpu"
    return missing_triton(device) or missing_e4m3fnuz()


def _rounding(device: str) -> Rounding:
    # a bound of every plan: the smallest tile that a plan can have, and no tile sums more keys at once than there are
    return Rounding(keys_per_tile=16, dot_is_chained=True, splits=MOST_PARTS, float16_dots=True, exact_division=True)


def _events(step: Step) -> list[str]:
    plan = _plan(step.q, step.layer, step.batch)
    return [plan.architecture[:2], *(["split"] if plan.splits > 1 else [])]


TRITON_PLANS = Target(
    name="triton-plans",
    description="the shipping Triton kernels as they are launched on GPUs that are not here, interpreted",
    attention=_attention,
    write_kv_cache=_write,
    rope_and_write_kv_cache=_rope,
    support=TRITON.support,
    rounding=_rounding,
    unavailable=_missing,
    events=_events,
    forget=TRITON.forget,
    sanitizes=True,
    exact=True,
)

TRITON_PLANS_LATENT = dataclasses.replace(
    TRITON_PLANS,
    name="triton-plans-latent",
    description="latent caches (MLA) and V of another width than K as they are launched on GPUs that are not here, interpreted",
    write_latent_cache=_write_latent,
    support=TRITON_LATENT.support,
)

TRITON_PLANS_LATENT_SCALED = dataclasses.replace(
    TRITON_PLANS_LATENT,
    name="triton-plans-latent-scaled",
    description="latent caches whose rows hold scales as they are launched on GPUs that are not here, interpreted",
    support=TRITON_LATENT_SCALED.support,
    refuses=False,  # that of triton-plans-latent: the functions are the same
    rounding=lambda device: dataclasses.replace(_rounding(device), rounds_dequantized=True),
)

TRITON_PLANS_CASCADE = dataclasses.replace(
    TRITON_CASCADE,
    name="triton-plans-cascade",
    description="cascade attention as it is launched on GPUs that are not here, interpreted",
    attention=_cascade_attention,
    # with the tiles of a GPU each request has many programs
    modules=None,  # its launches are those of several architectures
    support=lambda device: dataclasses.replace(
        TRITON_CASCADE.support(device), max_tokens=48, max_seq_len=192, long_seq_len=None
    ),
    rounding=_rounding,
    unavailable=_missing,
    siblings=(),
    checks_arguments=False,
    refuses=False,  # a launch is made without checks
)

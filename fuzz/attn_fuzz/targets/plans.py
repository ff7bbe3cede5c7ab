"""The launches of GPUs that are not here: launches for any architecture that the launch tables know, interpreted on a CPU.

The plan that the interpreter takes for itself has tiles, splits and formats of float8 of its own. So the tables, the waves of
compute units and the formats of GPUs would never run on a CPU. These targets have launches made for a GPU that they choose by
the lengths of a call. Attention has launch parameters that no table holds in half of the calls.
"""

import dataclasses
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.tensors import Step
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
    from attn_optimized.launch.plan import AttentionPlan

COMPUTE_UNITS = (1, 3, 8)
"""Few enough that splitting keys over them does not make more programs than are quickly interpreted."""
SIDES = (32, 64, 128)
MOST_PARTS = 128
_NVIDIA = ("sm70", "sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
"""GPUs that keep several tiles of keys in shared memory, whose size limits how many."""


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
        choose.choice(_NVIDIA),
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
    """The plan of a call."""
    import attn_optimized
    from attn_optimized.launch.table import Parameters

    choice = chosen(batch)
    return attn_optimized.plan_of(
        q,
        layer,
        batch,
        batch_invariant=choice.batch_invariant,
        architecture=choice.architecture,
        compute_units=choice.compute_units,
        parameters=None if choice.parameters is None else Parameters(**choice.parameters),
    )


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized.attention import paged_attention_calls, varlen_attention_calls

    plan = _plan(q, layer, batch)
    if layer.attn_type.reads_cache:
        calls = paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse)
    else:
        calls = varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse)
    for call in calls:
        call.run(q.device)


def _cascade_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized.cascade import cascade_attention_calls

    choice, prefix = chosen(batch), common_prefix(batch, layer, kv_cache)
    gpu = {"architecture": choice.architecture, "compute_units": choice.compute_units}
    for call in cascade_attention_calls(q, kv_cache, layer, batch, prefix, out=out, lse=lse, **gpu):
        call.run(q.device)


def _write(k, v, kv_cache, layer, slot_mapping) -> None:
    from attn_optimized.kv_cache import write_kv_cache_call

    architecture = _architecture(choices_by(slot_mapping))
    write_kv_cache_call(k, v, kv_cache, layer, slot_mapping, architecture=architecture).run(k.device)


def _write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    from attn_optimized.latent_cache import write_latent_cache_call

    architecture = _architecture(choices_by(slot_mapping))
    write_latent_cache_call(kv_c, k_pe, kv_cache, layer, slot_mapping, architecture=architecture).run(kv_c.device)


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    from attn_optimized.kv_cache import rope_and_write_kv_cache_call

    options = {"is_neox": is_neox, "architecture": _architecture(choices_by(slot_mapping))}
    tensors = (q, k, v, positions, cos_sin_cache, kv_cache)
    rope_and_write_kv_cache_call(*tensors, layer, slot_mapping, **options).run(k.device)


def merge_attn_states(out_a, lse_a, out_b, lse_b, *, out, lse, **options) -> None:
    """`attn_optimized.merge_attn_states` as it is launched on a GPU that the sizes and strides of the call choose."""
    from attn_optimized.merge import merge_attn_states_call

    options["architecture"] = _architecture(choices_by((out_a.shape, out_a.stride(), lse_a.stride())))
    merge_attn_states_call(out_a, lse_a, out_b, lse_b, out=out, lse=lse, **options).run(out_a.device)


def merge_attn_parts(outs, lses, *, out, lse, **options) -> None:
    """`attn_optimized.merge_attn_parts` likewise."""
    from attn_optimized.merge import merge_attn_parts_call

    options["architecture"] = _architecture(choices_by((outs.shape, outs.stride(), lses.stride())))
    merge_attn_parts_call(outs, lses, out=out, lse=lse, **options).run(outs.device)


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

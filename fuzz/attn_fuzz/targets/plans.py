"""The launches of GPUs that are not here: plans of any architecture that the launch tables know, interpreted on a CPU.

The plan that the interpreter takes for itself has tiles, splits and formats of float8 of its own. So the tables, the waves of
compute units and the formats of GPUs would never run on a CPU. This target has plans made for a GPU that it chooses by the
lengths of a call, in half of the calls with launch parameters that no table holds.
"""

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.aiter import missing_e4m3fnuz
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON, missing_triton
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_optimized.launch.plan import AttentionPlan

COMPUTE_UNITS = (1, 3, 8)
"""Few enough that splitting keys over them does not make more programs than are quickly interpreted."""
SIDES = (32, 64, 128)
MOST_PARTS = 128


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
    choose = random.Random(repr((batch.query_start_loc.tolist(), batch.seq_lens.tolist())))
    return Choice(
        _architecture(choose),
        choose.choice(COMPUTE_UNITS),
        _parameters(choose) if choose.random() < 0.5 else None,
        choose.random() < 0.2,
    )


def _architecture(choose: random.Random) -> str:
    """One with a table of its own or of a chip like it; now and then one that no table names."""
    from attn_optimized.launch.table import architectures

    strangers = (f"sm{choose.randint(70, 129)}", f"gfx{choose.randint(0x900, 0x9FF):x}")
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
    """The plan of a call. Other launch parameters than were asked for give the same outputs, so they are looked at here."""
    import attn_optimized
    from attn_optimized.launch.table import Parameters, entries

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
    asked_for = [entry.parameters for entry in entries(choice.architecture)] if given is None else [given]
    if plan.architecture != choice.architecture or plan.tiles.parameters not in asked_for:
        raise RuntimeError(f"a plan for {choice} has {plan.architecture} and {plan.tiles.parameters}")
    return plan


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized.attention import paged_attention_calls, varlen_attention_calls

    plan = _plan(q, layer, batch)
    if layer.attn_type.reads_cache:
        calls = paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse)
    else:
        calls = varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse)
    for call in calls:
        call.run(q.device)


def _write(k, v, kv_cache, layer, slot_mapping) -> None:
    from attn_optimized.kv_cache import write_kv_cache_call

    architecture = _architecture_of_write(slot_mapping)
    write_kv_cache_call(k, v, kv_cache, layer, slot_mapping, architecture=architecture).run(k.device)


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    from attn_optimized.kv_cache import rope_and_write_kv_cache_call

    tensors = (q, k, v, positions, cos_sin_cache, kv_cache)
    architecture = _architecture_of_write(slot_mapping)
    rope_and_write_kv_cache_call(*tensors, layer, slot_mapping, is_neox=is_neox, architecture=architecture).run(k.device)


def _architecture_of_write(slot_mapping: torch.Tensor) -> str:
    return _architecture(random.Random(repr(slot_mapping.tolist())))


def _missing(device: str) -> str | None:
    if device != "cpu":
        return "it interprets the launches of GPUs that are not here: --device cpu"
    return missing_triton(device) or missing_e4m3fnuz()


def _rounding(device: str) -> Rounding:
    # a bound of every plan: the smallest tile that a plan can have, and no tile sums more keys at once than there are
    return Rounding(keys_per_tile=16, dot_is_chained=True, splits=MOST_PARTS, exact_division=True)


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
)

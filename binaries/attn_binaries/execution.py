"""Run a call that ships on small cases that use its very code, and judge the outputs.

Kernels must be interpreted in this process, which plans and judges. They are compiled in another one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any
from unittest.mock import patch

import attn_optimized
import torch
from attn_amdgcn import Schedule
from attn_binaries.shipped_calls import MERGES, WRITES, ShippedCall, kernel_calls
from attn_binaries.small_cases import small_cases
from attn_contract import Batch, Indexer
from attn_fuzz.cases.case import Case
from attn_fuzz.targets.indexer import IndexerFunctions, unwritten_logits, unwritten_selection
from attn_fuzz.targets.indexer import attention_by as index_attention_by
from attn_fuzz.targets.merge import MOST_PARTS, attention_by, parts_attention_by
from attn_fuzz.targets.modes.compiled import FLUSHES_FLOAT16
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON, common_prefix
from attn_fuzz.verdict.rounding import Rounding
from attn_fuzz.verdict.verdict import Verdict
from attn_optimized.attention import paged_attention_calls, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.indexer import index_logits_call, select_call, write_index_cache_call
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.plan import AttentionPlan, attention_grid, attention_plan
from attn_optimized.launch.splits import MAX_SPLITS
from attn_optimized.launch.workload import Workload

SCHEDULES = (Schedule(races=True), Schedule("drawn", "descending", seed=1))

_PLANNER = "attn_optimized.attention.attention_plan"
"""The function that plans every call of attention, with those of a cascade."""


class OtherCodeError(Exception):
    """The code of a small case is not the code that ships."""


Runner = Callable[[str, KernelCall, KernelCall], None]
"""Runs a launch on its tensors. Its arguments: the name of the launch that ships, the launch, and the one that ships."""


@dataclass(frozen=True)
class Shipped:
    """The launches of a call that ships.

    Attributes:
        launches: by name, in their order.
        plans: the plans of its launches of attention, in their order.
        run: runs the launches of small cases.
    """

    call: ShippedCall
    architecture: str
    launches: dict[str, KernelCall]
    plans: list[AttentionPlan]
    run: Runner


def launches_of(shipped: ShippedCall, architecture: str, run: Runner) -> Shipped:
    """The launches of a call on a GPU, with their plans."""
    plans: list[AttentionPlan] = []

    def recorded(*arguments, **named) -> AttentionPlan:
        plans.append(attention_plan(*arguments, **named))
        return plans[-1]

    with patch(_PLANNER, recorded):
        launches = kernel_calls(shipped, architecture)
    if shipped.op == "cascade":
        del plans[0]  # of the whole call
    elif shipped.op not in ("paged", "varlen"):
        plans.clear()
    return Shipped(shipped, architecture, launches, plans, run)


def cases_of(of_call: Shipped) -> tuple[Case, Case]:
    """Two small cases, whose lengths fit the tiles of a call."""
    tiles = [plan.tiles for plan in of_call.plans]
    queries, keys = (max(tile.queries for tile in tiles), max(tile.block_n for tile in tiles)) if tiles else (16, 32)
    return small_cases(of_call.call, queries=queries, keys=keys)


def error_of(of_call: Shipped, verdict: Verdict) -> float:
    """The largest error / bound of outputs. A cache is compared bitwise, and what attends to it then is the reference. An index
    layer attends to nothing."""
    return 0.0 if of_call.call.op in WRITES or of_call.call.indexer is not None else verdict.ratio


def small_plan(plan: AttentionPlan, workload: Workload) -> AttentionPlan:
    """A plan with all that is compiled in, and with the programs of a smaller workload, each tile of whose keys is a part."""
    grid, one_tile_per_request = attention_grid(workload, plan.tiles)
    return replace(
        plan,
        grid=grid,
        one_tile_per_request=one_tile_per_request,
        min_tiles_per_split=1,
        max_tiles=-(-(workload.max_seq_len + plan.tiles.queries - 1) // plan.tiles.block_n),
        scratch_bytes=0,
    )


def _run(calls: Iterator[KernelCall], of_call: Shipped) -> None:
    """Run other launches in place of those that ship."""
    for call, (name, like) in zip(calls, cycle(of_call.launches.items()), strict=False):
        of_call.run(name, call, like)


def target_of(of_call: Shipped) -> Target:
    """The launches of a call as a target. What the call does not compute, the reference does."""
    shipped = of_call.call
    flushes = of_call.architecture in FLUSHES_FLOAT16
    rounding = Rounding(
        keys_per_tile=16, dot_is_chained=True, splits=2 * MAX_SPLITS, exact_division=True, flushes_float16=flushes
    )
    if shipped.op in MERGES:
        rounding = Rounding(keys_per_tile=64, merged_parts=MOST_PARTS)
    writes: dict[str, Any] = {name: _function(of_call, call) for op, (name, call) in WRITES.items() if op == shipped.op}
    return Target(
        name=f"shipped-{of_call.architecture}",
        description=f"the launches of {shipped.name} that ship for {of_call.architecture}, the code emulated",
        attention=_attention(of_call),
        support=lambda device: EVERYTHING,
        refuses=False,
        rounding=lambda device: rounding,
        oracle=shipped.indexer is None,  # a step of an index layer is judged in its place
        forget=TRITON.forget,
        **writes,
    )


def _attention(of_call: Shipped) -> Callable[..., object]:
    shipped = of_call.call
    if shipped.indexer is not None:
        return _index_layer(of_call, shipped.indexer)
    if shipped.op in WRITES:
        return REFERENCE_FP32.attention
    if shipped.op in MERGES:
        merge = _function(of_call, MERGES[shipped.op])
        return attention_by(lambda: merge) if shipped.op == "merge" else parts_attention_by(lambda: merge, MOST_PARTS)

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        plans = iter(of_call.plans)

        def planned(workload: Workload, **gpu: object) -> AttentionPlan:
            return small_plan(next(plans), workload)

        with patch(_PLANNER, planned):
            gpu = {"architecture": of_call.architecture, "compute_units": 1}
            if shipped.op == "cascade":
                prefix = common_prefix(batch, layer, kv_cache)
                calls = list(cascade_attention_calls(q, kv_cache, layer, batch, prefix, out=out, lse=lse, **gpu))
            else:
                plan = attn_optimized.plan_of(q, layer, batch, batch_invariant=shipped.batch_invariant, **gpu)
                if shipped.op == "varlen":
                    calls = list(varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse))
                else:
                    calls = list(paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse))
        if len(calls) != len(of_call.launches):
            raise OtherCodeError(f"a small case has {len(calls)} launches, and {len(of_call.launches)} ship")
        _run(iter(calls), of_call)

    return attention


def _index_layer(of_call: Shipped, layer: Indexer) -> Callable[..., object]:
    """A step of an index layer, of which the launch of the call runs one stage. No number is a neighbour of another: such keys
    are float32, which is other code."""
    architecture = of_call.architecture

    def index_logits(q, weights, index_cache, indexer: Indexer, batch: Batch) -> torch.Tensor:
        logits = unwritten_logits(q, indexer, batch)
        call = index_logits_call(q, weights, index_cache, indexer, batch, logits=logits, architecture=architecture)
        _run(iter([call]), of_call)
        return logits

    def select(logits: torch.Tensor, indexer: Indexer, batch: Batch) -> torch.Tensor:
        selected = unwritten_selection(logits, indexer)
        _run(iter([select_call(logits, indexer, batch, selected=selected, architecture=architecture)]), of_call)
        return selected

    functions = {
        "index write": IndexerFunctions(write_index_cache=_function(of_call, write_index_cache_call)),
        "index logits": IndexerFunctions(index_logits=index_logits),
        "index select": IndexerFunctions(select=select),
    }[of_call.call.op]
    names = ("layout", "cache_dtype", "scale_format", "largest", "score", "key_unit", "first_units", "last_units")
    terms = {name: (getattr(layer, name),) for name in names}
    return index_attention_by(lambda: functions, terms, ("random", "small", "one"))


def _function(of_call: Shipped, call: Callable[..., KernelCall]) -> Callable[..., None]:
    """A public function that has one launch: given its arguments, it runs this launch in place of the one that ships."""

    def function(*arguments: object, **named: object) -> None:
        _run(iter([call(*arguments, **named, architecture=of_call.architecture)]), of_call)

    return function

"""How this project's host code plans and launches its Triton kernels."""

import contextlib
import dataclasses
import importlib
import pkgutil
import random
from collections.abc import Hashable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from attn_contract import Batch, Indexer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.target import Gpu

if TYPE_CHECKING:
    from attn_optimized.attention import AttentionLaunches
    from attn_optimized.launch.plan import AttentionPlan
    from attn_optimized.launch.table import Parameters
    from attn_optimized.launch.workload import Workload

UNITS_PER_ITERATION = 64
"""Units per iteration in half of the selections on an emulated GPU. Shipped kernels take 4096, and no drawn request has more,
so that no selection would have a second iteration."""
PARTS_PER_ITERATION = 2
"""Parts that half of the reductions take at once on an emulated GPU. Shipped kernels take at least 4, and few drawn requests
have more, so that hardly any reduction would have a second iteration."""


def forget_launches() -> None:
    from attn_optimized.attention import forget_launches

    forget_launches()


def modules() -> Iterable[ModuleType]:
    """The modules of the kernels."""
    from attn_optimized import kernels

    return [importlib.import_module(f"{kernels.__name__}.{each.name}") for each in pkgutil.iter_modules(kernels.__path__)]


@contextlib.contextmanager
def planned(gpu: Gpu) -> Iterator[None]:
    """While this lasts, launches on the CPU are planned as on a GPU.

    Half of the reductions take few parts at once, so that they have several iterations, and half of the selections few units.
    """
    from attn_optimized import attention, device, indexer
    from attn_optimized.launch import parts
    from attn_optimized.launch.indexer import SelectTiles, select_tiles
    from attn_optimized.launch.plan import attention_plan
    from attn_optimized.launch.tiles import ReduceTiles, reduce_tiles

    def plan(workload: "Workload", *, parameters: "Parameters | None" = None, **place: Any) -> "AttentionPlan":
        if gpu.batch_invariant:
            workload = dataclasses.replace(workload, batch_invariant=True)
        if not gpu.parameters:
            return attention_plan(workload, **place, parameters=parameters)
        parameters = parameters or attention_plan(workload, **place).tiles.parameters
        return attention_plan(workload, **place, parameters=dataclasses.replace(parameters, **gpu.parameters))

    def tiles(architecture: str, *, head_size: int, num_parts: int) -> ReduceTiles:
        shipped = reduce_tiles(architecture, head_size=head_size, num_parts=num_parts)
        has_iterations = random.Random(f"{head_size} {num_parts}").random() < 0.5
        return dataclasses.replace(shipped, block_parts=PARTS_PER_ITERATION) if has_iterations else shipped

    def tiles_of_selection(architecture: str, layer: Indexer) -> SelectTiles:
        shipped = select_tiles(architecture, layer)
        has_iterations = random.Random(f"{layer.head_size} {layer.top_k}").random() < 0.5
        return dataclasses.replace(shipped, block=UNITS_PER_ITERATION, num_warps=1) if has_iterations else shipped

    forget_launches()  # a process has one GPU, so signatures of calls do not name it
    try:
        with (
            mock.patch.object(device, "INTERPRETER", gpu.architecture),
            mock.patch.object(indexer, "select_tiles", tiles_of_selection),
            mock.patch.object(attention, "compute_units_of", return_value=gpu.compute_units),
            mock.patch.object(attention, "attention_plan", plan),
            mock.patch.object(parts, "reduce_tiles", tiles),
        ):
            yield
    finally:
        forget_launches()


@contextlib.contextmanager
def warp_specialized() -> Iterator[None]:
    """While this lasts, launches on the CPU are planned as on an H200, and the warp specialized kernel serves all steps that it
    can: prompts of few tokens, too, which an H200 leaves to the attention kernel."""
    from attn_optimized.launch import plan

    with planned(Gpu("sm90", parameters={})), mock.patch.object(plan, "has_full_tiles", return_value=True):
        yield


def interprets(tensor: torch.Tensor) -> bool:
    """True if launches on a tensor are planned for Triton's interpreter: neither for its GPU, nor for one that is emulated."""
    from attn_optimized.device import architecture_of

    return architecture_of(tensor.device, torch.float32) == "interpreter"


def queries_per_tile(step: Step) -> int:
    """The number of queries of a tile in a batch-invariant call."""
    import attn_optimized

    return attn_optimized.plan_of(step.q, step.layer, step.batch, batch_invariant=True).tiles.queries


def launch_of(step: Step, architecture: str | None = None, compute_units: int | None = None) -> Hashable:
    """A key of the order of sums: tiles, splits, and the constants that the kernel is compiled for.

    Args:
        architecture, compute_units: those of a GPU; None: those of the step's device.
    """
    import attn_optimized

    plan = attn_optimized.plan_of(step.q, step.layer, step.batch, architecture=architecture, compute_units=compute_units)
    launches = launches_of(step, plan)
    # these numbers cut keys into parts, and have no effect if there is one part
    parts = (
        (
            *(plan.splits, plan.balanced_splits, plan.filling_splits, plan.work_shares),
            *(plan.min_tiles_per_split, plan.max_tiles),
            *_lengths_looked_at(step.batch),
        )
        if launches.reduction is not None
        else ()
    )
    constants = () if launches.attention is None else (*launches.attention.constants.values(),)
    return plan.tiles, plan.one_tile_per_request, parts, constants


def _lengths_looked_at(batch: Batch) -> list[tuple[int, int]]:
    """The lengths by which the kernel cuts keys into parts, where it looks at those of the first requests alone."""
    from attn_optimized.kernels.split_keys import MAX_LENGTHS

    most = MAX_LENGTHS.value
    lengths = zip(batch.query_start_loc.diff()[:most].tolist(), batch.seq_lens[:most].tolist(), strict=True)
    return sorted(lengths) if batch.num_requests > most else []


def launches_of(step: Step, plan: "AttentionPlan") -> "AttentionLaunches":
    from attn_optimized.attention import attention_launches
    from attn_optimized.launch.call import AttentionCall, DenseKeys, PagedKeys

    if step.kv_cache is not None:
        keys = PagedKeys(step.kv_cache)
    else:
        assert step.k is not None
        assert step.v is not None
        keys = DenseKeys(step.k, step.v)
    return attention_launches(plan, AttentionCall(step.q, keys, step.layer, step.batch, step.out, step.lse))

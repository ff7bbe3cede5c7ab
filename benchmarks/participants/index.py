"""Participants of a decode that chooses its keys: our kernels, vLLM's and AITER's index logits, and PyTorch's topk."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import attn_optimized
import attn_reference
import torch
from attn_contract import Batch, Indexer, IndexLayout, UnsupportedError
from attn_fuzz.targets.packages.aiter import mqa_logits as aiter_mqa_logits
from attn_fuzz.targets.packages.vllm import indexer as vllm_indexer

from benchmarks.participants.attention import AITER, OURS, VLLM, Prepared
from benchmarks.steps.cases import IndexOp

TOPK = "torch.topk"
Runs = Callable[[], list[Prepared]]


class Step(NamedTuple):
    """The tensors of a step whose requests have blocks of their own, in drawn order, and random numbers."""

    q: torch.Tensor
    weights: torch.Tensor
    index_cache: torch.Tensor
    layer: Indexer
    batch: Batch

    @property
    def lengths(self) -> list[int]:
        return self.batch.seq_lens.tolist()


def step_of(case: IndexOp, device: torch.device, seed: int) -> Step:
    size, lengths = case.head_size, case.seq_lens
    widths = [-(-length // case.block_size) for length in lengths]
    generator = torch.Generator(device=device).manual_seed(seed)
    drawn = functools.partial(torch.randn, generator=generator, device=device)
    order, table = torch.randperm(sum(widths), generator=generator, device=device).int(), []
    for blocks in order.split(widths):
        table.append(torch.nn.functional.pad(blocks, (0, max(widths) - len(blocks))))
    index_cache = torch.zeros(sum(widths), case.block_size, size + 4, dtype=torch.uint8, device=device)
    codes = index_cache.view(sum(widths), -1)[:, : case.block_size * size].view(torch.float8_e4m3fn)
    codes.copy_(drawn(codes.shape, dtype=torch.bfloat16).to(codes.dtype))
    scales = index_cache.view(sum(widths), -1)[:, case.block_size * size :].view(torch.float32)
    scales.copy_(drawn(scales.shape).abs() + 0.1)
    layer = Indexer(
        num_heads=case.num_heads, head_size=size, top_k=case.top_k, layout=IndexLayout.FLAT, cache_dtype=torch.float8_e4m3fn
    )
    batch = Batch(
        query_start_loc=torch.arange(len(lengths) + 1, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_table=torch.stack(table),
        max_query_len=1,
        max_seq_len=max(lengths),
        num_actual_tokens=len(lengths),
        causal=True,
    )
    q = drawn((len(lengths), case.num_heads, size)).to(torch.float8_e4m3fn)
    return Step(q, drawn((len(lengths), case.num_heads)), index_cache, layer, batch)


def index_op(case: IndexOp, steps: Sequence[Step]) -> tuple[Mapping[str, Runs], torch.Tensor]:
    """The calls of each participant, and the results for the first step, as one row of float64."""
    first = steps[0]
    logits = attn_reference.index_logits(first.q, first.weights, first.index_cache, first.layer, first.batch)
    if case.op == "logits":
        each = {OURS: _our_logits, VLLM: _vllm_logits, AITER: _aiter_logits}
        made = {name: functools.partial(_all, prepare, steps) for name, prepare in each.items()}
        return made, _visible(logits[0], first)
    chosen = _chosen(attn_reference.select(logits, first.layer, first.batch)[0], first)
    each = {name: functools.partial(prepare, chosen=chosen) for name, prepare in ((OURS, _our_selection), (TOPK, _topk))}
    return {name: functools.partial(_all, prepare, steps) for name, prepare in each.items()}, chosen


def _all(prepare: Callable[[Step], Prepared], steps: Sequence[Step]) -> list[Prepared]:
    return [prepare(step) for step in steps]


def _our_logits(step: Step) -> Prepared:
    run = functools.partial(attn_optimized.index_logits, step.q, step.weights, step.index_cache, step.layer, step.batch)
    return Prepared(run, lambda logits: _visible(logits[0], step))


def _vllm_logits(step: Step) -> Prepared:
    """vLLM's kernel for ROCm."""
    _refuse(VLLM, vllm_indexer.VLLM_PAGED_MQA_LOGITS.unavailable("cuda"))
    module, out = vllm_indexer.load(torch.float8_e4m3fn), _unwritten(step)
    workspace = SimpleNamespace(get_simultaneous=lambda *shapes: (out,))
    vars(module).update(current_workspace_manager=lambda: workspace, _decode_cu_count=lambda: _units(step))
    cache, q = step.index_cache.unsqueeze(2), step.q.unsqueeze(1)
    given = (q, cache, step.weights, step.batch.seq_lens, step.batch.block_table, step.batch.max_seq_len)
    return Prepared(functools.partial(module.rocm_fp8_paged_mqa_logits_triton, *given), lambda logits: _visible(logits, step))


def _aiter_logits(step: Step) -> Prepared:
    """AITER's kernel where it has no Gluon."""
    _refuse(AITER, aiter_mqa_logits.AITER_PAGED_MQA_LOGITS.unavailable("cuda"))
    out, cache, q = _unwritten(step), step.index_cache.unsqueeze(2), step.q.unsqueeze(1)
    given = (q, cache, step.weights, out, step.batch.seq_lens, step.batch.block_table, _units(step))
    return Prepared(functools.partial(aiter_mqa_logits.launch_paged, *given), lambda _: _visible(out, step))


def _our_selection(step: Step, *, chosen: torch.Tensor) -> Prepared:
    run = functools.partial(attn_optimized.select, _logits(step), step.layer, step.batch)
    return Prepared(run, lambda selected: _same(_chosen(selected[0], step), chosen))


def _topk(step: Step, *, chosen: torch.Tensor) -> Prepared:
    run = functools.partial(torch.topk, _logits(step)[0], min(step.layer.top_k, step.batch.max_seq_len), sorted=False)
    return Prepared(run, lambda found: _same(_chosen(found.indices, step), chosen))


def _logits(step: Step) -> torch.Tensor:
    """The reference's, in float32: our kernel and topk get the same."""
    return attn_reference.index_logits(step.q, step.weights, step.index_cache, step.layer, step.batch).float()


def _visible(logits: torch.Tensor, step: Step) -> torch.Tensor:
    """The logits [T, units] of the keys of all requests, as one row."""
    return torch.cat([logits[row, :length].double() for row, length in enumerate(step.lengths)])[None]


def _chosen(selected: torch.Tensor, step: Step) -> torch.Tensor:
    """1 for each key that its request selects, and 0 for the others, as one row; `selected` is [T, W], -1 of no key."""
    rows = []
    for row, length in enumerate(step.lengths):
        units = selected[row].long()
        rows.append(torch.zeros(length, dtype=torch.float64, device=units.device))
        rows[-1][units[(units >= 0) & (units < length)]] = 1
    return torch.cat(rows)[None]


def _same(got: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Not finite where another key is chosen: a choice is right or wrong."""
    return torch.where(got == chosen, got, torch.nan)


def _unwritten(step: Step) -> torch.Tensor:
    return step.weights.new_full((len(step.lengths), step.batch.max_seq_len), torch.nan)


def _units(step: Step) -> int:
    return torch.cuda.get_device_properties(step.q.device).multi_processor_count if step.q.is_cuda else 1


def _refuse(name: str, why: Any | None) -> None:
    if why is not None:
        raise UnsupportedError(name, "its index logits", str(why))

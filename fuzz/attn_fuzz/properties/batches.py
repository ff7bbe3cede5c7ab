"""The same requests in another batch."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attn_contract import Batch
from attn_contract.arguments import INT32_MAX
from attn_contract.rules import QUERIES, REQUESTS, ROWS
from attn_fuzz.cases import axes
from attn_fuzz.cases.tensors import GARBAGE_BLOCKS, Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import (
    CallTarget,
    Comparison,
    ErrorBound,
    Launch,
    Outputs,
    again,
    causal_flags,
    relation,
    request_rows,
    same_bits,
    variant,
)


@relation("repetition", says="The same call gives the same outputs.", rules=rules.ANY_ORDER)
def repetition(step: Step, call_target: CallTarget) -> str | None:
    return same_bits(Outputs.of(step), Outputs.of(again(step, call_target)))


@relation(
    "request order",
    says="Requests in another order give the same outputs.",
    rules=rules.ANY_ORDER,
    applies="two requests or more",
)
def request_order(
    step: Step, call_target: CallTarget, error: ErrorBound | None = None, launch: Launch | None = None
) -> str | None:
    if step.batch.num_requests < 2:
        return None
    owned = int(step.batch.query_start_loc[-1])
    order, unowned = list(reversed(range(step.batch.num_requests))), range(owned, len(step.q))
    changes, rows = _rearranged(step, order, unowned, step.batch.num_actual_tokens)
    return Comparison(step, error, launch).differs(variant(step, call_target, **changes), rows)


@relation("batch composition", says="A request gives the same output alone and in a larger batch.", rules=rules.ANY_ORDER)
def batch_composition(step: Step, call_target: CallTarget, error: ErrorBound | None = None) -> str | None:
    compare = Comparison(step, error)
    for r, (start, end) in enumerate(request_rows(step.batch)):
        if start < end and (message := compare.differs(_run(step, r, start, end, end, call_target), slice(start, end))):
            return f"request {r} alone: {message}"
    everyone = list(range(step.batch.num_requests))
    num_rows = int(step.batch.query_start_loc[-1])
    changes, rows = _rearranged(step, [*reversed(everyone), *everyone], (), 2 * num_rows)
    if num_rows and (message := compare.differs(variant(step, call_target, **changes), rows)):
        return f"in a batch with each request twice: {message}"
    return None


@relation(
    "neighbour's rules",
    says="A request gives the same output beside a request with a range and the other causal flag.",
    rules=rules.ANY_ORDER,
    adds=("bidirectional_ranges", "non_causal", "per_request_causal"),
    applies="steps with a query",
)
def neighbours_rules(step: Step, call_target: CallTarget, error: ErrorBound | None = None) -> str | None:
    """For targets that take ranges and a causal flag of each request."""
    lengths = [end - start for start, end in request_rows(step.batch)]
    if not any(lengths):
        return None
    neighbour = min((r for r, length in enumerate(lengths) if length), key=lengths.__getitem__)
    num_rows = int(step.batch.query_start_loc[-1])
    order = [*range(step.batch.num_requests), neighbour]
    changes, _ = _rearranged(step, order, (), num_rows + lengths[neighbour])
    own = _ranges(step.batch)
    changes["batch"] = dataclasses.replace(
        changes["batch"],
        causal=torch.tensor([*(flags := causal_flags(step.batch)), not flags[neighbour]], device=step.q.device),
        # one range over all of its keys
        bidirectional_ranges=torch.cat([own, own.new_tensor([0, INT32_MAX]).expand(1, *own.shape[1:])]),
    )
    return Comparison(step, error).differs(variant(step, call_target, **changes), part_rows=slice(num_rows))


def _ranges(batch: Batch) -> torch.Tensor:
    """[R, ranges, 2]: the ranges of the requests, at least one of each, which may be empty."""
    if batch.bidirectional_ranges is not None and batch.bidirectional_ranges.shape[1]:
        return batch.bidirectional_ranges
    return batch.seq_lens.new_tensor([0, -1]).repeat(batch.num_requests, 1, 1)


@relation(
    "chunked prefill",
    says="A causal request gives the same output in several steps as in one.",
    rules=rules.IN_STEPS,
    applies="causal requests longer than a chunk",
)
def chunked_prefill(
    step: Step, call_target: CallTarget, queries_per_chunk: Callable[[Step], int], error: ErrorBound | None = None
) -> str | None:
    """
    Args:
        queries_per_chunk: returns the size of a chunk for a step. A kernel that promises equal bits promises them for whole
            tiles of queries. Within a bound, a chunk should end inside a tile.
        error: bounds the error of the kernel; None if the kernel promises equal bits.
    """
    chunk, compare = queries_per_chunk(step), Comparison(step, error)
    for r, start, end in _causal_requests(step):
        for first in range(start, end, chunk) if end - start > chunk else ():
            last = min(first + chunk, end)
            if int(step.batch.seq_lens[r]) < end - last:
                continue  # these rows come before the sequence
            if message := compare.differs(_run(step, r, first, last, end, call_target), slice(first, last)):
                return f"rows {first} to {last - 1} of request {r} in a step of their own: {message}"
    return None


@relation(
    "padded batch",
    says="More rows that no request owns, a request without queries and looser upper bounds of lengths change nothing.",
    rules=rules.ANY_ORDER,
)
def padded_batch(step: Step, call_target: CallTarget, error: ErrorBound | None = None) -> str | None:
    batch, device = step.batch, step.q.device
    none = torch.zeros(1, dtype=torch.int32, device=device)
    more = {name: _with_zeros(Batch, name, tensor) for name, tensor in batch.tensors.items()}
    if batch.block_table is not None:
        more["block_table"][-1] = GARBAGE_BLOCKS[-1]
    more["query_start_loc"] = torch.cat([batch.query_start_loc, batch.query_start_loc[-1:] + none])
    padded = dataclasses.replace(
        batch,
        # a tensor like qq_bias has at least max_query_len rows: the bound cannot be looser then
        max_query_len=batch.max_query_len + (not axes.taken(batch, step.layer, {QUERIES: slice(None)})),
        max_seq_len=2 * batch.max_seq_len + 1,
        num_actual_tokens=len(step.q) + 1,
        **more,
    )
    changes = {"batch": padded, "q": _one_row_more(step.q)}
    if step.kv_cache is None and step.k is not None and step.v is not None:
        changes |= {"k": _one_row_more(step.k), "v": _one_row_more(step.v)}
    return Comparison(step, error).differs(variant(step, call_target, **changes))


def _one_row_more(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, rows.new_full((1, *rows.shape[1:]), torch.nan)])


def _with_zeros(holder: type[Batch], name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of a step with a request and a row of q more, which is 0 there."""
    for dim, axis in axes.dims(holder, name, tensor):
        if axis in (REQUESTS, ROWS):
            none = tensor.new_zeros([1 if at == dim else size for at, size in enumerate(tensor.shape)])
            tensor = torch.cat([tensor, none], dim)
    return tensor


def _causal_requests(step: Step) -> Iterator[tuple[int, int, int]]:
    flags = causal_flags(step.batch)
    for r, (start, end) in enumerate(request_rows(step.batch)):
        if flags[r]:
            yield r, start, end


def _rearranged(
    step: Step, order: list[int], unowned: Sequence[int], num_actual_tokens: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """The fields of a step with the requests in another order, and the row of the given step for each row of a request.

    Args:
        order: indices of requests. A request may come more than once.
        unowned: rows of the given step that follow, and that no request owns.
        num_actual_tokens: the new batch's number of tokens.
    """
    rows, device = request_rows(step.batch), step.q.device
    owned = [row for r in order for row in range(*rows[r])]
    lens = torch.tensor([0, *(rows[r][1] - rows[r][0] for r in order)], dtype=torch.int32)
    chosen = torch.tensor(order, dtype=torch.int64, device=device)
    moved = torch.tensor([*owned, *unowned], dtype=torch.int64, device=device)
    batch = dataclasses.replace(
        step.batch,
        query_start_loc=lens.cumsum(0, dtype=torch.int32).to(device),
        num_actual_tokens=num_actual_tokens,
        **axes.taken(step.batch, step.layer, {REQUESTS: chosen, ROWS: moved}),
    )
    changes: dict[str, Any] = {"batch": batch, "q": step.q[moved]}
    if step.kv_cache is None and step.k is not None and step.v is not None:
        changes |= {"k": step.k[moved], "v": step.v[moved]}
    return changes, moved[: len(owned)]


def _run(step: Step, r: int, first: int, last: int, end: int, call_target: CallTarget) -> Step:
    """Call the target on rows `first` to `last - 1` of request r, in a step of their own; the request's rows end at `end`.

    The step has only what the request needs: a block table of its blocks, its ranges if it has any, and its part of qq_bias.
    So it may be launched in another way.
    """
    batch, queries = step.batch, last - first
    seq_lens = batch.seq_lens[r : r + 1] - (end - last)
    num_keys = step.layer.num_keys(seq_lens)
    entries = {REQUESTS: slice(r, r + 1), ROWS: slice(first, last), QUERIES: slice(queries)}
    changed: dict[str, Any] = axes.taken(batch, step.layer, entries) | {"seq_lens": seq_lens}
    if batch.block_table is not None and step.view is not None:
        changed["block_table"] = changed["block_table"][:, : -(-int(num_keys) // step.view.block_size)]
    if batch.bidirectional_ranges is not None:
        ranges = batch.bidirectional_ranges[r]
        ranges = ranges[ranges[:, 0] <= ranges[:, 1]]
        changed["bidirectional_ranges"] = ranges[None] if len(ranges) else None
    if batch.selected is not None and step.layer.selection_unit is not None:
        own = changed["selected"]
        changed["selected"] = torch.where(own * step.layer.selection_unit < num_keys, own, -1)
    alone = dataclasses.replace(
        batch,
        query_start_loc=torch.tensor([0, queries], dtype=torch.int32, device=step.q.device),
        max_query_len=queries,
        max_seq_len=max(0, int(seq_lens)),
        num_actual_tokens=queries,
        slot_mapping=None,
        **{**changed, "causal": causal_flags(batch)[r]},
    )
    changes = {"batch": alone, "q": step.q[first:last]}
    if step.kv_cache is None and step.k is not None and step.v is not None:
        changes |= {"k": step.k[first:last], "v": step.v[first:last]}
    return variant(step, call_target, **changes)

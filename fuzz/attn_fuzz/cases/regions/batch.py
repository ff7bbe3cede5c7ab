"""Regions of the fields of Batch."""

from collections.abc import Callable, Iterator

import torch
from attn_contract import AttentionType
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.regions.region import (
    Predicate,
    Region,
    idle_stride,
    illegal,
    legal,
    not_drawn,
    of_request,
    of_tensor,
    refused_if_not_finite,
)


def _starts(holds: Callable[[list[int]], object]) -> Predicate:
    return lambda case, step: bool(holds([request.query_len for request in case.requests]))


BATCH: dict[str, tuple[Region, ...]] = {
    "query_start_loc": (
        *legal(
            no_request=_starts(lambda lens: not lens),
            one_request=_starts(lambda lens: len(lens) == 1),
            several_requests=_starts(lambda lens: len(lens) > 1),
            no_query_in_any_request=_starts(lambda lens: lens and not any(lens)),
            a_request_without_a_query=of_request(lambda r: r.query_len == 0),
            decode_beside_prefill=_starts(lambda lens: 1 in lens and max(lens) > 8),
        ),
        Region("more than 4 requests, which the interpreter looks at together", lambda case, step: len(case.requests) > 4),
        not_drawn("hundreds of requests", "targets on a GPU draw them, where kernels look at 256 together"),
        illegal("a first element other than 0, a fall", "`validation.check_lengths` refuses it"),
    ),
    "seq_lens": (
        *legal(
            _0=of_request(lambda r: r.seq_len == 0),
            less_than_the_queries=of_request(lambda r: 0 < r.seq_len < r.query_len),
            as_many_as_the_queries=of_request(lambda r: r.seq_len == r.query_len > 0),
            a_context=of_request(lambda r: r.context_len > 0 < r.query_len),
            beyond_several_tiles=of_request(lambda r: r.seq_len > 256),
        ),
        illegal("negative", "`validation.check_lengths` refuses it"),
    ),
    "max_query_len": legal(exact=lambda case, step: not case.slack, too_large=lambda case, step: case.slack),
    "max_seq_len": (
        *legal(exact=lambda case, step: not case.slack, too_large=lambda case, step: case.slack),
        illegal("too small", "`validation.check_lengths` refuses it, and so max_query_len"),
    ),
    "num_actual_tokens": legal(
        rows_of_requests_alone=lambda case, step: not case.unowned_rows,
        more_rows=lambda case, step: case.unowned_rows,
        less_than_the_rows_of_q=lambda case, step: case.rows_past,
    ),
    "causal": (
        *legal(
            true=lambda case, step: step.batch.causal is True,
            false=lambda case, step: step.batch.causal is False and case.attn_type is AttentionType.DECODER,
            flags_that_differ=of_tensor("causal", lambda flags: len(flags.unique()) == 2),
            flags_that_agree=of_tensor("causal", lambda flags: len(flags.unique()) == 1),
        ),
        illegal("true for another attention type", "the borders of attention refuse it"),
    ),
    "block_table": (
        Region("none", lambda case, step: step.batch.block_table is None),
        Region("shared blocks", lambda case, step: len(set(_blocks(case))) < len(_blocks(case))),
        Region("ids beyond 16 bits", lambda case, step: max(_blocks(case), default=0) >= 1 << 15),
        Region("unused columns", lambda case, step: step.view is not None and case.table_padding),
        Region("garbage in unused entries", of_tensor("block_table", lambda table: (table < 0).any())),
        Region("no column", of_tensor("block_table", lambda table: table.shape[1] == 0)),
        Region("rows longer than its columns", of_tensor("block_table", lambda table: table.stride(0) > table.shape[1])),
        idle_stride("block_table"),
        illegal("a used entry outside the cache", "`validation.values` refuses it"),
    ),
    "slot_mapping": (
        Region("none", lambda case, step: step.batch.slot_mapping is None),
        Region("-1", of_tensor("slot_mapping", lambda slots: (slots == -1).any())),
        Region("fewer slots than rows", lambda case, step: any(len(w.slot_mapping) < len(w.k) for w in step.writes)),
        Region("beyond 15 bits", of_tensor("slot_mapping", lambda slots: (slots >= 1 << 15).any())),
        not_drawn("beyond 31 bits", "a target's own: the blocks of `triton@far` lie so far apart"),
        illegal("a slot twice, or outside the cache", "`validation.values` refuses it: the order of writes is undefined"),
    ),
    "bidirectional_ranges": (
        Region("none", lambda case, step: step.batch.bidirectional_ranges is None),
        Region("over the context's end", of_request(lambda r: any(a < r.context_len <= b for a, b in r.bidirectional_ranges))),
        Region("overlapping", of_request(lambda r: _overlap(r.bidirectional_ranges))),
        Region("empty", of_request(lambda r: any(b < a for a, b in r.bidirectional_ranges))),
        Region("before the sequence", of_request(lambda r: any(a < 0 for a, b in r.bidirectional_ranges))),
        Region("past its end", of_request(lambda r: any(b >= r.seq_len for a, b in r.bidirectional_ranges))),
        Region("over a chunk's end, with a query behind it", lambda case, step: any(_behind_chunks(case))),
        Region("over a chunk's end, and clamped to some keys before it", lambda case, step: any(_clamped_before_chunks(case))),
    ),
    "qq_bias": (
        Region("none", lambda case, step: step.batch.qq_bias is None),
        Region("a tree", lambda case, step: case.qq_bias == "tree"),
        Region("numbers alone", lambda case, step: case.qq_bias == "random"),
        Region("-inf anywhere", lambda case, step: case.qq_bias == "hiding"),
        Region("no tree, in a step of one query", lambda case, step: case.qq_bias in ("random", "hiding") and _decodes(case)),
        Region(
            "a query that does not see its own key", of_tensor("qq_bias", lambda bias: (bias.diagonal() == -torch.inf).any())
        ),
        Region("larger than max_query_len", of_tensor("qq_bias", lambda bias: True)),
        idle_stride("qq_bias"),
        refused_if_not_finite(name="a bias"),
    ),
}


def _blocks(case: Case) -> list[int]:
    return [block for request in case.requests for block in request.blocks]


def _overlap(ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(a < c <= b < d for a, b in ranges for c, d in ranges)


def _behind_chunks(case: Case) -> Iterator[tuple[int, int, int]]:
    """Ranges that hold keys of a chunk before that of one of their queries: first key, end of that chunk, such a query."""
    chunk = case.chunked_local
    if chunk is None:
        return
    for request in case.requests:
        for first, last in request.bidirectional_ranges:
            first, last = max(0, first), min(last, request.seq_len - 1)
            for query in range(max(first, request.context_len), last + 1):
                end = query // chunk * chunk
                if first < end:
                    yield first, end, query


def _clamped_before_chunks(case: Case) -> Iterator[int]:
    """Of these ranges: the first key that the window leaves the query, where it lies between first key and end."""
    left = case.window[0] if case.ranges_clamped else -1
    return (query - left for first, end, query in _behind_chunks(case) if left >= 0 and first < query - left < end)


def _decodes(case: Case) -> bool:
    return bool(case.requests) and all(request.query_len <= 1 for request in case.requests) and case.query_start_loc[-1] > 0

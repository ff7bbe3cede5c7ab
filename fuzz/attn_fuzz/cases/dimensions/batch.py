"""Dimensions of a step: its kind of attention, the lengths of its requests, and where their keys are."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from attn_contract import AttentionType
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Holds,
    Value,
    any_reads_cache,
    aspect,
    feature,
    has,
    idle_stride,
    illegal,
    not_drawn,
    of_cache,
    of_request,
    region,
    setting,
    step_region,
    tensor_regions,
)

MULTI_TOKEN_DECODE = 8
"""The most query tokens of a request that is decoding, drafts included. A request with more is in its prompt."""
DECODER, ENCODER, ENCODER_ONLY, CROSS = AttentionType


def _is_causal(*flags: bool) -> Holds:
    return lambda case: case.attn_type is DECODER and {request.causal for request in case.requests} == set(flags)


def _causality(name: str, holds: Holds, kind: Any, words: str = "", **asks: Callable[[Any], object]) -> Value:
    own = setting(words, causality=kind, scopes="every" if words else "none")
    return feature(name, holds, own, attn_types=has(DECODER), **asks)


def _attention(name: str, attn_type: AttentionType, **others: dict[str, Any]) -> Value:
    """An attention type, with settings that have more fields, by their words."""
    more = [setting(f"{name} {words.replace('_', ' ')}", attn_type=attn_type, **fields) for words, fields in others.items()]
    own = setting(name, attn_type=attn_type)
    return feature(name, lambda case: case.attn_type is attn_type, own, *more, attn_types=has(attn_type))


CAUSALITY = Dimension(
    name="causality",
    group="attention",
    fields=("requests.causal", "per_request_causal"),
    contract=("Batch.causal", "call: non_causal", "call: per_request_causal"),
    values=(
        _causality("decoder, causal", _is_causal(True), "causal", causal=bool),
        _causality("decoder, non-causal", _is_causal(False), "non-causal", "non-causal", rules=has("non_causal")),
        _causality(
            "decoder, causal per request",
            _is_causal(True, False),
            "per request",
            "causal per request",
            causal=bool,
            rules=lambda rules: {"non_causal", "per_request_causal"} <= {*rules},
        ),
        step_region("true", lambda case, step: step.batch.causal is True),
        *tensor_regions("causal", {"flags that agree": lambda flags: len(flags.unique()) == 1}),
        illegal("true for another attention type", "the borders of attention refuse it"),
    ),
)
ATTN_TYPE = Dimension(
    name="attn_type",
    group="attention",
    fields=("attn_type",),
    contract=("Layer.attn_type",),
    values=(
        region("decoder", lambda case: case.attn_type is DECODER),
        _attention(
            "encoder",
            ENCODER,
            whose_v_has_strides_of_its_own={"unlike_strides": True},
            whose_v_is_narrower={"head_size": 32, "head_size_v": 16},
        ),
        _attention("encoder-only", ENCODER_ONLY),
        _attention("cross-attention", CROSS),
    ),
)


def _phase(name: str, holds: Holds, *lengths: tuple[int, int], **asks: Callable[[Any], object]) -> Value:
    return feature(name, holds, *(setting(lengths=each, scopes="none") for each in lengths), **asks)


def _query_lens(holds: Callable[[list[int]], object]) -> Holds:
    return lambda case: holds([request.query_len for request in case.requests])


_OF_CONTEXTS = {"attn_types": any_reads_cache, "contexts": bool}
PHASE = Dimension(
    name="phase",
    group="phase",
    fields=("requests.query_len", "requests.seq_len"),
    contract=("Batch.query_start_loc", "Batch.seq_lens"),
    left_out="parts of a scope name the lengths of requests",
    values=(
        _phase("prefill", of_request(lambda r: r.query_len > 1 and r.context_len == 0), (3, 3), prompts=bool),
        _phase("extend", of_request(lambda r: r.query_len > MULTI_TOKEN_DECODE and r.context_len > 0), (9, 10), **_OF_CONTEXTS),
        _phase("decode", of_request(lambda r: r.query_len == 1 and r.context_len > 0), (1, 3), **_OF_CONTEXTS),
        _phase(
            "multi-token decode",
            of_request(lambda r: 1 < r.query_len <= MULTI_TOKEN_DECODE and r.context_len > 0),
            (8, 10),
            **_OF_CONTEXTS,
        ),
        _phase(
            "more queries than keys",
            of_request(lambda r: r.context_len < 0),
            (4, 3),
            attn_types=any_reads_cache,
            more_queries_than_keys=bool,
        ),
        _phase("request without a query", of_request(lambda r: r.query_len == 0), (0, 3), (0, 0), empty_requests=bool),
        aspect("request without a key", of_request(lambda r: not r.seq_len)),
        aspect("several requests", lambda case: len(case.requests) > 1),
        region("no request", lambda case: not case.requests),
        region("one request", lambda case: len(case.requests) == 1),
        region("more than 4 requests, which the interpreter looks at together", lambda case: len(case.requests) > 4),
        region("no query in any request", _query_lens(lambda lens: lens and not any(lens))),
        region("decode beside prefill", _query_lens(lambda lens: 1 in lens and max(lens) > MULTI_TOKEN_DECODE)),
        region("fewer keys than queries, and not none", of_request(lambda r: 0 < r.seq_len < r.query_len)),
        region("as many keys as queries", of_request(lambda r: r.seq_len == r.query_len > 0)),
        region("queries behind a context", of_request(lambda r: r.context_len > 0 < r.query_len)),
        region("keys of several tiles", of_request(lambda r: r.seq_len > 256)),
        not_drawn("hundreds of requests", "targets on a GPU draw them, where kernels look at 256 together"),
        illegal("a first element of query_start_loc other than 0, a fall", "`validation.check_lengths` refuses it"),
        illegal("a negative length", "`validation.check_lengths` refuses it"),
    ),
)
BOUNDS = Dimension(
    name="bounds",
    group="form",
    fields=("slack", "table_padding"),
    contract=("Batch.max_query_len", "Batch.max_seq_len"),
    choice="form",
    values=(
        aspect(
            "loose bounds of lengths",
            lambda case: case.slack > 0,
            setting("padded table and loose bounds", table_padding=1, slack=1),
        ),
        region("exact", lambda case: not case.slack),
        illegal("too small", "`validation.check_lengths` refuses it"),
    ),
)
ROWS = Dimension(
    name="rows",
    group="form",
    fields=("unowned_rows", "rows_past", "kv_rows_past"),
    contract=("Batch.num_actual_tokens",),
    choice="form",
    values=(
        aspect(
            "rows of padding",
            lambda case: case.unowned_rows > 0,
            # with a finite number in block 0, since a padded row that is written there is NaN
            setting("padded rows", unowned_rows=1, rows_past=1, kv_rows_past=1, finite_slots=True),
        ),
        aspect("rows past the step's", lambda case: case.rows_past > 0 or case.kv_rows_past > 0),
        region("rows of requests alone", lambda case: not case.unowned_rows),
        region("fewer than the rows of q", lambda case: case.rows_past),
    ),
)


def _blocks(case: Case) -> list[int]:
    return [block for request in case.requests for block in request.blocks]


def _has_full_blocks(case: Case) -> bool:
    return case.cache is not None and any(request.seq_len >= case.cache.block_size for request in case.requests)


BLOCKS = Dimension(
    name="blocks",
    group="memory",
    fields=("requests.blocks", "cache.num_blocks"),
    contract=("Batch.block_table", "KVCacheView.num_blocks"),
    left_out="parts of a scope have each block table, up to symmetries",
    values=(
        aspect("shared blocks", lambda case: max(Counter(_blocks(case)).values(), default=0) > 1),
        aspect("several blocks", of_request(lambda r: len(r.blocks) > 1)),
        aspect(
            "a full block", lambda case: any(of_cache(lambda c, r=r: r.seq_len >= c.block_size)(case) for r in case.requests)
        ),
        aspect("unused columns of the block table", lambda case: case.table_padding > 0),
        step_region("no block table", lambda case, step: step.batch.block_table is None),
        region("ids beyond 16 bits", lambda case: max(_blocks(case), default=0) >= 1 << 15),
        *tensor_regions(
            "block_table",
            {
                "garbage in unused entries": lambda table: (table < 0).any(),
                "no column": lambda table: table.shape[1] == 0,
                "rows longer than its columns": lambda table: table.stride(0) > table.shape[1],
            },
        ),
        idle_stride("block_table"),
        region("1 block", of_cache(lambda cache: cache.num_blocks == 1)),
        region("2 blocks", of_cache(lambda cache: cache.num_blocks == 2)),
        not_drawn("0 blocks", "an empty cache holds no key; tests/contract has its borders"),
        illegal("a used entry outside the cache", "`validation.values` refuses it"),
    ),
)

"""Dimensions of a step: its kind of attention, the lengths of its requests, and where their keys are."""

from collections import Counter
from collections.abc import Callable

from attn_contract import AttentionType
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions.dimension import (
    Asks,
    Holds,
    Setting,
    Value,
    any_reads_cache,
    aspect,
    dimension,
    equals,
    feature,
    has,
    idle_stride,
    illegal,
    in_step,
    not_drawn,
    of_cache,
    of_request,
    of_tensor,
    region,
    setting,
)

MULTI_TOKEN_DECODE = 8
"""The most query tokens of a request that is decoding, drafts included. A request with more is in its prompt."""
DECODER, ENCODER, ENCODER_ONLY, CROSS = AttentionType


def _causal(name: str, flags: set[bool], own: Setting, **asks: Asks) -> Value:
    """A feature of decoders: the causal flags of their requests."""

    def holds(case: Case) -> bool:
        return case.attn_type is DECODER and {request.causal for request in case.requests} == flags

    return feature(name, holds, own, attn_types=has(DECODER), **asks)


def _mixes(rules: tuple[str, ...]) -> bool:
    return {"non_causal", "per_request_causal"} <= {*rules}


# whose v has strides of its own, and whose v is narrower
_ENCODERS = (setting(attn_type=ENCODER, unlike_strides=True), setting(attn_type=ENCODER, head_size=32, head_size_v=16))
_FLAGS = "Batch.causal call.non_causal call.per_request_causal"
ATTENTION = (
    dimension("causality", "attention", "requests.causal per_request_causal", _FLAGS)(
        _causal("decoder, causal", {True}, setting(causality="causal", scopes="none"), causal=bool),
        _causal("decoder, non-causal", {False}, setting(causality="non-causal"), rules=has("non_causal")),
        _causal("decoder, causal per request", {True, False}, setting(causality="per request"), causal=bool, rules=_mixes),
        in_step("true", lambda case, step: step.batch.causal is True),
        of_tensor("causal", "flags that agree", lambda flags: len(flags.unique()) == 1),
        illegal("true for another attention type", "the argument checks of attention refuse it"),
    ),
    dimension("attn_type", "attention", fields="attn_type", contract="Layer.attn_type")(
        equals("encoder", "attn_type", ENCODER, *_ENCODERS, attn_types=has(ENCODER)),
        equals("encoder-only", "attn_type", ENCODER_ONLY, attn_types=has(ENCODER_ONLY)),
        equals("cross-attention", "attn_type", CROSS, attn_types=has(CROSS)),
    ),
)


def _phase(name: str, holds: Holds, *lengths: tuple[int, int], **asks: Asks) -> Value:
    return feature(name, holds, *(setting(lengths=(each,), scopes="none") for each in lengths), **asks)


_is_prefill = of_request(lambda r: r.query_len > 1 and r.context_len == 0)
_is_extend = of_request(lambda r: r.query_len > MULTI_TOKEN_DECODE and r.context_len > 0)
_lacks_keys = of_request(lambda r: r.context_len < 0)
_has_no_query = of_request(lambda r: r.query_len == 0)


def _query_lens(name: str, holds: Callable[[list[int]], object]) -> Value:
    return region(name, lambda case: holds([request.query_len for request in case.requests]))


def _in_context(most: int, least: int = 1) -> Holds:
    return of_request(lambda r: least <= r.query_len <= most and r.context_len > 0)


_CONTEXTS: dict[str, Asks] = {"attn_types": any_reads_cache, "contexts": bool}
_FEWER_KEYS: dict[str, Asks] = {"attn_types": any_reads_cache, "fewer_keys": bool}
_SEVERAL: dict[str, Asks] = {"several_queries": bool}


def _blocks(case: Case) -> list[int]:
    return [block for request in case.requests for block in request.blocks]


def _has_full_blocks(case: Case) -> bool:
    return case.cache is not None and any(case.num_keys(request) >= case.cache.block_size for request in case.requests)


_LENGTHS = "parts of a scope name the lengths of requests"
_TABLES = "parts of a scope have each block table, up to symmetries"
# with a finite number in block 0, since a padded row that is written there is NaN
_PADDED_ROWS = setting(unowned_rows=1, rows_past=1, kv_rows_past=1, finite_slots=True)
REQUESTS = (
    dimension(
        "phase", "phase", "requests.query_len requests.seq_len", "Batch.query_start_loc Batch.seq_lens", left_out=_LENGTHS
    )(
        _phase("prefill", _is_prefill, (3, 3), (8, 8), (9, 9), prompts=bool, **_SEVERAL),
        _phase("extend", _is_extend, (9, 10), **_CONTEXTS, **_SEVERAL),
        _phase("decode", _in_context(1), (1, 3), **_CONTEXTS),
        _phase("multi-token decode", _in_context(MULTI_TOKEN_DECODE, 2), (8, 10), **_CONTEXTS, **_SEVERAL),
        _phase("more queries than keys", _lacks_keys, (4, 3), (8, 3), (9, 3), (1, 0), **_FEWER_KEYS),
        _phase("request without a query", _has_no_query, (0, 3), (0, 0), idle_requests=bool),
        aspect("request without a key", of_request(lambda r: not r.seq_len)),
        aspect("several requests", lambda case: len(case.requests) > 1),
        region("no request", lambda case: not case.requests),
        region("more than 4 requests, which the interpreter looks at together", lambda case: len(case.requests) > 4),
        _query_lens("no query in any request", lambda lens: lens and not any(lens)),
        _query_lens("decode beside prefill", lambda lens: 1 in lens and max(lens) > MULTI_TOKEN_DECODE),
        region("fewer keys than queries, and not none", of_request(lambda r: 0 < r.seq_len < r.query_len)),
        region("as many keys as queries", of_request(lambda r: r.seq_len == r.query_len > 0)),
        region("keys of several tiles", of_request(lambda r: r.seq_len > 256)),
        not_drawn("hundreds of requests", "targets on a GPU draw them, where kernels look at 256 together"),
        illegal("a query_start_loc that falls or does not begin at 0", "`validation.check_lengths` refuses it"),
        illegal("a negative length", "`validation.check_lengths` refuses it"),
    ),
    dimension("bounds", "form", "slack table_padding", "Batch.max_query_len Batch.max_seq_len", choice="form")(
        aspect("loose bounds of lengths", lambda case: case.slack > 0, setting(table_padding=1, slack=1)),
        illegal("too small", "`validation.check_lengths` refuses it"),
    ),
    dimension("rows", "form", "unowned_rows rows_past kv_rows_past", "Batch.num_actual_tokens", choice="form")(
        aspect("rows of padding", lambda case: case.unowned_rows > 0, _PADDED_ROWS),
        aspect("rows past the step's", lambda case: case.rows_past > 0 or case.kv_rows_past > 0),
        region("fewer than the rows of q", lambda case: case.rows_past),
    ),
    dimension(
        "blocks", "memory", "requests.blocks cache.num_blocks", "Batch.block_table KVCacheView.num_blocks", left_out=_TABLES
    )(
        aspect("shared blocks", lambda case: max(Counter(_blocks(case)).values(), default=0) > 1),
        aspect("several blocks", of_request(lambda r: len(r.blocks) > 1)),
        aspect("a full block", _has_full_blocks),
        aspect("unused columns of the block table", lambda case: case.table_padding > 0),
        region("ids beyond 16 bits", lambda case: max(_blocks(case), default=0) >= 1 << 15),
        region("1 block", of_cache(lambda cache: cache.num_blocks == 1)),
        region("2 blocks", of_cache(lambda cache: cache.num_blocks == 2)),
        of_tensor("block_table", "garbage in unused entries", lambda table: (table < 0).any()),
        of_tensor("block_table", "no column", lambda table: table.shape[1] == 0),
        of_tensor("block_table", "rows longer than its columns", lambda table: table.stride(0) > table.shape[1]),
        idle_stride("block_table"),
        not_drawn("0 blocks", "an empty cache holds no key; tests/contract has its argument checks"),
        illegal("a used entry outside the cache", "`validation.values` refuses it"),
    ),
)

"""Dimensions of a step: its kind of attention, the lengths of its requests, and where their keys are."""

from collections import Counter

from attn_contract import AttentionType
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions.dimension import (
    Asks,
    Holds,
    Value,
    any_reads_cache,
    aspect,
    dimension,
    equals,
    feature,
    has,
    of_request,
)

MULTI_TOKEN_DECODE = 8
"""The most query tokens of a request that is decoding, drafts included. A request with more is in its prompt."""
DECODER, ENCODER, ENCODER_ONLY, CROSS = AttentionType


def _causal(name: str, flags: set[bool], **asks: Asks) -> Value:
    """A feature of decoders: the causal flags of their requests."""

    def holds(case: Case) -> bool:
        return case.attn_type is DECODER and {request.causal for request in case.requests} == flags

    return feature(name, holds, attn_types=has(DECODER), **asks)


def _mixes(rules: tuple[str, ...]) -> bool:
    return {"non_causal", "per_request_causal"} <= {*rules}


ATTENTION = (
    dimension("causality", "attention", "requests.causal per_request_causal")(
        _causal("decoder, causal", {True}, causal=bool),
        _causal("decoder, non-causal", {False}, rules=has("non_causal")),
        _causal("decoder, causal per request", {True, False}, causal=bool, rules=_mixes),
    ),
    dimension("attn_type", "attention", "attn_type", of_layers=True)(
        equals("encoder", "attn_type", ENCODER, attn_types=has(ENCODER)),
        equals("encoder-only", "attn_type", ENCODER_ONLY, attn_types=has(ENCODER_ONLY)),
        equals("cross-attention", "attn_type", CROSS, attn_types=has(CROSS)),
    ),
)


_is_prefill = of_request(lambda r: r.query_len > 1 and r.context_len == 0)
_is_extend = of_request(lambda r: r.query_len > MULTI_TOKEN_DECODE and r.context_len > 0)
_lacks_keys = of_request(lambda r: r.context_len < 0)
_has_no_query = of_request(lambda r: r.query_len == 0)


def _in_context(most: int, least: int = 1) -> Holds:
    return of_request(lambda r: least <= r.query_len <= most and r.context_len > 0)


_CONTEXTS: dict[str, Asks] = {"attn_types": any_reads_cache, "contexts": bool}
_FEWER_KEYS: dict[str, Asks] = {"attn_types": any_reads_cache, "fewer_keys": bool}
_SEVERAL: dict[str, Asks] = {"several_queries": bool}


def _blocks(case: Case) -> list[int]:
    return [block for request in case.requests for block in request.blocks]


def _has_full_blocks(case: Case) -> bool:
    return case.cache is not None and any(case.num_keys(request) >= case.cache.block_size for request in case.requests)


REQUESTS = (
    dimension("phase", "phase", "requests.query_len requests.seq_len")(
        feature("prefill", _is_prefill, prompts=bool, **_SEVERAL),
        feature("extend", _is_extend, **_CONTEXTS, **_SEVERAL),
        feature("decode", _in_context(1), **_CONTEXTS),
        feature("multi-token decode", _in_context(MULTI_TOKEN_DECODE, 2), **_CONTEXTS, **_SEVERAL),
        feature("more queries than keys", _lacks_keys, **_FEWER_KEYS),
        feature("request without a query", _has_no_query, idle_requests=bool),
        aspect("request without a key", of_request(lambda r: not r.seq_len)),
        aspect("several requests", lambda case: len(case.requests) > 1),
    ),
    dimension("bounds", "form", "slack table_padding")(
        aspect("loose bounds of lengths", lambda case: case.slack > 0),
    ),
    dimension("rows", "form", "unowned_rows rows_past kv_rows_past")(
        aspect("rows of padding", lambda case: case.unowned_rows > 0),
        aspect("rows past the step's", lambda case: case.rows_past > 0 or case.kv_rows_past > 0),
    ),
    dimension("blocks", "memory", "requests.blocks cache.num_blocks")(
        aspect("shared blocks", lambda case: max(Counter(_blocks(case)).values(), default=0) > 1),
        aspect("several blocks", of_request(lambda r: len(r.blocks) > 1)),
        aspect("a full block", _has_full_blocks),
        aspect("unused columns of the block table", lambda case: case.table_padding > 0),
    ),
)

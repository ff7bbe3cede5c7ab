"""Requests of a ragged batch: lengths around every edge that a kernel has."""

from collections.abc import Sequence

import msgspec
from attn_contract import RULES, AttentionType
from attn_contract.arguments import INT32_MAX
from attn_fuzz.cases.case import Request
from attn_fuzz.strategies.choices import pick
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st

MAX_REQUESTS = 8
ONE_IN = 40
"""One drawn step in this many is a single long request. A run prefers steps that it lacks, and takes twice as many of these."""
ONE_IN_FEW, ONE_IN_FAR = 4, 3
"""One drawn step in this many is of one or two of the longest requests. ONE_IN_FAR applies if the window reaches far back, or
if queries select keys."""
ONE_IN_CHUNKS = 2
"""If chunks are longer than tiles, one drawn step in this many has queries across a chunk's end."""
ONE_IN_DRAFTS = 4
"""With drafts, one drawn step in this many has more of them than a tile, and no context."""
DECODE, FEW = (1, 1, 1, 0), (1, 2, 3, 4, 5, 8, 9)


def query_lens(draw: st.DrawFn, support: Support, rules: set[str]) -> tuple[Sequence[int], ...]:
    """A kind of step that an engine makes: the query lengths that its requests choose from, in one or more groups.

    Decode has 1 query (or 0, as graph padding), speculative decode a few, and prefill and extend lengths around a tile's end.
    Some batches mix them.

    - With drafts (qq_bias), a few queries are drawn most often, or one: a bias of one draft has strides that say nothing.
    - With ranges, lengths beyond a tile are drawn more often: a range may end a tile later than it begins. Decodes split
      their keys, and with ranges a kernel may not leave out the parts that a window hides.
    - With chunks, single queries are drawn less often: chunks are easily miscounted before the sequence begins. So they are
      where tokens share a key, or are selected as a unit: one may end between two queries.
    """
    tiles = tile_lengths(support)
    kinds = {"decode": (DECODE,), "few": (FEW,), "tiles": (tiles,), "mixed": (DECODE, FEW, tiles)}
    if "qq_bias" in rules:
        return kinds[pick(draw, ("few", "few", "decode", "decode", "mixed", "tiles"))]
    if "bidirectional_ranges" in rules:
        several = [n for n in tiles if n > max(support.tile_sizes)] or [support.max_tokens]
        return {**kinds, "several": (several,)}[pick(draw, ("few", "decode", "mixed", "tiles", "several", "several"))]
    if not {"key_unit", "selection_unit"}.isdisjoint(rules):
        return kinds[pick(draw, ("few", "few", "mixed", "tiles", "decode"))]
    if "chunked_local" in rules:
        return kinds[pick(draw, ("few", "decode", "mixed", "tiles"))]
    return kinds[pick(draw, ("decode", "few", "decode", "mixed", "tiles"))]


def tile_lengths(support: Support) -> list[int]:
    """Query lengths around the end of a tile, or of two; the most that a batch may have where these are too many."""
    around = sorted({tile * k + more for tile in support.tile_sizes for k in (1, 2) for more in (-1, 0, 1)})
    return [n for n in around if 0 < n <= support.max_tokens] or [support.max_tokens]


def length(draw: st.DrawFn, support: Support, block_size: int) -> int:
    """0, short, around a block's or a tile's end, and now and then long."""
    kind = pick(draw, ("small", "edge", "edge", "any"))
    if kind == "small":
        return pick(draw, (0, 1, 2, 5))
    if kind == "any":
        return pick(draw, range(support.max_seq_len + 1))
    around = {size * k + more for size in (block_size, *support.tile_sizes) for k in (1, 2, 3) for more in (-1, 0, 1)}
    return pick(draw, sorted(n for n in around if 0 <= n <= support.max_seq_len // 2) or (0,))


@st.composite
def batches(
    draw: st.DrawFn,
    support: Support,
    attn_type: AttentionType,
    block_size: int,
    rules: set[str],
    window_left: int,
    chunk: int,
    key_unit: int,
) -> tuple[Request, ...]:
    """Up to 8 requests without blocks, within the support's limits on tokens and keys; now and then many, or a single long one.

    Kernels split keys if a step has little work: sometimes one or two of the longest requests decode. They are drawn more often
    for a window that reaches back beyond a tile, and for queries that select keys. They may have ranges, with which kernels do
    not leave out the parts before the window. If chunks are longer than a tile (0: there are no chunks), one request is drawn
    equally often with queries across a chunk's end: some of them see all keys of a tile that is hidden from their neighbours.
    With drafts (qq_bias), one request now and then has more of them than a tile, and no context: among keys that all queries of
    a tile may see are some that the bias hides.
    If key_unit tokens share a key, requests have the usual numbers of keys, and key_unit times the tokens.
    """
    is_decoder = attn_type is AttentionType.DECODER
    flags = _causal_flags(support, rules)
    per_request = is_decoder and "per_request_causal" in allowed(support, rules) and pick(draw, (False, True))
    causal = is_decoder and pick(draw, flags)
    if attn_type.reads_cache and support.long_seq_len is not None and pick(draw, range(ONE_IN)) == ONE_IN - 1:
        return (Request(query_len=1, seq_len=support.long_seq_len * key_unit - pick(draw, (0, 1, 37)), causal=causal),)
    is_far = window_left > max(support.tile_sizes) + 1 or "selection_unit" in rules
    one_in = ONE_IN_FAR if is_far else ONE_IN_FEW
    if attn_type.reads_cache and support.engine.contexts and pick(draw, range(one_in)) == one_in - 1:
        few = _few_requests(draw, support, causal, key_unit)
        return tuple(_with_ranges(draw, support, block_size, rules, window_left, chunk, request) for request in few)
    is_long = is_decoder and support.engine.contexts and chunk > max(support.tile_sizes) + 1
    if is_long and support.engine.several_queries and pick(draw, range(ONE_IN_CHUNKS)) == ONE_IN_CHUNKS - 1:
        request = _over_an_end(draw, support, chunk, causal)
        return (_with_ranges(draw, support, block_size, rules, window_left, chunk, request),)
    if is_decoder and "qq_bias" in rules and support.engine.several_queries and support.engine.prompts:
        several = [n for n in tile_lengths(support) if n > max(support.tile_sizes)]
        if several and pick(draw, range(ONE_IN_DRAFTS)) == ONE_IN_DRAFTS - 1:
            query_len = pick(draw, several)
            return (Request(query_len=query_len, seq_len=query_len, causal=causal),)
    if attn_type is AttentionType.DECODER and support.many_requests is not None and pick(draw, range(ONE_IN)) == ONE_IN - 1:
        return _many_requests(draw, support.many_requests, causal, key_unit)
    groups = query_lens(draw, support, rules)
    match pick(draw, support.engine.query_lens):
        case "equal":
            groups = ((max(pick(draw, pick(draw, groups)), int(not support.engine.empty_batches)),),)
        case "one":
            groups = ((1,),)
    requests: list[Request] = []
    tokens = keys = 0
    for _ in range(_num_requests(draw, support, is_decoder and False not in flags)):
        query_len, seq_len = _lengths(draw, support, groups, attn_type, block_size, "chunked_local" in rules, key_unit)
        tokens, keys = tokens + query_len, keys + seq_len // key_unit
        if requests and (tokens > support.max_tokens or keys > 2 * support.max_seq_len):
            break
        flag = pick(draw, flags) if per_request else causal
        request = Request(query_len=query_len, seq_len=seq_len, causal=flag)
        requests.append(_with_ranges(draw, support, block_size, rules, window_left, chunk, request))
    if not support.engine.empty_batches and not any(request.query_len for request in requests):
        requests[0] = msgspec.structs.replace(requests[0], query_len=1, seq_len=max(1, requests[0].seq_len))
    return tuple(requests)


def _over_an_end(draw: st.DrawFn, support: Support, chunk: int, causal: bool) -> Request:
    """A request with the step's number of queries, across the end of a chunk: the last end that leaves room for them, if one
    does."""
    end = max(1, (support.max_seq_len - support.max_tokens) // chunk) * chunk
    context_len = max(0, end - pick(draw, (1, 37)))
    seq_len = min(context_len + support.max_tokens, support.max_seq_len)
    return Request(query_len=min(support.max_tokens, seq_len), seq_len=seq_len, causal=causal)


def _few_requests(draw: st.DrawFn, support: Support, causal: bool, key_unit: int) -> list[Request]:
    """One or two requests that decode: of as many keys as a step has, or of 5/8 of them, which are split into uneven parts."""
    shorter = (0, 1, 37, support.max_seq_len * 3 // 8)
    lengths = [support.max_seq_len - pick(draw, shorter) for _ in range(min(pick(draw, (1, 2)), support.max_tokens))]
    return [Request(query_len=1, seq_len=max(length, 1) * key_unit, causal=causal) for length in lengths]


def _many_requests(draw: st.DrawFn, count: int, causal: bool, key_unit: int) -> tuple[Request, ...]:
    """More requests than a kernel looks at together. They have few keys, and most of them decode."""
    least, every = pick(draw, (1, 15, 40)), pick(draw, (2, 7, count))
    lengths = ((least + r % 3) * key_unit - r % key_unit for r in range(count))
    return tuple(Request(query_len=int(r % every != 1), seq_len=length, causal=causal) for r, length in enumerate(lengths))


def _causal_flags(support: Support, rules: set[str]) -> list[bool]:
    """The causal flags that requests of a decoder may have. Where queries select keys, most are causal, as in models."""
    engine = support.engine
    may_mix = {"alibi_slopes": engine.mixed_alibi, "bidirectional_ranges": engine.mixed_ranges}
    may_be_non_causal = "non_causal" in allowed(support, rules) and all(can for rule, can in may_mix.items() if rule in rules)
    weight = 3 if "selection_unit" in rules else 1
    return ([True] * weight if support.causal else []) + ([False] if may_be_non_causal else [])


def allowed(support: Support, rules: set[str]) -> set[str]:
    """Rules of a support that none of a layer's rules excludes."""
    return {*support.rules}.difference(*(RULES[rule].excludes for rule in rules & RULES.keys()))


def _num_requests(draw: st.DrawFn, support: Support, must_be_causal: bool) -> int:
    """1 to 8; now and then none. A step without a request is a non-causal one: no flag says otherwise."""
    if support.engine.empty_batches and not must_be_causal and pick(draw, range(40)) == 39:
        return 0
    return pick(draw, range(1, MAX_REQUESTS + 1))


def _lengths(
    draw: st.DrawFn,
    support: Support,
    groups: tuple[Sequence[int], ...],
    attn_type: AttentionType,
    block_size: int,
    chunks: bool,
    key_unit: int,
) -> tuple[int, int]:
    """query_len and seq_len of a request.

    In self-attention either the context or the whole sequence ends at an edge. A sequence that is shorter than its queries is
    odd and allowed: some queries see nothing, and stand before position 0, where chunks are easily miscounted. Where tokens
    share a key, the edge is one of whole keys, or a token beside it.
    """
    engine = support.engine
    query_len = pick(draw, pick(draw, groups))
    if not engine.empty_requests:
        query_len = max(1, query_len)
    if attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY):
        return query_len, query_len
    if attn_type is AttentionType.DECODER and not engine.contexts:
        return query_len, query_len
    seq_len = length(draw, support, block_size)
    if key_unit > 1:
        seq_len = _shared_length(draw, seq_len, key_unit, query_len)
    if attn_type is AttentionType.DECODER:
        short = ["short"] * (8 if chunks else 1) if engine.more_queries_than_keys else []
        kind = pick(draw, ["context"] * 8 + ["sequence"] * 7 + short)
        seq_len = {
            "context": seq_len + query_len,
            "sequence": max(seq_len, query_len),
            "short": seq_len % max(query_len, 1),
        }[kind]
        if not engine.prompts:
            seq_len = max(seq_len, query_len + 1)
    return query_len, seq_len if engine.empty_requests else max(1, seq_len)


def _shared_length(draw: st.DrawFn, num_keys: int, key_unit: int, query_len: int) -> int:
    """The tokens of `num_keys` keys, or for half of the lengths of a few keys; plus or minus a token, or minus half a key or
    half of the queries: after a context of such a length, a key is completed between two queries."""
    keys = pick(draw, (0, 1, 2)) if pick(draw, (False, True)) else num_keys
    return max(0, keys * key_unit - pick(draw, (0, 1, -1, key_unit // 2, query_len // 2 + 1)))


def _with_ranges(
    draw: st.DrawFn, support: Support, block_size: int, rules: set[str], window_left: int, chunk: int, request: Request
) -> Request:
    """The request with up to three ranges, if there are ranges. Beside chunks, half of them lie over a chunk's end."""
    if "bidirectional_ranges" not in rules:
        return request
    own = []
    for _ in range(pick(draw, range(4))):
        ends = _ends_of_chunks(request, chunk) if chunk and "any" in support.engine.ranges else []
        if ends and pick(draw, (False, True)):
            own.append(_range_over(draw, request, window_left, pick(draw, ends)))
        else:
            own.append(ranges(draw, support, block_size, request))
    return msgspec.structs.replace(request, bidirectional_ranges=tuple(one for one in own if one is not None))


def _ends_of_chunks(request: Request, chunk: int) -> list[int]:
    """The last end of a chunk before all queries, and the first ends among the queries."""
    last = max(request.context_len, 0) // chunk
    return [end for end in (last * chunk, (last + 1) * chunk, (last + 2) * chunk) if 0 < end < request.seq_len]


def _range_over(draw: st.DrawFn, request: Request, window_left: int, end: int) -> tuple[int, int]:
    """A range over the end of a chunk that has a query after it: some of the range's keys are of an earlier chunk.

    It begins a few keys before the end, or farther back than a query at the end sees through its window.
    """
    first = end - pick(draw, (3, 1, 15, *((window_left + 2,) * 3 if window_left >= 0 else ())))
    return max(0, first), max(end, request.context_len) + pick(draw, (0, 1, 3, 15))


def ranges(draw: st.DrawFn, support: Support, block_size: int, request: Request) -> tuple[int, int] | None:
    """The first and the last position of a range. It begins near the end of a tile, a block, the context or the sequence.

    It ends at such a place, too, or is short, or empty. None if it must be inside the sequence, which has no key.
    """
    is_free = "any" in support.engine.ranges
    start = max(request.context_len, 0)
    ends = [
        size * (start * is_query // size + k)
        for size in (block_size, *support.tile_sizes)
        for is_query in (0, 1)
        for k in (1, 2)
    ]
    first_of_all, last_of_all = (-1, request.seq_len + 1) if is_free else (0, request.seq_len - 1)
    inside = sorted(
        {
            end + more
            for end in (0, request.context_len, request.seq_len, *ends)
            for more in (-1, 0, 1)
            if first_of_all <= end + more <= last_of_all
        }
    )
    if not inside:
        return None
    first = pick(draw, inside)
    if is_free and pick(draw, range(10)) == 9:
        return first, INT32_MAX
    if pick(draw, (False, True)):
        last = first + pick(draw, (1, 0, 3, 15, -1))
        return first, last if is_free else max(first, min(last, last_of_all))
    return first, pick(draw, [position for position in inside if position >= first])

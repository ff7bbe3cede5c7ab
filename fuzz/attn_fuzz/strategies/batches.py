"""Requests of a ragged batch: lengths around every edge that a kernel has."""

import msgspec
from attn_contract import AttentionType
from attn_fuzz.cases.case import Request
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st

MAX_REQUESTS = 8


def query_lens(support: Support, rules: set[str]) -> st.SearchStrategy[st.SearchStrategy[int]]:
    """The kinds of steps that an engine makes, as strategies of one request's query length.

    Decode has 1 query (or 0, as graph padding), speculative decode a few, and prefill and extend lengths around a tile's end.
    Some batches mix them.

    - With drafts (qq_bias), a few queries are drawn most often.
    - With ranges, lengths beyond a tile are drawn more often: a range may end a tile later than it begins.
    - With chunks, single queries are drawn less often: chunks are easily miscounted before the sequence begins.
    """
    around = sorted({tile * k + more for tile in support.tile_sizes for k in (1, 2) for more in (-1, 0, 1)})
    decode = st.sampled_from([1, 1, 1, 0])
    few = st.sampled_from([1, 2, 3, 4, 5, 8, 9])
    tiles = st.sampled_from([n for n in around if 0 < n <= support.max_tokens] or [support.max_tokens])
    mixed = st.one_of(decode, few, tiles)
    if "qq_bias" in rules:
        return st.sampled_from([few, few, mixed, tiles])
    if "bidirectional_ranges" in rules:
        several = st.sampled_from(
            [n for n in around if max(support.tile_sizes) < n <= support.max_tokens] or [support.max_tokens]
        )
        return st.sampled_from([few, mixed, tiles, several, several])
    if "chunked_local" in rules:
        return st.sampled_from([few, decode, mixed, tiles])
    return st.sampled_from([decode, few, decode, mixed, tiles])


def lengths(support: Support, block_size: int) -> st.SearchStrategy[int]:
    """0, short, around a block's or a tile's end, and now and then long."""
    around = [size * k + more for size in (block_size, *support.tile_sizes) for k in (1, 2, 3) for more in (-1, 0, 1)]
    edges = sorted({n for n in around if 0 <= n <= support.max_seq_len // 2}) or [0]
    small = st.sampled_from([0, 1, 2, 5])
    return st.one_of(small, st.sampled_from(edges), st.sampled_from(edges), st.integers(0, support.max_seq_len))


@st.composite
def batches(
    draw: st.DrawFn, support: Support, attn_type: AttentionType, block_size: int, rules: set[str]
) -> tuple[Request, ...]:
    """1 to 8 requests without blocks, within the support's limits on tokens and keys."""
    flags = [flag for flag, can in ((True, support.causal), (False, "non_causal" in support.rules)) if can]
    per_request = attn_type is AttentionType.DECODER and "per_request_causal" in support.rules and draw(st.booleans())
    causal = attn_type is AttentionType.DECODER and draw(st.sampled_from(flags))
    kind_of_step = draw(query_lens(support, rules))
    requests: list[Request] = []
    tokens = keys = 0
    for _ in range(draw(st.sampled_from(range(1, MAX_REQUESTS + 1)))):
        query_len = draw(kind_of_step)
        if attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY):
            seq_len = query_len
        else:
            seq_len = draw(lengths(support, block_size))
            if attn_type is AttentionType.DECODER:
                # edges of the context, and of the sequence; one shorter than its queries is odd and allowed: some see nothing,
                # and stand before position 0, where chunks are easily miscounted
                short = ["short"] * (8 if "chunked_local" in rules else 1)
                kind = draw(st.sampled_from(["context"] * 8 + ["sequence"] * 7 + short))
                seq_len = {
                    "context": seq_len + query_len,
                    "sequence": max(seq_len, query_len),
                    "short": seq_len % max(query_len, 1),
                }[kind]
        tokens, keys = tokens + query_len, keys + seq_len
        if requests and (tokens > support.max_tokens or keys > 2 * support.max_seq_len):
            break
        flag = draw(st.sampled_from(flags)) if per_request else causal
        request = Request(query_len=query_len, seq_len=seq_len, causal=flag)
        if "bidirectional_ranges" in rules:
            request = msgspec.structs.replace(
                request, bidirectional_ranges=tuple(draw(st.lists(ranges(support, block_size, request), max_size=3)))
            )
        requests.append(request)
    return tuple(requests)


@st.composite
def ranges(draw: st.DrawFn, support: Support, block_size: int, request: Request) -> tuple[int, int]:
    """From and to where tiles, blocks, the context and the sequence end, or of a few positions; some end early, or are none."""
    start = max(request.context_len, 0)
    ends = [
        size * (start * is_query // size + k)
        for size in (block_size, *support.tile_sizes)
        for is_query in (0, 1)
        for k in (1, 2)
    ]
    inside = sorted(
        {
            end + more
            for end in (0, request.context_len, request.seq_len, *ends)
            for more in (-1, 0, 1)
            if -1 <= end + more <= request.seq_len + 1
        }
    )
    first = draw(st.sampled_from(inside))
    later = [position for position in inside if position >= first]
    return first, draw(st.one_of(st.sampled_from(later), st.sampled_from([first + n for n in (1, 0, 3, 15, -1)])))

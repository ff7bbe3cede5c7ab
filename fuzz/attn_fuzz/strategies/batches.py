"""Requests of a ragged batch: lengths around every edge that a kernel has."""

from attn_contract import AttentionType
from attn_fuzz.case import Request
from attn_fuzz.targets import Support
from hypothesis import strategies as st

MAX_REQUESTS = 8


def query_lens(support: Support) -> st.SearchStrategy[st.SearchStrategy[int]]:
    """The kinds of steps that an engine makes, as strategies of one request's query length.

    Decode (1 and graph padding), speculative decode (a few), prefill and extend (around a tile's end), and mixes of them.
    """
    around = sorted({tile * k + more for tile in support.tile_sizes for k in (1, 2) for more in (-1, 0, 1)})
    decode = st.sampled_from([1, 1, 1, 0])
    few = st.sampled_from([1, 2, 3, 4, 5, 8, 9])
    tiles = st.sampled_from([n for n in around if 0 < n <= support.max_tokens] or [support.max_tokens])
    return st.sampled_from([decode, few, decode, st.one_of(decode, few, tiles), tiles])


def lengths(support: Support, block_size: int) -> st.SearchStrategy[int]:
    """0, short, around a block's or a tile's end, and now and then long."""
    around = [size * k + more for size in (block_size, *support.tile_sizes) for k in (1, 2, 3) for more in (-1, 0, 1)]
    edges = sorted({n for n in around if 0 <= n <= support.max_seq_len // 2}) or [0]
    small = st.sampled_from([0, 1, 2, 5])
    return st.one_of(small, st.sampled_from(edges), st.sampled_from(edges), st.integers(0, support.max_seq_len))


@st.composite
def batches(draw: st.DrawFn, support: Support, attn_type: AttentionType, block_size: int) -> tuple[Request, ...]:
    """1 to 8 requests without their blocks, within the support's number of tokens and keys."""
    flags = [flag for flag, can in ((True, support.causal), (False, support.non_causal)) if can]
    per_request = attn_type is AttentionType.DECODER and support.per_request_causal and draw(st.booleans())
    causal = attn_type is AttentionType.DECODER and draw(st.sampled_from(flags))
    kind_of_step = draw(query_lens(support))
    requests: list[Request] = []
    tokens = keys = 0
    for _ in range(draw(st.sampled_from(range(1, MAX_REQUESTS + 1)))):
        query_len = draw(kind_of_step)
        if attn_type in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY):
            seq_len = query_len
        else:
            seq_len = draw(lengths(support, block_size))
            if attn_type is AttentionType.DECODER:
                # edges of the context, and of the sequence; one shorter than its queries is odd and allowed: some see nothing
                kind = draw(st.sampled_from(["context"] * 8 + ["sequence"] * 7 + ["short"]))
                seq_len = {"context": seq_len + query_len, "sequence": max(seq_len, query_len), "short": seq_len}[kind]
        tokens, keys = tokens + query_len, keys + seq_len
        if requests and (tokens > support.max_tokens or keys > 2 * support.max_seq_len):
            break
        flag = draw(st.sampled_from(flags)) if per_request else causal
        requests.append(Request(query_len=query_len, seq_len=seq_len, causal=flag))
    return tuple(requests)

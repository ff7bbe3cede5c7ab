"""Whole cases."""

from attn_contract import AttentionType
from attn_fuzz.case import Case, Values
from attn_fuzz.strategies.batches import batches
from attn_fuzz.strategies.caches import caches
from attn_fuzz.strategies.layers import layers
from attn_fuzz.targets import Support
from hypothesis import strategies as st

VALUES = ("exact", "one_hot", "signature", "random", "extreme")


def cases(target: str, support: Support, refuses: bool = True) -> st.SearchStrategy[Case]:
    """Any step that a target supports; and now and then one that it must refuse, if there is any and it promises to."""
    supported = steps(target, support).filter(lambda case: support.beyond(case) is None)
    if not refuses or support.widened() == support:
        return supported
    refused = steps(target, support.widened()).filter(lambda case: support.beyond(case) is not None)
    return st.one_of(supported, supported, supported, refused)


@st.composite
def steps(draw: st.DrawFn, target: str, support: Support) -> Case:
    """Any step within a support."""
    layer = draw(layers(support))
    attn_type: AttentionType = layer["attn_type"]
    block_size = draw(st.sampled_from(support.block_sizes)) if attn_type.reads_cache else 16
    requests = draw(batches(support, attn_type, block_size))
    cache, writes, unwritten, recycled = None, True, (), False
    if attn_type.reads_cache:
        writes = draw(st.sampled_from([True, True, False]))
        cache, requests = draw(caches(support, attn_type, requests, block_size, writes))
        recycled = draw(st.booleans())
        tokens = sum(request.query_len for request in requests)
        if attn_type is AttentionType.DECODER and writes and tokens:
            unwritten = tuple(sorted(draw(st.sets(st.integers(0, tokens - 1), max_size=2))))
    return Case(
        target=target,
        **layer,
        per_request_causal=len({request.causal for request in requests}) > 1,
        requests=requests,
        cache=cache,
        writes=writes,
        unwritten=unwritten,
        recycled=recycled,
        unowned_rows=draw(st.sampled_from([0, 1, 3])),
        rows_past=draw(st.sampled_from([0, 1, 17])),
        kv_rows_past=draw(st.sampled_from([0, 2])),
        table_padding=draw(st.sampled_from([0, 1, 3])) if cache else 0,
        slack=draw(st.sampled_from([0, 0, 0, 0, 1, 100])),
        fused_qkv=draw(st.booleans()),
        flat_out=draw(st.booleans()),
        return_lse=support.lse and draw(st.booleans()),
        values=Values(kind=draw(st.sampled_from(VALUES)), seed=draw(st.integers(0, 2**32 - 1))),
    )

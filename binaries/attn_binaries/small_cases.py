"""Small ragged cases for a call that ships: its layer with fewer heads and lower numbers, and few tokens.

The code of a launch holds no number of heads, requests, tokens or keys, and no number of a rule. So it is the same for a small
case, which `attn_binaries.execution` checks.
"""

from itertools import count
from typing import Any

import msgspec
import torch
from attn_binaries.shipped_calls import MERGES, WRITES, ShippedCall
from attn_contract import AttentionType, Indexer, Layout
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_optimized.launch.workload import DECODE_TILE_ROWS

KV_HEADS = 2
UNUSED_BLOCKS = 2
SOFT_CAP = 3.0
"""Low enough to change most of the logits of small cases."""
KEYS_PAST_A_TILE = 5
_NAMES = {torch.float8_e4m3fn: "fp8_e4m3fn", torch.float8_e4m3fnuz: "fp8_e4m3fnuz", torch.int8: "int8"}


def small_cases(shipped: ShippedCall, *, queries: int, keys: int) -> tuple[Case, Case]:
    """Two cases of a call: one of random numbers, and one in which each output names the slots that were read.

    Args:
        queries, keys: the queries and the keys of a tile of the attention kernel. Lengths lie just beyond a tile or two, or
            four: a loop with several stages has met its own stores then. Some request has one token, and some has none.
    """
    if shipped.indexer is not None:
        return _index_case(shipped, shipped.indexer, 1), _index_case(shipped, shipped.indexer, 2)
    random = _case(shipped, _first_lengths(shipped, queries, keys), keys)
    signature = msgspec.structs.replace(
        _case(shipped, _second_lengths(shipped, queries, keys), keys),
        values=Values("signature", 1),
        lse=True,
        fused_qkv=not shipped.float8_queries,
        unwritten=(0,) if shipped.op in WRITES else (),
    )
    for case in (random, signature):
        contradictions.check(case)
    return random, signature


def _first_lengths(shipped: ShippedCall, queries: int, keys: int) -> list[tuple[int, int]]:
    """Queries and keys of each request."""
    most = shipped.query_len
    if shipped.longest:
        return [(queries + 3, queries + keys + 8), (1, 4 * keys + 5), (0, 3), (1, 1)]
    if most <= 4:
        return [(most, 4 * keys + 5), (1, 1), (0, 3), (most, keys - 1), *_for_cascade(shipped, keys)]
    return [(queries + 5, queries + keys + 8), (1, 1), (0, 3), (7, 4 * keys + 9)]


def _second_lengths(shipped: ShippedCall, queries: int, keys: int) -> list[tuple[int, int]]:
    most = shipped.query_len
    if shipped.longest:
        return [(1, keys + 1), (queries + 1, queries + 1), (1, 7)]
    if most <= 4:
        return [(1, keys + 1), (most, 2 * keys + 3), (most, 7), *_for_cascade(shipped, keys)]
    return [(2, keys), (queries + 1, queries + 1), (1, keys + 7)]


def _for_cascade(shipped: ShippedCall, keys: int) -> list[tuple[int, int]]:
    """The number of further queries with which all requests together are no decode."""
    heads = KV_HEADS * (shipped.num_heads // shipped.num_kv_heads)
    return [(1, keys + 2)] * (DECODE_TILE_ROWS // heads + 1) if shipped.op == "cascade" else []


def _case(shipped: ShippedCall, lengths: list[tuple[int, int]], keys: int) -> Case:
    if not shipped.attn_type.reads_cache:
        lengths = [(query_len, query_len) for query_len, _ in lengths]
    key_unit = shipped.key_unit or 1
    if key_unit > 1:  # a key is completed between two queries
        lengths = [(query_len, num_keys * key_unit + query_len // 2) for query_len, num_keys in lengths]
    prefix_blocks = _prefix_blocks(shipped, keys)
    if prefix_blocks:
        lengths = [(query_len, seq_len + prefix_blocks * shipped.block_size) for query_len, seq_len in lengths]
    blocks_of, num_blocks = _blocks(shipped, [seq_len // key_unit for _, seq_len in lengths], prefix_blocks)
    requests = tuple(
        Request(
            query_len=query_len,
            seq_len=seq_len,
            blocks=blocks,
            causal=shipped.attn_type is AttentionType.DECODER,
            bidirectional_ranges=_ranges(shipped, seq_len),
        )
        for (query_len, seq_len), blocks in zip(lengths, blocks_of, strict=True)
    )
    return Case(
        target="shipped",
        attn_type=shipped.attn_type,
        dtype=str(shipped.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        num_kv_heads=1 if shipped.layout.has_latent_value else KV_HEADS,
        group_size=shipped.num_heads // shipped.num_kv_heads,
        head_size=shipped.head_size,
        head_size_v=shipped.head_size_v,
        scale=shipped.head_size**-0.5,
        requests=requests,
        cache=_cache(shipped, num_blocks) if shipped.attn_type.reads_cache else None,
        rope=Rope(rotary_dim=shipped.head_size) if shipped.op == "rope" else None,
        output_dtype="fp8_e4m3fn" if shipped.float8_output else None,
        dense_out=True,
        lse=shipped.op in MERGES,
        values=Values("random"),
        **_rules(shipped, keys),
    )


def _index_case(shipped: ShippedCall, indexer: Indexer, seed: int) -> Case:
    """A step that stands for one of an index layer (`attn_fuzz.targets.indexer`). Some rows see more units than they select."""
    unit = indexer.selection_unit
    lengths = [(2, 37 * unit), (0, 3), (1, 1), (3, 18 * unit + 1)]
    blocks_of, num_blocks = _blocks(shipped, [seq_len for _, seq_len in lengths], 0)
    case = Case(
        target="shipped",
        dtype="bfloat16",
        num_kv_heads=indexer.num_selections,
        group_size=indexer.num_heads // indexer.num_selections,
        head_size=indexer.head_size,
        selection_unit=unit,
        selected="top",
        selected_per_head=indexer.num_selections > 1,
        requests=tuple(
            Request(query_len=query_len, seq_len=seq_len, blocks=blocks, causal=True)
            for (query_len, seq_len), blocks in zip(lengths, blocks_of, strict=True)
        ),
        cache=Cache(layout=Layout.CONTENT_PACKED, block_size=shipped.block_size, num_blocks=num_blocks),
        values=Values("random", seed),
    )
    contradictions.check(case)
    return case


def _rules(shipped: ShippedCall, keys: int) -> dict[str, Any]:
    """The rules of the call. A window and a chunk are so short that they hide a tile of keys."""
    near = keys + KEYS_PAST_A_TILE
    window = None if shipped.window is None else min(shipped.window, near)
    return {
        "window": (-1, -1) if window is None else (window - 1, window - 1),
        "sink_tokens": shipped.sink_tokens,
        "key_unit": shipped.key_unit,
        "chunked_local": None if shipped.chunked_local is None else min(shipped.chunked_local, near),
        "logits_soft_cap": None if shipped.logits_soft_cap is None else SOFT_CAP,
        "q_scale": "tensor" if shipped.float8_queries else None,
        "alibi_slopes": shipped.alibi_slopes,
        "sinks": "near" if shipped.sinks else None,
    }


def _ranges(shipped: ShippedCall, seq_len: int) -> tuple[tuple[int, int], ...]:
    if not shipped.bidirectional_ranges or seq_len < 8:
        return ()
    return ((1, 3), (seq_len // 2, seq_len - 2))


def _cache(shipped: ShippedCall, num_blocks: int) -> Cache:
    dtype: Any = _NAMES.get(shipped.kv_cache_dtype) if shipped.kv_cache_dtype else None
    scales: Any = "token" if shipped.token_scales else "tensor"
    return Cache(
        layout=shipped.layout,
        block_size=shipped.block_size,
        num_blocks=num_blocks,
        planes=shipped.layout in (Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND),
        dtype=dtype,
        scales=None if dtype is None or shipped.layout.has_inline_scales else scales,
    )


def _prefix_blocks(shipped: ShippedCall, keys: int) -> int:
    return -(-(keys + KEYS_PAST_A_TILE) // shipped.block_size) if shipped.op == "cascade" else 0


def _blocks(shipped: ShippedCall, seq_lens: list[int], shared: int) -> tuple[list[tuple[int, ...]], int]:
    """The blocks of each request, of which the first ones may be shared, and the number of blocks of the cache."""
    if not shipped.attn_type.reads_cache:
        return [() for _ in seq_lens], 0
    needed = [-(-seq_len // shipped.block_size) - shared for seq_len in seq_lens]
    num_blocks = shared + sum(needed) + UNUSED_BLOCKS
    ids = count(num_blocks - 1, -1)
    prefix = tuple(next(ids) for _ in range(shared))
    return [prefix + tuple(next(ids) for _ in range(own)) for own in needed], num_blocks

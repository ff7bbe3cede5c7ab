"""The cases that are measured, with the bytes and FLOPs that bound the speed of any kernel."""

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from attn_contract import AttentionType, Layout

KI = 1024
ITEMSIZE = 2  # of bfloat16, which everything is but a float8 cache, and what a case says is float32


@dataclass(frozen=True)
class Reach:
    """The share of a rate that a case must reach, and the share that it aims at.

    Attributes:
        of: the rate that shares are relative to: one of the GPU (`bandwidth` of a copy, sustained `matmul` rate, `floor`), or
            the speed of others (the better of both Triton `peers`, `AITER`, the better `SDPA`).
    """

    of: Literal["bandwidth", "matmul", "floor", "peers", "AITER", "SDPA"]
    least: float
    aim: float


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention over a paged cache, or over dense tokens for the types that have none. Names as in `attn_contract`.

    Attributes:
        itemsize: bytes of an element of q, and of a cache that is not float8: 2 of bfloat16, 4 of float32.
        head_size_v: the width of V, as in `attn_contract`; None: that of K. With the layout LATENT, V is the first dims of K.
        is_expanded: prompts of a latent layer, without a cache: a query sees the keys of its request up to its own.
        selection: tokens of a unit, and the units that a query selects. Each KV head has a selection of its own.
        common_prefix_len: leading keys that all requests have in the same blocks; cascade attention reads them once.
        traffic: the traffic of a drawn case, a key of `traffic.TRAFFIC`.
    """

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    block_size: int = 16
    layout: Layout = Layout.BLOCKS_FIRST_NHD
    attn_type: AttentionType = AttentionType.DECODER
    window: int | None = None
    chunked_local: int | None = None
    sinks: bool = False
    logits_soft_cap: float | None = None
    itemsize: int = ITEMSIZE
    float8_cache: bool = False
    head_size_v: int | None = None
    is_expanded: bool = False
    selection: tuple[int, int] | None = None
    common_prefix_len: int = 0
    reach: Reach | None = None
    traffic: str | None = None

    @property
    def causal(self) -> bool:
        return self.attn_type is AttentionType.DECODER

    @property
    def is_latent(self) -> bool:
        return self.layout.has_latent_value

    @property
    def v_head_size(self) -> int:
        return self.head_size_v or self.head_size

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @property
    def is_uniform(self) -> bool:
        return len(set(self.query_lens)) == len(set(self.seq_lens)) == 1

    def keys(self, request: int, query: int) -> range:
        """Keys that a query of a request sees."""
        query_len, seq_len = self.query_lens[request], self.seq_lens[request]
        if not (self.causal or self.is_expanded):
            return range(seq_len)
        position = seq_len - query_len + query
        first = position + 1 - self.window if self.window else 0
        if self.chunked_local:
            first = max(first, position // self.chunked_local * self.chunked_local)
        return range(max(0, first), position + 1)

    @property
    def flops(self) -> float:
        """Two dots of each visible pair of a query and a key, in every head."""
        return 2.0 * (self.head_size + self.v_head_size) * self.num_heads * self.pairs

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, for one head."""
        most = math.prod(self.selection) if self.selection else max(self.seq_lens)
        return sum(min(len(self.keys(r, i)), most) for r, query_len in enumerate(self.query_lens) for i in range(query_len))

    @property
    def bytes(self) -> float:
        """K and V of every key that some query sees, once for each KV head, and q and the output."""
        seen = sum(self.keys(r, n - 1).stop - self.keys(r, 0).start for r, n in enumerate(self.query_lens))
        seen -= self.common_prefix_len * (len(self.query_lens) - 1)
        seen = min(seen, self.pairs)  # queries that select keys may share none
        row = self.head_size + (0 if self.is_latent else self.v_head_size)
        stored = row * self.num_kv_heads * seen * (1 if self.float8_cache else self.itemsize)
        return float(stored + (self.head_size + self.v_head_size) * self.num_tokens * self.num_heads * self.itemsize)

    def tiny(self) -> Self:
        """The same features at a size that can be interpreted: three requests, lengths of some tens, two KV heads."""
        chosen = sorted({0, len(self.query_lens) // 2, len(self.query_lens) - 1})
        query_lens = tuple(min(self.query_lens[r], 20) for r in chosen)
        contexts = [self.seq_lens[r] - self.query_lens[r] for r in chosen]
        if self.attn_type is AttentionType.ENCODER_DECODER or self.is_uniform:
            shorter = [min(context, 45) for context in contexts]
        else:
            shorter = [min(context, 45 - 9 * i) for i, context in enumerate(contexts)]
        kv_heads = 1 if self.is_latent else 2
        return dataclasses.replace(
            self,
            query_lens=query_lens,
            seq_lens=tuple(n + context for n, context in zip(query_lens, shorter, strict=True)),
            num_heads=min(kv_heads * self.num_heads // self.num_kv_heads, 80),
            num_kv_heads=kv_heads,
            head_size=64 if self.is_latent else self.head_size,
            head_size_v=48 if self.is_latent else self.head_size_v,
            block_size=min(self.block_size, 16 if self.common_prefix_len else 48),  # a prefix is of whole blocks
            window=self.window and min(self.window, 8),
            chunked_local=self.chunked_local and min(self.chunked_local, 8),
            selection=self.selection and (min(self.selection[0], 4), min(self.selection[1], 3)),
            common_prefix_len=min(self.common_prefix_len, 16),
        )


@dataclass(frozen=True, kw_only=True)
class RowOp:
    """A call that touches each row of each head once: a write to the cache, a rotation with it, or a merge of two outputs."""

    name: str
    op: Literal["write", "rope", "merge"]
    num_tokens: int = 8192
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    block_size: int = 16
    layout: Layout = Layout.BLOCKS_FIRST_NHD
    float8_cache: bool = False
    reach: Reach | None = None
    traffic: None = None

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def bytes(self) -> float:
        row = self.head_size * ITEMSIZE
        if self.op == "merge":
            return float(self.num_tokens * self.num_heads * (3 * row + 2 * 4))
        stored = self.head_size * (1 if self.float8_cache else ITEMSIZE)
        written = 2 * self.num_kv_heads * (row + stored) + 8  # and an int64 slot
        rotated = 2 * self.num_heads * row + row + 8 if self.op == "rope" else 0  # q, cosines and sines, an int64 position
        return float(self.num_tokens * (written + rotated))

    def tiny(self) -> Self:
        return dataclasses.replace(self, num_tokens=40, num_heads=4, num_kv_heads=2)


IndexStage = Literal["logits", "selection"]
INDEX_OPS: tuple[IndexStage, ...] = get_args(IndexStage)


@dataclass(frozen=True, kw_only=True)
class IndexOp:
    """A stage of a decode that chooses its keys: the index logits, or the selection of the largest of them.

    An index layer of DeepSeek-V3.2: float8 keys in blocks, with a float32 scale each. Each request has one query. Attention
    over the selection is a case of Attention.
    """

    name: str
    op: IndexStage
    seq_lens: tuple[int, ...]
    num_heads: int = 64
    head_size: int = 128
    top_k: int = 2 * KI
    block_size: int = 64
    reach: None = None
    traffic: str | None = None

    @property
    def flops(self) -> float:
        return 2.0 * self.num_heads * self.head_size * sum(self.seq_lens) if self.op == "logits" else 0.0

    @property
    def bytes(self) -> float:
        """Each key with its scale and its logit, once; or each logit and each place of the selection."""
        if self.op == "logits":
            return float(sum(self.seq_lens) * (self.head_size + 4 + 4))
        return 4.0 * (sum(self.seq_lens) + len(self.seq_lens) * self.top_k)

    def tiny(self) -> Self:
        seq_lens = tuple(min(300 - 40 * i, length) for i, length in enumerate(self.seq_lens[:2]))
        return dataclasses.replace(self, seq_lens=seq_lens, top_k=32)


Case = Attention | RowOp | IndexOp


def class_of(case: Case) -> str:
    """The class of a case, by which a run is chosen."""
    if isinstance(case, Attention):
        return "latent" if case.is_latent or case.is_expanded else "attention"
    return "rows" if isinstance(case, RowOp) else "index"


def decode(name: str, requests: int, seq_len: int, **options) -> Attention:
    return Attention(name=name, query_lens=(1,) * requests, seq_lens=(seq_len,) * requests, **options)


def _prefill(name: str, requests: int, seq_len: int, **options) -> Attention:
    return Attention(name=name, query_lens=(seq_len,) * requests, seq_lens=(seq_len,) * requests, **options)


def ragged() -> tuple[int, ...]:
    """64 lengths evenly from 256 to 16k, in no order."""
    lengths = [256 * (i + 1) for i in range(64)]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


_WHISPER = {"num_heads": 20, "num_kv_heads": 20, "head_size": 64}
_SELECTED_TOKENS: dict[str, Any] = {
    "num_kv_heads": 1, "head_size": 576, "head_size_v": 512, "layout": Layout.LATENT, "block_size": 64, "selection": (1, 2 * KI)
}  # fmt: skip
"""DeepSeek-V3.2's."""
_SELECTED_BLOCKS: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 4, "block_size": 128, "selection": (128, 16)}
"""MiniMax-M3's."""
GPT_OSS = {"num_heads": 64, "num_kv_heads": 8, "head_size": 64, "sinks": True}
_BIG, _LONG = Reach("bandwidth", 0.90, 1.00), Reach("bandwidth", 0.88, 0.97)
_PREFILL, _FASTER = Reach("matmul", 0.58, 0.80), Reach("AITER", 1.5, 3.0)

CASES: tuple[Case, ...] = (
    decode("decode, 64 x 8k", 64, 8 * KI, reach=_BIG),
    decode("decode, 1 x 128k", 1, 128 * KI, reach=_LONG),
    decode("decode, 8 x 32k", 8, 32 * KI, reach=_LONG),
    decode("decode, 256 x 1k", 256, KI, reach=_BIG),
    decode("decode, MHA, 32 x 4k", 32, 4 * KI, num_kv_heads=32, reach=_BIG),
    Attention(name="decode, ragged 64 x 256..16k", query_lens=(1,) * 64, seq_lens=ragged(), reach=_LONG),
    decode("decode, H64/HK8/D64 + sinks, 64 x 8k", 64, 8 * KI, **GPT_OSS, reach=_LONG),
    decode(
        "decode, H64/HK8/D64 + sinks + window 128, 64 x 8k", 64, 8 * KI, **GPT_OSS, window=128, reach=Reach("peers", 1.2, 2.0)
    ),
    decode("decode, fp8 cache, 64 x 8k", 64, 8 * KI, float8_cache=True, reach=Reach("bandwidth", 0.60, 0.85)),
    Attention(name="speculative decode, 4 query tokens, 64 x 8k", query_lens=(4,) * 64, seq_lens=(8 * KI,) * 64, reach=_BIG),
    _prefill("prefill, 4 x 4k", 4, 4 * KI, reach=_PREFILL),
    _prefill("prefill, 1 x 16k", 1, 16 * KI, reach=_PREFILL),
    _prefill("prefill, H64/HK8/D64, window 128 + sinks, 4 x 4k", 4, 4 * KI, **GPT_OSS, window=128, reach=_FASTER),
    _prefill("prefill, window 1k, 2 x 8k", 2, 8 * KI, window=KI, reach=_FASTER),
    Attention(name="extend, 8 x 512 new on 8k", query_lens=(512,) * 8, seq_lens=(8 * KI + 512,) * 8, reach=_PREFILL),
    Attention(
        name="mixed, one 2k prefill + 63 decodes at 4k",
        query_lens=(2 * KI,) + (1,) * 63,
        seq_lens=(2 * KI,) + (4 * KI,) * 63,
        reach=Reach("floor", 0.55, 0.80),
    ),
    _prefill(
        "encoder (Whisper), 16 x 1500, H20 D64, no cache",
        16,
        1500,
        **_WHISPER,
        attn_type=AttentionType.ENCODER,
        reach=Reach("SDPA", 0.9, 1.1),
    ),
    decode(
        "cross-attention, 64 x 1 query on 1500, H20 D64",
        64,
        1500,
        **_WHISPER,
        attn_type=AttentionType.ENCODER_DECODER,
        reach=Reach("bandwidth", 0.85, 0.97),
    ),
    _prefill(
        "prefill, soft cap 50, H16/HK8 D256, 2 x 4k",
        2,
        4 * KI,
        num_heads=16,
        head_size=256,
        logits_soft_cap=50.0,
        reach=_FASTER,
    ),
    _prefill("prefill, chunks of 1k, 2 x 8k", 2, 8 * KI, chunked_local=KI),
    decode("decode, SHUFFLED, 64 x 8k", 64, 8 * KI, layout=Layout.SHUFFLED),
    decode("decode, X_PACKED, 64 x 8k", 64, 8 * KI, layout=Layout.X_PACKED),
    decode("decode, blocks of 544, 64 x 8k", 64, 8 * KI, block_size=544),
    decode("selection of tokens, MLA N16, 64 x 2k of 32k", 64, 32 * KI, num_heads=16, **_SELECTED_TOKENS),
    decode("selection of tokens, MLA N128, 64 x 2k of 32k", 64, 32 * KI, num_heads=128, **_SELECTED_TOKENS),
    decode("selection of tokens, MLA N16, 4 x 2k of 512k", 4, 512 * KI, num_heads=16, **_SELECTED_TOKENS),
    decode("selection of blocks, H64/HK4, 32 x 16 x 128 of 128k", 32, 128 * KI, **_SELECTED_BLOCKS),
    _prefill("selection of blocks, H64/HK4, prefill, 1 x 8k", 1, 8 * KI, **_SELECTED_BLOCKS),
    decode("cascade, 64 requests share 8k, 256 of their own", 64, 8 * KI + 256, common_prefix_len=8 * KI),
    decode("cascade, 2 requests share 8k, 256 of their own", 2, 8 * KI + 256, common_prefix_len=8 * KI),
    RowOp(name="cache write, 8192 tokens", op="write"),
    RowOp(name="cache write, fp8, 8192 tokens", op="write", float8_cache=True),
    RowOp(name="RoPE + cache write, 8192 tokens", op="rope"),
    RowOp(name="merge_attn_states, 8192 tokens", op="merge"),
    *(
        IndexOp(name=f"index {op}, {requests} x {keys}k", op=op, seq_lens=(keys * KI,) * requests)
        for requests, keys in ((32, 32), (8, 128), (2, 512), (1, 32), (1, 128), (1, 512))
        for op in INDEX_OPS
    ),
)

HOST = decode("4 requests of 16 keys", 4, 16)
"""A call that is over before the next one is made: what it costs is Python."""


def copies(case: Case, *, cold_bytes: float = 200e6, at_most: int = 16) -> int:
    """The number of copies of the inputs, so that a call finds none of its own in the L2 cache."""
    return min(at_most, max(1, math.ceil(cold_bytes / case.bytes)))

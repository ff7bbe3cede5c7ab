"""The launches that serving needs, as data: for what the kernels are compiled before anybody meets a GPU.

Their tensors are on meta, so that none of this takes memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from attn_contract import AttentionType, Batch, ContractError, KVCacheView, Layer, Layout

from attn_optimized.attention import paged_attention_calls, plan_of, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.merge import merge_attn_states_call

COMPUTE_UNITS = {"gfx90a": 110, "gfx942": 304, "gfx950": 256, "gfx1100": 48, "gfx1201": 32, "gfx1250": 256, "sm90": 132}
"""Of a GPU of each architecture, as torch counts them; gfx1250's are taken to be gfx950's."""
CACHE_BYTES = 8 << 30
"""Of a layer: more than AMD's buffer instructions reach, as on GPUs that serve."""
SMALL_CACHE_BYTES = 1 << 30
MAX_POSITION = 32768


@dataclass(frozen=True, kw_only=True)
class ShippedCall:
    """What a step asks for. Names as in `attn_contract`.

    Attributes:
        name: how budgets and tables call it.
        main: whether it is compiled on every change.
        requests, query_len, longest: queries of each request, or of all but one, which has `longest`.
        cache_bytes: of the layer's allocation.
        token_scales: whether a quantized cache has a scale per token and head, in the cache itself if its layout says so.
        prefix: keys that all requests share, of "cascade".
        window: keys that a query sees, itself included.
        chunk: keys of a chunk of positions, of which a query sees its own.
        ranges: bidirectional ones of each request.
        float8_output: whether the output is e4m3fn, with a scale.
    """

    name: str
    op: Literal["paged", "varlen", "cascade", "write", "rope", "merge"] = "paged"
    main: bool = False
    dtype: torch.dtype = torch.bfloat16
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    block_size: int = 16
    layout: Layout = Layout.BLOCKS_FIRST_NHD
    cache_bytes: int = CACHE_BYTES
    cache_dtype: torch.dtype | None = None
    token_scales: bool = False
    attn_type: AttentionType = AttentionType.DECODER
    requests: int = 1024
    query_len: int = 1
    longest: int = 0
    seq_len: int = 8192
    prefix: int = 0
    window: int | None = None
    chunk: int | None = None
    sink_tokens: int = 0
    ranges: int = 0
    soft_cap: float | None = None
    alibi: bool = False
    sinks: bool = False
    batch_invariant: bool = False
    float8_output: bool = False

    def named(self, suffix: str, **fields: Any) -> Self:
        """Another call like it."""
        return replace(self, name=f"{self.name}, {suffix}", **{"main": False, **fields})


def kernel_calls(shipped: ShippedCall, architecture: str) -> dict[str, KernelCall]:
    """Its launches on a GPU, by name: the call's own name for the first one.

    Raises:
        ContractError: how many compute units the GPU has is not known.
    """
    if architecture not in COMPUTE_UNITS:
        raise ContractError("architecture", repr(architecture), f"one of {', '.join(COMPUTE_UNITS)}")
    calls: dict[str, KernelCall] = {}
    for call in _launches(shipped, architecture):
        part = "reduction" if call.form.kernel is reduce_parts_kernel else "suffix"
        calls[f"{shipped.name}, {part}" if calls else shipped.name] = call
    return calls


def _launches(shipped: ShippedCall, architecture: str) -> Iterator[KernelCall]:
    num_tokens = (shipped.requests - 1) * shipped.query_len + max(shipped.query_len, shipped.longest)
    heads, kv_heads = shipped.num_heads, shipped.num_kv_heads
    q, k, v = _rows(shipped, num_tokens, heads + 2 * kv_heads).split([heads, kv_heads, kv_heads], dim=1)
    out = _rows(shipped, num_tokens, heads, torch.float8_e4m3fn if shipped.float8_output else shipped.dtype)
    layer, batch = _layer(shipped), _batch(shipped, num_tokens)
    gpu: dict[str, Any] = {"architecture": architecture, "compute_units": COMPUTE_UNITS[architecture]}
    plan = plan_of(q, layer, batch, batch_invariant=shipped.batch_invariant, **gpu)
    match shipped.op:
        case "paged":
            yield from paged_attention_calls(q, _cache(shipped), layer, batch, plan, out=out)
        case "varlen":
            yield from varlen_attention_calls(q, k, v, layer, batch, plan, out=out)
        case "cascade":
            yield from cascade_attention_calls(q, _cache(shipped), layer, batch, shipped.prefix, out=out, **gpu)
        case "write":
            yield write_kv_cache_call(k, v, _cache(shipped), layer, _integers(num_tokens), architecture=architecture)
        case "rope":
            positions, cos_sin = _integers(num_tokens), _empty((MAX_POSITION, shipped.head_size), torch.float32)
            arguments = (q, k, v, positions, cos_sin, _cache(shipped), layer, _integers(num_tokens))
            yield rope_and_write_kv_cache_call(*arguments, is_neox=True, architecture=architecture)
        case "merge":
            lse = _empty((heads, num_tokens), torch.float32)
            whole = _rows(shipped, num_tokens, heads)
            yield merge_attn_states_call(whole, lse, whole, lse, out=out, lse=lse, architecture=architecture)


def _layer(shipped: ShippedCall) -> Layer:
    scales: dict[str, Any] = {}
    if shipped.token_scales and not shipped.layout.has_inline_scales:
        shape = (_num_blocks(shipped), shipped.block_size, shipped.num_kv_heads)
        scales = {name: _empty(shape, torch.float32) for name in ("k_scale_cache", "v_scale_cache")}
    elif shipped.cache_dtype and not shipped.token_scales:
        scales = {name: _empty((), torch.float32) for name in ("k_scale", "v_scale")}
    reads_cache = shipped.attn_type.reads_cache
    return Layer(
        num_heads=shipped.num_heads,
        num_kv_heads=shipped.num_kv_heads,
        head_size=shipped.head_size,
        scale=shipped.head_size**-0.5,
        attn_type=shipped.attn_type,
        window=(-1, -1) if shipped.window is None else (shipped.window - 1, shipped.window - 1),
        sink_tokens=shipped.sink_tokens,
        chunked_local=shipped.chunk,
        logits_soft_cap=shipped.soft_cap,
        alibi_slopes=_empty((shipped.num_heads,), torch.float32) if shipped.alibi else None,
        sinks=_empty((shipped.num_heads,), torch.float32) if shipped.sinks else None,
        layout=shipped.layout if reads_cache else None,
        kv_cache_dtype=shipped.cache_dtype,
        output_scale=_empty((), torch.float32) if shipped.float8_output else None,
        **scales,
    )


def _batch(shipped: ShippedCall, num_tokens: int) -> Batch:
    blocks = -(-shipped.seq_len // shipped.block_size)
    return Batch(
        query_start_loc=_empty((shipped.requests + 1,), torch.int32),
        seq_lens=_empty((shipped.requests,), torch.int32),
        max_query_len=max(shipped.query_len, shipped.longest),
        max_seq_len=shipped.seq_len,
        num_actual_tokens=num_tokens,
        causal=shipped.attn_type is AttentionType.DECODER,
        block_table=_empty((shipped.requests, blocks), torch.int32) if shipped.attn_type.reads_cache else None,
        bidirectional_ranges=_empty((shipped.requests, shipped.ranges, 2), torch.int32) if shipped.ranges else None,
    )


def _cache(shipped: ShippedCall) -> torch.Tensor:
    dtype = shipped.cache_dtype or shipped.dtype
    view = KVCacheView.dense(
        shipped.layout,
        num_blocks=_num_blocks(shipped),
        block_size=shipped.block_size,
        num_kv_heads=shipped.num_kv_heads,
        head_size=shipped.head_size,
        itemsize=dtype.itemsize,
    )
    return view.tensor(_empty((view.end,), dtype))


def _num_blocks(shipped: ShippedCall) -> int:
    row = shipped.head_size * (shipped.cache_dtype or shipped.dtype).itemsize
    return shipped.cache_bytes // (2 * shipped.block_size * shipped.num_kv_heads * row)


def _rows(shipped: ShippedCall, num_tokens: int, num_heads: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _empty((num_tokens, num_heads, shipped.head_size), dtype or shipped.dtype)


def _integers(size: int) -> torch.Tensor:
    return _empty((size,), torch.int64)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_E4M3FN, _E4M3FNUZ, _INT8 = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8
_RULES: dict[str, Any] = {"window": 1024, "sink_tokens": 4, "ranges": 4, "soft_cap": 50.0, "alibi": True}
_PREFILL: dict[str, Any] = {"requests": 32, "query_len": 1024}
_TWO: dict[str, Any] = {"requests": 2, "query_len": 2048, "seq_len": 2048}
_FEW: dict[str, Any] = {"requests": 4, "seq_len": 32768}
_CACHES: dict[str, dict[str, Any]] = {
    "e4m3fn cache": {"cache_dtype": _E4M3FN},
    "e4m3fnuz cache": {"cache_dtype": _E4M3FNUZ},
    "int8 cache": {"cache_dtype": _INT8, "token_scales": True},
}
_LAYOUTS: dict[str, dict[str, Any]] = {
    **{
        layout: {"layout": layout}
        for layout in Layout
        if not layout.has_inline_scales and layout is not Layout.BLOCKS_FIRST_NHD
    },
    "CONTENT_PACKED_SCALED int8": {"layout": Layout.CONTENT_PACKED_SCALED, "cache_dtype": _INT8, "token_scales": True},
    "CONTENT_PACKED_SCALED e4m3fn": {"layout": Layout.CONTENT_PACKED_SCALED, "cache_dtype": _E4M3FN, "token_scales": True},
    "SHUFFLED e4m3fnuz": {"layout": Layout.SHUFFLED, "cache_dtype": _E4M3FNUZ},
}
_MAIN_LAYOUTS = (Layout.X_PACKED, Layout.SHUFFLED)

DECODE = ShippedCall(name="decode", main=True)
PREFILL = ShippedCall(name="prefill", main=True, **_PREFILL)
_WRITE = ShippedCall(name="cache write", op="write", main=True, query_len=32)
_ROPE = ShippedCall(name="RoPE and cache write", op="rope", main=True, query_len=32)
_MERGE = ShippedCall(name="merge", op="merge", main=True, query_len=32)
_ENCODER = ShippedCall(name="encoder", op="varlen", attn_type=AttentionType.ENCODER, requests=32, query_len=1500, seq_len=1500)
_CROSS: dict[str, Any] = {"attn_type": AttentionType.ENCODER_DECODER, "seq_len": 1500}
_WHISPER: dict[str, Any] = {"num_heads": 20, "num_kv_heads": 20, "head_size": 64}

CALLS: tuple[ShippedCall, ...] = (
    DECODE,
    PREFILL,
    DECODE.named("split", main=True, **_FEW),
    DECODE.named("4 queries", main=True, query_len=4),
    PREFILL.named("rules", main=True, **_RULES),
    PREFILL.named("small cache", cache_bytes=SMALL_CACHE_BYTES),
    DECODE.named("small cache", cache_bytes=SMALL_CACHE_BYTES),
    PREFILL.named("batch-invariant", batch_invariant=True),
    DECODE.named("batch-invariant", batch_invariant=True),
    PREFILL.named("sinks, window 128, H64/HK8 D64", num_heads=64, head_size=64, sinks=True, window=128),
    DECODE.named("sinks, window 128, H64/HK8 D64", num_heads=64, head_size=64, sinks=True, window=128),
    PREFILL.named("float8 output", main=True, float8_output=True),
    DECODE.named("split, float8 output", float8_output=True, **_FEW),
    *(
        phase.named(f"{name} D{head_size}", dtype=dtype, head_size=head_size, main=main)
        for phase in (DECODE, PREFILL)
        for name, dtype, head_size, main in (
            ("bf16", _BF16, 64, False),
            ("bf16", _BF16, 80, False),
            ("bf16", _BF16, 96, False),
            ("bf16", _BF16, 192, False),
            ("bf16", _BF16, 256, phase is PREFILL),
            ("fp16", _FP16, 80, phase is PREFILL),
            ("fp16", _FP16, 128, False),
            ("fp32", _FP32, 64, False),
            ("fp32", _FP32, 128, phase is PREFILL),
            ("fp32", _FP32, 256, phase is PREFILL),
        )
    ),
    *(
        phase.named(f"{name} D{head_size}" if head_size != 128 else name, head_size=head_size, **fields)
        for head_size in (64, 128, 256)
        for phase, name, fields in (
            (DECODE, "mixed", {"longest": 2048}),
            (PREFILL, "window 128", {"window": 128}),
            (PREFILL, "window 1024", {"window": 1024}),
            (PREFILL, "soft cap", {"soft_cap": 50.0}),
        )
    ),
    DECODE.named("rules", **_RULES),
    DECODE.named("split, rules", **_FEW, **_RULES),
    DECODE.named("mixed, rules", longest=2048, **_RULES),
    *(PREFILL.named(f"rules D{head_size}", head_size=head_size, **_RULES) for head_size in (64, 256)),
    PREFILL.named("rules, int8 cache", cache_dtype=_INT8, token_scales=True, **_RULES),
    PREFILL.named("rules, batch-invariant", batch_invariant=True, **_RULES),
    *(
        PREFILL.named("chunks" if head_size == 128 else f"chunks D{head_size}", head_size=head_size, chunk=1024)
        for head_size in (64, 128, 256)
    ),
    *(
        PREFILL.named("2 requests" if head_size == 128 else f"2 requests D{head_size}", head_size=head_size, **_TWO)
        for head_size in (64, 128, 256)
    ),
    DECODE.named("mixed, e4m3fn cache", longest=2048, cache_dtype=_E4M3FN),
    *(
        phase.named(name if head_size == 128 else f"{name} D{head_size}", head_size=head_size, main=head_size == 128, **fields)
        for phase in (DECODE, PREFILL)
        for name, fields in _CACHES.items()
        for head_size in (128, 256)
    ),
    *(
        phase.named(name, main=phase is PREFILL and name in _MAIN_LAYOUTS, **fields)
        for phase in (DECODE, PREFILL)
        for name, fields in _LAYOUTS.items()
    ),
    replace(_ENCODER, main=True),
    _ENCODER.named("Whisper", **_WHISPER),
    _ENCODER.named("fp32", dtype=_FP32),
    _ENCODER.named("ALiBi D64", head_size=64, alibi=True),
    replace(DECODE, name="cross-attention, Whisper, decode", main=False, **_CROSS, **_WHISPER),
    replace(PREFILL, name="cross-attention, Whisper, prefill", main=False, **_CROSS, **_WHISPER),
    ShippedCall(name="cascade", op="cascade", prefix=4096),
    ShippedCall(name="cascade, soft cap", op="cascade", prefix=4096, soft_cap=50.0),
    _WRITE,
    _WRITE.named("fp32", dtype=_FP32),
    *(_WRITE.named(name, main=True, **fields) for name, fields in _CACHES.items()),
    *(_WRITE.named(name, **fields) for name, fields in _LAYOUTS.items()),
    _ROPE,
    _ROPE.named("fp32", main=True, dtype=_FP32),
    _ROPE.named("fp16", dtype=_FP16),
    *(_ROPE.named(name, **fields) for name, fields in _CACHES.items()),
    *(_ROPE.named(f"{layout} e4m3fn", main=True, layout=layout, cache_dtype=_E4M3FN) for layout in _MAIN_LAYOUTS),
    _ROPE.named("CONTENT_PACKED_SCALED int8", **_LAYOUTS["CONTENT_PACKED_SCALED int8"]),
    _MERGE,
    _MERGE.named("fp16 D80", dtype=_FP16, head_size=80),
    _MERGE.named("fp32", dtype=_FP32),
)
"""What serving launches, in every phase, with every kind of cache and of rule; each name once."""


def chosen(architecture: str, *, only: str = "", main: bool = False) -> dict[str, KernelCall]:
    """Launches by name, those whose names hold a text, or the main ones."""
    calls: dict[str, KernelCall] = {}
    for shipped in CALLS:
        if main <= shipped.main:
            calls |= {name: call for name, call in kernel_calls(shipped, architecture).items() if only in name}
    return calls

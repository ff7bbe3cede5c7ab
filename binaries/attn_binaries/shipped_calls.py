"""The launches that serving needs, by name (shipped_calls.toml). They are compiled without a GPU.

Their tensors are on the device meta, and take no memory.
"""

import functools
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import torch
from attn_binaries.architectures import ARCHITECTURES
from attn_contract import (
    AttentionType,
    Batch,
    ContractError,
    Indexer,
    IndexLayout,
    IndexScore,
    KVCacheView,
    Layer,
    Layout,
    ScaleFormat,
)
from attn_optimized.attention import paged_attention_calls, plan_of, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.indexer import index_logits_call, select_call, write_index_cache_call
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.latent_cache import write_latent_cache_call
from attn_optimized.merge import merge_attn_parts_call, merge_attn_states_call

CACHE_BYTES = 8 << 30
"""The bytes of a layer's cache: more than AMD's buffer instructions reach, as on GPUs in service."""
MAX_POSITION = 32768
WRITES = {
    "write": ("write_kv_cache", write_kv_cache_call),
    "write latent": ("write_latent_cache", write_latent_cache_call),
    "rope": ("rope_and_write_kv_cache", rope_and_write_kv_cache_call),
}
"""The ops that write a cache: the public function, by its field of Target, and its launch."""
MERGES = {"merge": merge_attn_states_call, "merge parts": merge_attn_parts_call}
"""The ops that merge outputs, and their launches."""
MERGED_PARTS = 8
"""The number of parts of a merge: the ranks of a node."""


@dataclass(frozen=True, kw_only=True)
class ShippedCall:
    """A step of a layer. Fields are named as in `attn_contract`. For a tensor of Layer or Batch, the field is a size or a flag.

    Attributes:
        name: the name of the launch in budgets and tables.
        main: True if every change compiles this launch.
        cache_bytes: the size of the layer's allocation.
        token_scales: True if a quantized cache has a scale per token and head. The layout says whether the cache holds them.
        requests, query_len: the number of requests, and the queries of each.
        longest: the queries of one longer request, which replaces one of the requests; 0 for none.
        prefix: the number of keys that all requests share, for "cascade".
        head_size_v: the width of V, as in Layer.
        window: the number of keys that a query sees, with its own.
        bidirectional_ranges: the number of ranges of each request.
        float8_output: True if the output is e4m3fn, with a scale.
        float8_queries: True if q is of kv_cache_dtype, with a scale.
        indexer: the index layer of an op "index ...", which of the other fields has cache_bytes, dtype, block_size and the
            lengths.
    """

    name: str
    op: Literal[
        "paged", "varlen", "cascade", "write", "write latent", "rope", "merge", "merge parts",
        "index write", "index logits", "index select",
    ] = "paged"  # fmt: skip
    main: bool = False
    dtype: torch.dtype = torch.bfloat16
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    head_size_v: int | None = None
    block_size: int = 16
    layout: Layout = Layout.BLOCKS_FIRST_NHD
    cache_bytes: int = CACHE_BYTES
    kv_cache_dtype: torch.dtype | None = None
    token_scales: bool = False
    attn_type: AttentionType = AttentionType.DECODER
    requests: int = 1024
    query_len: int = 1
    longest: int = 0
    seq_len: int = 8192
    prefix: int = 0
    window: int | None = None
    chunked_local: int | None = None
    sink_tokens: int = 0
    key_unit: int | None = None
    bidirectional_ranges: int = 0
    logits_soft_cap: float | None = None
    alibi_slopes: bool = False
    sinks: bool = False
    batch_invariant: bool = False
    float8_output: bool = False
    float8_queries: bool = False
    indexer: Indexer | None = None


def kernel_calls(shipped: ShippedCall, architecture: str) -> dict[str, KernelCall]:
    """The launches of a call on a GPU, by name. The first launch has the name of the call.

    Raises:
        ContractError: the number of compute units of the GPU is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ContractError("architecture", repr(architecture), f"one of {', '.join(ARCHITECTURES)}")
    calls: dict[str, KernelCall] = {}
    launches = _launches if shipped.indexer is None else _launches_of_index_layer
    for call in launches(shipped, architecture):
        part = "reduction" if call.launch.kernel is reduce_parts_kernel else "suffix"
        calls[f"{shipped.name}, {part}" if calls else shipped.name] = call
    return calls


def name_of_call(launch: str) -> str:
    """The name of the call that a launch belongs to."""
    return launch.removesuffix(", reduction").removesuffix(", suffix")


class Step(NamedTuple):
    """The arguments of a call on meta, without its cache. k and v hold the tokens of the step."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch
    out: torch.Tensor


def step_of(shipped: ShippedCall) -> Step:
    num_tokens = (shipped.requests - 1) * shipped.query_len + max(shipped.query_len, shipped.longest)
    heads, kv_heads = shipped.num_heads, shipped.num_kv_heads
    q, k, v = _rows(shipped, num_tokens, heads + 2 * kv_heads).split([heads, kv_heads, kv_heads], dim=1)
    if shipped.float8_queries:
        q = _rows(shipped, num_tokens, heads, shipped.kv_cache_dtype)
    out = _rows(shipped, num_tokens, heads, torch.float8_e4m3fn if shipped.float8_output else shipped.dtype)
    out = out[..., : shipped.head_size_v].contiguous()
    return Step(q, k, v[..., : shipped.head_size_v], _layer(shipped), _batch(shipped, num_tokens), out)


def _launches(shipped: ShippedCall, architecture: str) -> Iterator[KernelCall]:
    q, k, v, layer, batch, out = step_of(shipped)
    num_tokens, heads = len(q), shipped.num_heads
    gpu: dict[str, Any] = {"architecture": architecture, "compute_units": ARCHITECTURES[architecture].compute_units}
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
        case "write latent":
            kv_c, k_pe = _empty((num_tokens, shipped.head_size), shipped.dtype).tensor_split([layer.v_head_size], dim=1)
            arguments = (kv_c, k_pe, _cache(shipped), layer, _integers(num_tokens))
            yield write_latent_cache_call(*arguments, architecture=architecture)
        case "rope":
            positions, cos_sin = _integers(num_tokens), _empty((MAX_POSITION, shipped.head_size), torch.float32)
            arguments = (q, k, v, positions, cos_sin, _cache(shipped), layer, _integers(num_tokens))
            yield rope_and_write_kv_cache_call(*arguments, is_neox=True, architecture=architecture)
        case "merge":
            lse = _empty((heads, num_tokens), torch.float32)
            whole = _rows(shipped, num_tokens, heads)
            yield merge_attn_states_call(whole, lse, whole, lse, out=out, lse=lse, architecture=architecture)
        case "merge parts":
            outs = _empty((MERGED_PARTS, *out.shape), shipped.dtype)
            lses = _empty((MERGED_PARTS, heads, num_tokens), torch.float32)
            yield merge_attn_parts_call(outs, lses, out=out, lse=lses[0], architecture=architecture)


def _launches_of_index_layer(shipped: ShippedCall, architecture: str) -> Iterator[KernelCall]:
    indexer = shipped.indexer
    assert indexer is not None
    num_tokens = shipped.requests * shipped.query_len
    batch, units = _batch(shipped, num_tokens), indexer.num_units(shipped.seq_len)
    logits = _empty((indexer.num_selections, num_tokens, units), torch.float32)
    cache_dtype = indexer.cache_dtype or shipped.dtype
    page = shipped.block_size * indexer.row_size * cache_dtype.itemsize
    shape = shipped.cache_bytes // page, shipped.block_size, indexer.row_size
    cache = _empty(shape, torch.uint8 if indexer.layout.has_scales else cache_dtype)
    match shipped.op:
        case "index write":
            k = _empty((num_tokens, indexer.head_size), shipped.dtype)
            yield write_index_cache_call(k, cache, indexer, _integers(num_tokens), architecture=architecture)
        case "index logits":
            q = _empty((num_tokens, indexer.num_heads, indexer.head_size), cache_dtype)
            weights = _empty((num_tokens, indexer.num_heads), torch.float32) if indexer.score is IndexScore.SUM_RELU else None
            yield index_logits_call(q, weights, cache, indexer, batch, logits=logits, architecture=architecture)
        case "index select":
            selected = _empty((indexer.num_selections, num_tokens, indexer.selected_width), torch.int32)
            yield select_call(logits, indexer, batch, selected=selected, architecture=architecture)


def _layer(shipped: ShippedCall) -> Layer:
    scales: dict[str, Any] = {}
    if shipped.token_scales and not shipped.layout.has_inline_scales:
        shape = (_num_blocks(shipped), shipped.block_size, shipped.num_kv_heads)
        scales = {name: _empty(shape, torch.float32) for name in ("k_scale_cache", "v_scale_cache")}
    elif shipped.kv_cache_dtype and not (shipped.token_scales or shipped.layout.has_inline_scales):
        names = ("k_scale",) if shipped.layout.has_latent_value else ("k_scale", "v_scale")
        scales = {name: _empty((), torch.float32) for name in names}
    reads_cache = shipped.attn_type.reads_cache
    return Layer(
        num_heads=shipped.num_heads,
        num_kv_heads=shipped.num_kv_heads,
        head_size=shipped.head_size,
        head_size_v=shipped.head_size_v,
        scale=shipped.head_size**-0.5,
        attn_type=shipped.attn_type,
        window=(-1, -1) if shipped.window is None else (shipped.window - 1, shipped.window - 1),
        sink_tokens=shipped.sink_tokens,
        key_unit=shipped.key_unit,
        chunked_local=shipped.chunked_local,
        logits_soft_cap=shipped.logits_soft_cap,
        q_scale=_empty((), torch.float32) if shipped.float8_queries else None,
        alibi_slopes=_empty((shipped.num_heads,), torch.float32) if shipped.alibi_slopes else None,
        sinks=_empty((shipped.num_heads,), torch.float32) if shipped.sinks else None,
        layout=shipped.layout if reads_cache else None,
        kv_cache_dtype=shipped.kv_cache_dtype,
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
        bidirectional_ranges=_empty((shipped.requests, shipped.bidirectional_ranges, 2), torch.int32)
        if shipped.bidirectional_ranges
        else None,
    )


def _cache(shipped: ShippedCall) -> torch.Tensor:
    view = cache_view(shipped)
    return view.tensor(_empty((view.end,), shipped.kv_cache_dtype or shipped.dtype))


def cache_view(shipped: ShippedCall) -> KVCacheView:
    """The view of a cache of `cache_bytes`."""
    dtype = shipped.kv_cache_dtype or shipped.dtype
    return KVCacheView.dense(
        shipped.layout,
        num_blocks=_num_blocks(shipped),
        block_size=shipped.block_size,
        num_kv_heads=shipped.num_kv_heads,
        head_size=shipped.head_size,
        itemsize=dtype.itemsize,
        head_size_v=shipped.head_size_v,
    )


def _num_blocks(shipped: ShippedCall) -> int:
    key, value = shipped.layout.row_sizes(shipped.head_size, shipped.head_size_v)
    row = key if shipped.layout.has_latent_value else key + value
    itemsize = (shipped.kv_cache_dtype or shipped.dtype).itemsize
    return shipped.cache_bytes // (shipped.block_size * shipped.num_kv_heads * row * itemsize)


def _rows(shipped: ShippedCall, num_tokens: int, num_heads: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _empty((num_tokens, num_heads, shipped.head_size), dtype or shipped.dtype)


def _integers(size: int) -> torch.Tensor:
    return _empty((size,), torch.int64)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _read() -> Iterator[ShippedCall]:
    """Read shipped_calls.toml; its head explains its form."""
    text = (files("attn_binaries") / "shipped_calls.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    groups = tables.pop("groups")
    for kind, table in tables.items():
        variants = table.pop("variants", {})
        fields = _fields(table, groups)
        yield ShippedCall(name=kind, **fields)
        for variant, own in variants.items():
            of_variant: dict[str, Any] = {**fields, "main": False, **_fields(own, groups)}
            yield ShippedCall(name=f"{kind}, {variant}", **of_variant)


def _fields(table: dict[str, Any], groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fields of an entry and of its groups, under the names of `ShippedCall`."""
    fields = table.copy()
    named = [name for group in fields.pop("with", ()) for name in groups[group].items()]
    return _values([*named, *fields.items()], _OF_TEXT)


def _values(entries: Iterable[tuple[str, Any]], of_text: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {name: of_text[name](value) if name in of_text else value for name, value in entries}


_OF_INDEXER: dict[str, Callable[[Any], Any]] = {
    "score": IndexScore,
    "layout": IndexLayout,
    "cache_dtype": lambda name: getattr(torch, name),
    "scale_format": ScaleFormat,
}
_OF_TEXT: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda name: getattr(torch, name),
    "kv_cache_dtype": lambda name: getattr(torch, name),
    "layout": lambda name: Layout[name],
    "attn_type": lambda name: AttentionType[name],
    "indexer": lambda fields: Indexer(**_values(fields.items(), _OF_INDEXER)),
}
CALLS: tuple[ShippedCall, ...] = tuple(_read())
"""The calls that serving makes, in every phase, with every kind of cache and of rule; each name once."""


def chosen(architecture: str, *, only: str = "", main: bool = False) -> dict[str, KernelCall]:
    """The launches whose names hold a text, by name; with `main`, those of them that every change compiles."""
    calls: dict[str, KernelCall] = {}
    for shipped in CALLS:
        if main <= shipped.main:
            calls |= {name: call for name, call in kernel_calls(shipped, architecture).items() if only in name}
    return calls


@functools.lru_cache(maxsize=1)
def all_of(architecture: str) -> dict[str, KernelCall]:
    """All launches of an architecture, by name. The result is kept, because a process compiles many of them."""
    return chosen(architecture)

"""The border of every call: shapes, dtypes, strides and host values always, values in tensors with `values=True`.

Reading a value from a device synchronizes with it, so implementations that ship read none unless asked to. Each check raises
ContractError, and all of them run before anything is written.
"""

import torch

from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT_DTYPES, AttentionType, Layer
from attn_contract.layouts import KVCacheView, Layout, overlaps_itself


def check_paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    *,
    values: bool,
) -> KVCacheView:
    """Check a call of paged attention; return the cache's view, read back from its tensor."""
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that reads the KV cache; use varlen_attention")
    _check_query(q, layer, batch, out, lse)
    view = _check_cache(kv_cache, layer.layout, q)
    if view.num_kv_heads != layer.num_kv_heads or view.head_size != layer.head_size:
        raise ContractError(
            "kv_cache",
            f"{view.num_kv_heads} heads of size {view.head_size} (shape {tuple(kv_cache.shape)} as {layer.layout})",
            f"{layer.num_kv_heads} heads of size {layer.head_size}",
        )
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: this layer reads the KV cache")
    if layer.attn_type is AttentionType.ENCODER_DECODER and batch.causal is not False:
        raise ContractError(
            "causal", _describe(batch.causal), "False for ENCODER_DECODER: each query sees all the encoder's tokens"
        )
    if values:
        _check_lengths(batch)
        _check_block_table(batch, view)
        _check_sink_values(layer)
    return view


def check_varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    *,
    values: bool,
) -> None:
    """Check a call of dense varlen attention (ENCODER, ENCODER_ONLY)."""
    if layer.layout is not None:
        raise ContractError("layer.attn_type", layer.attn_type, "ENCODER or ENCODER_ONLY; use paged_attention")
    _check_query(q, layer, batch, out, lse)
    _check_key_value(k, v, q)
    if tuple(k.shape[1:]) != (layer.num_kv_heads, layer.head_size):
        raise ContractError("k", f"shape {tuple(k.shape)}", f"shape (T_kv, {layer.num_kv_heads}, {layer.head_size})")
    if len(k) < batch.num_actual_tokens:
        raise ContractError("k", f"{len(k)} rows", f"at least num_actual_tokens ({batch.num_actual_tokens})")
    for name in ("block_table", "slot_mapping"):
        if getattr(batch, name) is not None:
            raise ContractError(name, "a tensor", f"None: {layer.attn_type} has no KV cache")
    if batch.causal is not False:
        raise ContractError("causal", _describe(batch.causal), f"False for {layer.attn_type}: it is bidirectional")
    if values:
        query_lens = _check_lengths(batch)
        different = (batch.seq_lens.cpu() != query_lens).nonzero()
        if len(different):
            r = int(different[0])
            raise ContractError(
                f"seq_lens[{r}]",
                int(batch.seq_lens[r]),
                f"{int(query_lens[r])}, the request's query length: its keys are its own tokens",
            )
        _check_sink_values(layer)


def check_write_kv_cache(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layout: Layout, slot_mapping: torch.Tensor, *, values: bool
) -> KVCacheView:
    """Check a cache write; return the cache's view, read back from its tensor."""
    _check_key_value(k, v, kv_cache)
    view = _check_cache(kv_cache, layout, k)
    if tuple(k.shape[1:]) != (view.num_kv_heads, view.head_size):
        raise ContractError(
            "k",
            f"shape {tuple(k.shape)}",
            f"shape (T_kv, {view.num_kv_heads}, {view.head_size}), as kv_cache {tuple(kv_cache.shape)} as {layout} has",
        )
    if slot_mapping.dim() != 1 or slot_mapping.dtype != torch.int64:
        raise ContractError("slot_mapping", f"{slot_mapping.dtype} {tuple(slot_mapping.shape)}", "torch.int64 of one dimension")
    if len(slot_mapping) > 1 and slot_mapping.stride(0) != 1:
        raise ContractError("slot_mapping", f"stride {slot_mapping.stride(0)}", "stride 1: it must be dense")
    if len(slot_mapping) > len(k):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(k)} rows of k and v")
    _check_device("slot_mapping", slot_mapping, k)
    if values:
        _check_slots(slot_mapping, view)
    return view


def check_merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> None:
    """Check a merge of two attention states, out [T, H, D] and lse [H, T] each."""
    if out_a.dim() != 3 or out_a.dtype not in FLOAT_DTYPES:
        raise ContractError("out_a", f"{out_a.dtype} {tuple(out_a.shape)}", "(T, H, D) of float32, float16 or bfloat16")
    for name, tensor in {"out_a": out_a, "out_b": out_b, "out": out}.items():
        if tensor is None:
            continue
        if tensor.shape != out_a.shape or tensor.dtype != out_a.dtype:
            raise ContractError(
                name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{out_a.dtype} {tuple(out_a.shape)}, as out_a has"
            )
        _check_dense_last(name, tensor)
        _check_device(name, tensor, out_a)
    for name, tensor in {"lse_a": lse_a, "lse_b": lse_b, "lse": lse}.items():
        if tensor is not None:
            _check_lse(name, tensor, out_a)
    _check_written("out", out)
    _check_written("lse", lse)


def _check_query(q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
    if q.dim() != 3 or tuple(q.shape[1:]) != (layer.num_heads, layer.head_size):
        raise ContractError("q", f"shape {tuple(q.shape)}", f"shape (T, {layer.num_heads}, {layer.head_size})")
    if q.dtype not in FLOAT_DTYPES:
        raise ContractError("q", q.dtype, "float32, float16 or bfloat16")
    _check_dense_last("q", q)
    if batch.num_actual_tokens > len(q):
        raise ContractError("num_actual_tokens", batch.num_actual_tokens, f"at most the {len(q)} rows of q")
    if out is not None:
        shapes = (tuple(q.shape), (len(q), layer.num_heads * layer.head_size))
        if tuple(out.shape) not in shapes:
            raise ContractError("out", f"shape {tuple(out.shape)}", f"shape {shapes[0]} or {shapes[1]}")
        if out.dtype != q.dtype:
            raise ContractError("out", out.dtype, f"{q.dtype}, as q has")
        _check_dense_last("out", out)
        _check_device("out", out, q)
        _check_written("out", out)
    if lse is not None:
        _check_lse("lse", lse, q)
        _check_written("lse", lse)
    for name, tensor in batch.tensors.items():
        _check_device(name, tensor, q)
    if layer.sinks is not None:
        _check_device("sinks", layer.sinks, q)


def _check_key_value(k: torch.Tensor, v: torch.Tensor, like: torch.Tensor) -> None:
    for name, tensor in {"k": k, "v": v}.items():
        if tensor.dim() != 3:
            raise ContractError(name, f"shape {tuple(tensor.shape)}", "shape (T_kv, num_kv_heads, head_size)")
        if tensor.dtype != like.dtype:
            raise ContractError(name, tensor.dtype, f"{like.dtype}: one dtype for q, k, v and the cache")
        _check_dense_last(name, tensor)
        _check_device(name, tensor, like)
    if k.shape != v.shape:
        raise ContractError("v", f"shape {tuple(v.shape)}", f"shape {tuple(k.shape)}, as k has")


def _check_cache(kv_cache: torch.Tensor, layout: Layout, like: torch.Tensor) -> KVCacheView:
    if not isinstance(layout, Layout):
        raise ContractError("layout", repr(layout), f"one of {', '.join(Layout)}")
    if kv_cache.dtype not in FLOAT_DTYPES:
        raise ContractError("kv_cache", kv_cache.dtype, "float32, float16 or bfloat16")
    if kv_cache.dtype != like.dtype:
        raise ContractError("kv_cache", kv_cache.dtype, f"{like.dtype}: one dtype for q, k, v and the cache")
    _check_device("kv_cache", kv_cache, like)
    return KVCacheView.of(kv_cache, layout)


def _check_lse(name: str, lse: torch.Tensor, out: torch.Tensor) -> None:
    expected = (out.shape[1], out.shape[0])
    if tuple(lse.shape) != expected or lse.dtype != torch.float32:
        raise ContractError(name, f"{lse.dtype} {tuple(lse.shape)}", f"torch.float32 {expected}: heads, then tokens")
    _check_dense_last(name, lse)
    _check_device(name, lse, out)


def _check_dense_last(name: str, tensor: torch.Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ContractError(name, f"stride {tensor.stride(-1)} in the last dimension", "1: it must be dense")


def _check_written(name: str, tensor: torch.Tensor | None) -> None:
    if tensor is not None and overlaps_itself(tensor.shape, tensor.stride()):
        raise ContractError(name, f"strides {tuple(tensor.stride())}", "elements that do not share memory")


def _check_device(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    if tensor.device != like.device:
        raise ContractError(name, tensor.device, f"{like.device}, where the other tensors are")


def _check_lengths(batch: Batch) -> torch.Tensor:
    """Check query_start_loc and seq_lens against each other and the bounds; return the query lengths."""
    starts = batch.query_start_loc.cpu()
    if starts[0] != 0:
        raise ContractError("query_start_loc[0]", int(starts[0]), "0")
    query_lens = starts.diff()
    if len(falls := (query_lens < 0).nonzero()):
        r = int(falls[0])
        raise ContractError(
            f"query_start_loc[{r + 1}]", int(starts[r + 1]), f"at least {int(starts[r])}: a prefix sum does not fall"
        )
    if starts[-1] > batch.num_actual_tokens:
        raise ContractError("query_start_loc[-1]", int(starts[-1]), f"at most num_actual_tokens ({batch.num_actual_tokens})")
    if len(long := (query_lens > batch.max_query_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_query_len", batch.max_query_len, f"at least {int(query_lens[r])}, request {r}'s query length")
    seq_lens = batch.seq_lens.cpu()
    if len(negative := (seq_lens < 0).nonzero()):
        r = int(negative[0])
        raise ContractError(f"seq_lens[{r}]", int(seq_lens[r]), "at least 0")
    if len(long := (seq_lens > batch.max_seq_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_seq_len", batch.max_seq_len, f"at least {int(seq_lens[r])}, request {r}'s length")
    return query_lens


def _check_block_table(batch: Batch, view: KVCacheView) -> None:
    assert batch.block_table is not None
    table, seq_lens = batch.block_table.cpu(), batch.seq_lens.cpu()
    capacity = table.shape[1] * view.block_size
    if len(long := (seq_lens > capacity).nonzero()):
        r = int(long[0])
        raise ContractError(
            f"seq_lens[{r}]",
            int(seq_lens[r]),
            f"at most {capacity}: block_table has {table.shape[1]} columns of {view.block_size} slots",
        )
    blocks_used = (seq_lens + view.block_size - 1) // view.block_size
    used = torch.arange(table.shape[1]) < blocks_used[:, None]
    if len(wrong := (used & ((table < 0) | (table >= view.num_blocks))).nonzero()):
        r, i = wrong[0].tolist()
        raise ContractError(f"block_table[{r}, {i}]", int(table[r, i]), f"a block of the cache, 0 to {view.num_blocks - 1}")


def _check_slots(slot_mapping: torch.Tensor, view: KVCacheView) -> None:
    slots = slot_mapping.cpu()
    if len(wrong := ((slots < -1) | (slots >= view.num_slots)).nonzero()):
        s = int(wrong[0])
        raise ContractError(
            f"slot_mapping[{s}]", int(slots[s]), f"-1 (write nothing) or a slot of the cache, 0 to {view.num_slots - 1}"
        )
    written = slots[slots >= 0].sort().values
    if len(twice := (written.diff() == 0).nonzero()):
        raise ContractError("slot_mapping", f"slot {int(written[twice[0]])} twice", "every slot at most once")


def _check_sink_values(layer: Layer) -> None:
    if layer.sinks is None:
        return
    sinks = layer.sinks.float().cpu()
    if len(wrong := (sinks.isnan() | (sinks == torch.inf)).nonzero()):
        h = int(wrong[0])
        raise ContractError(f"sinks[{h}]", float(sinks[h]), "a finite logit or -inf (no sink)")


def _describe(causal: bool | torch.Tensor) -> str:
    return f"a tensor of {len(causal)} flags" if isinstance(causal, torch.Tensor) else repr(causal)

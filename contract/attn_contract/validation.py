"""The border of every call: shapes, dtypes, strides and host values always, values in tensors with `values=True`.

Reading a value from a device synchronizes with it, so implementations that ship read none unless asked to. Each check raises
ContractError, and all of them run before anything is written.
"""

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_tensor, check_type, check_vector
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
    _check_attention({"q": q, "kv_cache": kv_cache}, layer, batch, out, lse)
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
        _check_block_table(batch.block_table, batch.seq_lens, view)
        if batch.slot_mapping is not None:
            _check_slots(batch.slot_mapping, view)
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
    _check_attention({"q": q, "k": k, "v": v}, layer, batch, out, lse)
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
    check_vector("slot_mapping", slot_mapping, torch.int64)
    _check_tensors({"k": k, "v": v, "slot_mapping": slot_mapping}, {"kv_cache": kv_cache})
    _check_key_value(k, v, kv_cache)
    view = _check_cache(kv_cache, layout, k)
    if tuple(k.shape[1:]) != (view.num_kv_heads, view.head_size):
        raise ContractError(
            "k",
            f"shape {tuple(k.shape)}",
            f"shape (T_kv, {view.num_kv_heads}, {view.head_size}), as kv_cache {tuple(kv_cache.shape)} as {layout} has",
        )
    if len(slot_mapping) > len(k):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(k)} rows of k and v")
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
    """Check a merge of two attention states, out [T, H, D] and lse [H, T] each.

    Elements are merged one by one, so `out` may be `out_a` or `out_b` itself and `lse` their lse; it must not overlap them
    in any other way.
    """
    states = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    _check_tensors(states, _given(out=out, lse=lse), in_place={"out": ("out_a", "out_b"), "lse": ("lse_a", "lse_b")})
    if out_a.dim() != 3 or out_a.dtype not in FLOAT_DTYPES or 0 in out_a.shape[1:]:
        raise ContractError(
            "out_a", f"{out_a.dtype} {tuple(out_a.shape)}", "(T, H, D) of float32, float16 or bfloat16, H and D at least 1"
        )
    for name, tensor in {"out_a": out_a, "out_b": out_b, "out": out}.items():
        if tensor is None:
            continue
        if tensor.shape != out_a.shape or tensor.dtype != out_a.dtype:
            raise ContractError(
                name, f"{tensor.dtype} {tuple(tensor.shape)}", f"{out_a.dtype} {tuple(out_a.shape)}, as out_a has"
            )
        check_dense_last(name, tensor)
    for name, tensor in {"lse_a": lse_a, "lse_b": lse_b, "lse": lse}.items():
        if tensor is not None:
            _check_lse(name, tensor, out_a)


def _check_query(q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
    if q.dim() != 3 or tuple(q.shape[1:]) != (layer.num_heads, layer.head_size):
        raise ContractError("q", f"shape {tuple(q.shape)}", f"shape (T, {layer.num_heads}, {layer.head_size})")
    if q.dtype not in FLOAT_DTYPES:
        raise ContractError("q", q.dtype, "float32, float16 or bfloat16")
    check_dense_last("q", q)
    if batch.num_actual_tokens > len(q):
        raise ContractError("num_actual_tokens", batch.num_actual_tokens, f"at most the {len(q)} rows of q")
    if out is not None:
        shapes = (tuple(q.shape), (len(q), layer.num_heads * layer.head_size))
        if tuple(out.shape) not in shapes:
            raise ContractError("out", f"shape {tuple(out.shape)}", f"shape {shapes[0]} or {shapes[1]}")
        if out.dtype != q.dtype:
            raise ContractError("out", out.dtype, f"{q.dtype}, as q has")
        check_dense_last("out", out)
    if lse is not None:
        _check_lse("lse", lse, q)


def _check_key_value(k: torch.Tensor, v: torch.Tensor, like: torch.Tensor) -> None:
    for name, tensor in {"k": k, "v": v}.items():
        check_dims(name, tensor, ("T_kv", "num_kv_heads", "head_size"))
        if tensor.dtype != like.dtype:
            raise ContractError(name, tensor.dtype, f"{like.dtype}: one dtype for q, k, v and the cache")
        check_dense_last(name, tensor)
    if k.shape != v.shape:
        raise ContractError("v", f"shape {tuple(v.shape)}", f"shape {tuple(k.shape)}, as k has")


def _check_cache(kv_cache: torch.Tensor, layout: Layout, like: torch.Tensor) -> KVCacheView:
    if kv_cache.dtype not in FLOAT_DTYPES:
        raise ContractError("kv_cache", kv_cache.dtype, "float32, float16 or bfloat16")
    if kv_cache.dtype != like.dtype:
        raise ContractError("kv_cache", kv_cache.dtype, f"{like.dtype}: one dtype for q, k, v and the cache")
    return KVCacheView.of(kv_cache, layout)


def _check_lse(name: str, lse: torch.Tensor, out: torch.Tensor) -> None:
    expected = (out.shape[1], out.shape[0])
    if tuple(lse.shape) != expected or lse.dtype != torch.float32:
        raise ContractError(name, f"{lse.dtype} {tuple(lse.shape)}", f"torch.float32 {expected}: heads, then tokens")
    check_dense_last(name, lse)


def _check_attention(
    inputs: dict[str, torch.Tensor], layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None
) -> None:
    check_type("layer", layer, Layer, "a Layer")
    check_type("batch", batch, Batch, "a Batch")
    _check_tensors({**inputs, **batch.tensors, **_given(sinks=layer.sinks)}, _given(out=out, lse=lse))


def _given(**optional: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in optional.items() if tensor is not None}


def _check_tensors(
    read: dict[str, torch.Tensor], written: dict[str, torch.Tensor], in_place: dict[str, tuple[str, ...]] | None = None
) -> None:
    """Check all tensors of a call together: one device, no gradients, and memory of its own for whatever is written.

    Args:
        in_place: by name of a written tensor, those read that may be the very same view.
    """
    tensors = {**read, **written}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    first = next(iter(tensors))
    device, grad_enabled = tensors[first].device, torch.is_grad_enabled()
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ContractError(name, f"a tensor on {tensor.device}", f"{device}, where {first} is")
        if tensor.is_meta:
            raise ContractError(name, "a tensor on meta", "a device that has memory")
        if tensor.requires_grad and grad_enabled:
            raise ContractError(name, "requires_grad=True", "no gradients: there is no backward; call under torch.no_grad()")
    bytes_of = {name: _bytes_of(tensor) for name, tensor in tensors.items()}
    for name, tensor in written.items():
        if overlaps_itself(tensor.shape, tensor.stride()):
            raise ContractError(name, f"strides {tuple(tensor.stride())}", "elements that do not share memory")
        start, end = bytes_of[name]
        for other, (other_start, other_end) in bytes_of.items():
            if other == name or max(start, other_start) >= min(end, other_end):
                continue
            if other not in (in_place or {}).get(name, ()) or not _is_same_view(tensor, tensors[other]):
                raise ContractError(name, f"memory that reaches into {other}'s", "memory of its own: it is written")


def _bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of its first byte and of the end of its last element; what is interleaved with it lies between them."""
    start = tensor.data_ptr()
    if 0 in tensor.shape:
        return start, start
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _is_same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


def _check_lengths(batch: Batch) -> torch.Tensor:
    """Check query_start_loc and seq_lens against each other and the bounds; return the query lengths."""
    starts = batch.query_start_loc.cpu().long()  # differences of int32 may wrap
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


def _check_block_table(block_table: torch.Tensor, seq_lens: torch.Tensor, view: KVCacheView) -> None:
    table, seq_lens = block_table.cpu(), seq_lens.cpu().long()
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

"""The border of every call: shapes, dtypes, strides and host values always, values in tensors with `values=True`.

Reading a value from a device synchronizes with it, so implementations that ship read none unless asked to. Each check raises
ContractError, and all of them run before anything is written.
"""

import torch

from attn_contract.arguments import check_dense_last, check_dims, check_int, check_tensor, check_type, check_vector
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, Layer
from attn_contract.layouts import KVCacheView, overlaps_itself
from attn_contract.rules import held_rules
from attn_contract.signatures import memory_of

_SCALES = ("k_scale", "v_scale", "k_scale_cache", "v_scale_cache")


def check_attention_tensors(
    inputs: dict[str, torch.Tensor], layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None
) -> None:
    """Check what the signatures of a call's arguments do not say: devices, gradients and memory."""
    check_type("layer", layer, Layer, "a Layer")
    check_type("batch", batch, Batch, "a Batch")
    _check_tensors({**inputs, **layer.tensors}, _given(out=out, lse=lse), step=batch)


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
    check_attention_tensors({"q": q, "kv_cache": kv_cache}, layer, batch, out, lse)
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that reads the KV cache; use varlen_attention")
    _check_rules_of_step(layer, batch)
    _check_query(q, layer, batch, out, lse)
    view = _check_cache(kv_cache, layer, q)
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: this layer reads the KV cache")
    if layer.attn_type is AttentionType.ENCODER_DECODER and batch.causal is not False:
        raise ContractError(
            "causal", _describe(batch.causal), "False for ENCODER_DECODER: each query sees all the encoder's tokens"
        )
    if values:
        check_lengths(batch)
        _check_block_table(batch.block_table, batch.seq_lens, view)
        if batch.slot_mapping is not None:
            _check_slots(batch.slot_mapping, view)
        _check_logit_values(layer, batch)
        _check_scale_values(layer.tensors)
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
    check_attention_tensors({"q": q, "k": k, "v": v}, layer, batch, out, lse)
    if layer.layout is not None:
        raise ContractError("layer.attn_type", layer.attn_type, "ENCODER or ENCODER_ONLY; use paged_attention")
    _check_rules_of_step(layer, batch)
    _check_query(q, layer, batch, out, lse)
    _check_rows_of_step(k, v, q, layer, batch)
    for name in ("block_table", "slot_mapping"):
        if getattr(batch, name) is not None:
            raise ContractError(name, "a tensor", f"None: {layer.attn_type} has no KV cache")
    if batch.causal is not False:
        raise ContractError("causal", _describe(batch.causal), f"False for {layer.attn_type.name}: it is bidirectional")
    if values:
        query_lens = check_lengths(batch)
        different = (batch.seq_lens.cpu() != query_lens).nonzero()
        if len(different):
            r = int(different[0])
            raise ContractError(
                f"seq_lens[{r}]",
                int(batch.seq_lens[r]),
                f"{int(query_lens[r])}, the request's query length: its keys are its own tokens",
            )
        _check_logit_values(layer, batch)
        _check_scale_values(layer.tensors)


def check_own_tokens(
    k: torch.Tensor, v: torch.Tensor, q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None
) -> None:
    """Check a step's own keys and values [T_kv, HK, D], which a prefill may read beside the cache of check_paged_attention."""
    _check_tensors({"q": q, "k": k, "v": v}, _given(out=out))
    _check_rows_of_step(k, v, q, layer, batch)


def check_lengths(batch: Batch, names: tuple[str, str] = ("query_start_loc", "seq_lens")) -> torch.Tensor:
    """Check query_start_loc and seq_lens, by what the caller calls them, against each other and the bounds.

    Returns:
        [R] int64, the query lengths, on the host.
    """
    start_name, seq_name = names
    starts = batch.query_start_loc.cpu().long()  # differences of int32 may wrap
    if starts[0] != 0:
        raise ContractError(f"{start_name}[0]", int(starts[0]), "0")
    query_lens = starts.diff()
    if len(falls := (query_lens < 0).nonzero()):
        r = int(falls[0])
        raise ContractError(
            f"{start_name}[{r + 1}]", int(starts[r + 1]), f"at least {int(starts[r])}: a prefix sum does not fall"
        )
    if starts[-1] > batch.num_actual_tokens:
        raise ContractError(f"{start_name}[-1]", int(starts[-1]), f"at most num_actual_tokens ({batch.num_actual_tokens})")
    if len(long := (query_lens > batch.max_query_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_query_len", batch.max_query_len, f"at least {int(query_lens[r])}, request {r}'s query length")
    seq_lens = batch.seq_lens.cpu()
    if len(negative := (seq_lens < 0).nonzero()):
        r = int(negative[0])
        raise ContractError(f"{seq_name}[{r}]", int(seq_lens[r]), "at least 0")
    if len(long := (seq_lens > batch.max_seq_len).nonzero()):
        r = int(long[0])
        raise ContractError("max_seq_len", batch.max_seq_len, f"at least {int(seq_lens[r])}, request {r}'s length")
    return query_lens


def check_write_kv_cache(
    k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor, *, values: bool
) -> KVCacheView:
    """Check a cache write; return the cache's view, read back from its tensor."""
    return _check_write({"k": k, "v": v}, kv_cache, layer, slot_mapping, written={}, values=values)


def check_gather_kv_cache(kv_cache: torch.Tensor, layer: Layer, block_table: torch.Tensor, seq_len: int) -> KVCacheView:
    """Check a reading of one request's keys and values, the block table [max_blocks] included; return the cache's view."""
    check_type("layer", layer, Layer, "a Layer")
    check_vector("block_table", block_table, torch.int32)
    check_int("seq_len", seq_len, minimum=0)
    scales = {name: tensor for name, tensor in layer.tensors.items() if name in _SCALES}
    _check_tensors({"kv_cache": kv_cache, "block_table": block_table, **scales}, {})
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that has a KV cache")
    if layer.kv_cache_dtype is None and kv_cache.dtype not in FLOAT_DTYPES:
        raise ContractError("kv_cache", kv_cache.dtype, "float32, float16 or bfloat16: the layer has no kv_cache_dtype")
    view = _check_cache(kv_cache, layer, kv_cache)
    _check_scale_values(scales)
    capacity = len(block_table) * view.block_size
    if seq_len > capacity:
        raise ContractError("seq_len", seq_len, f"at most {capacity}: block_table has {len(block_table)} blocks")
    used = block_table[: -(-seq_len // view.block_size)].cpu()
    if len(wrong := ((used < 0) | (used >= view.num_blocks)).nonzero()):
        i = int(wrong[0])
        raise ContractError(f"block_table[{i}]", int(used[i]), f"a block of the cache, 0 to {view.num_blocks - 1}")
    return view


def check_rope_and_write_kv_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    is_neox: bool,
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    values: bool,
) -> KVCacheView:
    """Check a rotation of q and k with the cache write of k and v; return the cache's view, read back from its tensor."""
    check_type("is_neox", is_neox, bool, "a bool")
    check_vector("positions", positions, torch.int64)
    read = {"k": k, "v": v, "positions": positions, "cos_sin_cache": cos_sin_cache}
    view = _check_write(read, kv_cache, layer, slot_mapping, written={"q": q}, values=values)
    if tuple(q.shape[1:]) != (layer.num_heads, layer.head_size):
        raise ContractError("q", f"shape {tuple(q.shape)}", f"shape (T, {layer.num_heads}, {layer.head_size})")
    if q.dtype != k.dtype:
        raise ContractError("q", q.dtype, f"{k.dtype}, as k has")
    check_dense_last("q", q)
    if len(positions) > len(q):
        raise ContractError("positions", f"{len(positions)} positions", f"at most the {len(q)} rows of q")
    if len(slot_mapping) > len(positions):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(positions)} positions")
    check_dims("cos_sin_cache", cos_sin_cache, ("max_position", "rotary_dim"))
    if cos_sin_cache.dtype not in (torch.float32, q.dtype):
        raise ContractError("cos_sin_cache", cos_sin_cache.dtype, f"torch.float32 or {q.dtype}, as q has")
    rotary_dim = cos_sin_cache.shape[1]
    if rotary_dim % 2 or not 0 < rotary_dim <= layer.head_size:
        raise ContractError(
            "cos_sin_cache",
            f"shape {tuple(cos_sin_cache.shape)}",
            f"an even rotary_dim, at most {layer.head_size}",
        )
    check_dense_last("cos_sin_cache", cos_sin_cache)
    if values:
        at = positions.cpu()
        if len(wrong := ((at < 0) | (at >= len(cos_sin_cache))).nonzero()):
            s = int(wrong[0])
            raise ContractError(f"positions[{s}]", int(at[s]), f"a row of cos_sin_cache, 0 to {len(cos_sin_cache) - 1}")
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


def _check_write(
    read: dict[str, torch.Tensor],
    kv_cache: torch.Tensor,
    layer: Layer,
    slot_mapping: torch.Tensor,
    *,
    written: dict[str, torch.Tensor],
    values: bool,
) -> KVCacheView:
    """What both cache writes ask for; `read` holds k and v among others."""
    check_type("layer", layer, Layer, "a Layer")
    check_vector("slot_mapping", slot_mapping, torch.int64)
    scales = {name: tensor for name, tensor in layer.tensors.items() if name in ("k_scale", "v_scale")}
    scale_caches = {name: tensor for name, tensor in layer.tensors.items() if name in ("k_scale_cache", "v_scale_cache")}
    _check_tensors({**read, "slot_mapping": slot_mapping, **scales}, {**written, "kv_cache": kv_cache, **scale_caches})
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that has a KV cache")
    k, v = read["k"], read["v"]
    if k.dtype not in FLOAT_DTYPES:
        raise ContractError("k", k.dtype, "float32, float16 or bfloat16")
    _check_key_value(k, v, k)
    view = _check_cache(kv_cache, layer, k)
    if tuple(k.shape[1:]) != (layer.num_kv_heads, layer.head_size):
        raise ContractError("k", f"shape {tuple(k.shape)}", f"shape (T_kv, {layer.num_kv_heads}, {layer.head_size})")
    if len(slot_mapping) > len(k):
        raise ContractError("slot_mapping", f"{len(slot_mapping)} slots", f"at most the {len(k)} rows of k and v")
    if values:
        _check_slots(slot_mapping, view)
        _check_scale_values(scales)
    return view


def _check_rules_of_step(layer: Layer, batch: Batch) -> None:
    for name, rule in held_rules(batch).items():
        rule.check_defined(getattr(batch, name), layer.attn_type)


def _check_query(q: torch.Tensor, layer: Layer, batch: Batch, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
    if tuple(q.shape[1:]) != (layer.num_heads, layer.head_size):
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
        if layer.output_scale is None and out.dtype != q.dtype:
            raise ContractError("out", out.dtype, f"{q.dtype}, as q has")
        if layer.output_scale is not None and out.dtype not in FLOAT8_DTYPES:
            raise ContractError("out", out.dtype, "float8_e4m3fn or float8_e4m3fnuz: there is an output_scale")
        check_dense_last("out", out)
    elif layer.output_scale is not None:
        raise ContractError("out", None, "a tensor of float8_e4m3fn or float8_e4m3fnuz: there is an output_scale")
    if lse is not None:
        _check_lse("lse", lse, q)


def _check_rows_of_step(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor, layer: Layer, batch: Batch) -> None:
    _check_key_value(k, v, q)
    if tuple(k.shape[1:]) != (layer.num_kv_heads, layer.head_size):
        raise ContractError("k", f"shape {tuple(k.shape)}", f"shape (T_kv, {layer.num_kv_heads}, {layer.head_size})")
    if len(k) < batch.num_actual_tokens:
        raise ContractError("k", f"{len(k)} rows", f"at least num_actual_tokens ({batch.num_actual_tokens})")


def _check_key_value(k: torch.Tensor, v: torch.Tensor, like: torch.Tensor) -> None:
    for name, tensor in {"k": k, "v": v}.items():
        check_dims(name, tensor, ("T_kv", "num_kv_heads", "head_size"))
        if tensor.dtype != like.dtype:
            raise ContractError(name, tensor.dtype, f"{like.dtype}: one dtype for q, k and v")
        check_dense_last(name, tensor)
    if k.shape != v.shape:
        raise ContractError("v", f"shape {tuple(v.shape)}", f"shape {tuple(k.shape)}, as k has")


def _check_cache(kv_cache: torch.Tensor, layer: Layer, like: torch.Tensor) -> KVCacheView:
    expected = layer.kv_cache_dtype or like.dtype
    if kv_cache.dtype != expected:
        why = "the layer's kv_cache_dtype" if layer.kv_cache_dtype else "one dtype for q, k, v and an unquantized cache"
        raise ContractError("kv_cache", kv_cache.dtype, f"{expected}: {why}")
    assert layer.layout is not None
    view = KVCacheView.of(kv_cache, layer.layout, num_kv_heads=layer.num_kv_heads, head_size=layer.head_size)
    for name in ("k_scale_cache", "v_scale_cache"):
        scales = layer.tensors.get(name)
        if scales is not None and tuple(scales.shape[:2]) != (view.num_blocks, view.block_size):
            raise ContractError(
                name, f"shape {tuple(scales.shape)}", f"shape ({view.num_blocks}, {view.block_size}, {view.num_kv_heads})"
            )
    return view


def _check_lse(name: str, lse: torch.Tensor, out: torch.Tensor) -> None:
    expected = (out.shape[1], out.shape[0])
    if tuple(lse.shape) != expected or lse.dtype != torch.float32:
        raise ContractError(name, f"{lse.dtype} {tuple(lse.shape)}", f"torch.float32 {expected}: heads, then tokens")
    check_dense_last(name, lse)


def _given(**optional: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in optional.items() if tensor is not None}


def _check_tensors(
    read: dict[str, torch.Tensor],
    written: dict[str, torch.Tensor],
    *,
    step: Batch | None = None,
    in_place: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Check all tensors of a call together: one device, no gradients, and memory of its own for whatever is written.

    Args:
        step: what is read beside `read`; it was checked by itself, and serves all layers.
        in_place: by name of a written tensor, those read that may be the very same view.
    """
    tensors = {**read, **written}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    first = next(iter(tensors))
    device, grad_enabled = tensors[first].device, torch.is_grad_enabled()
    if step is not None and (step.device != device or (grad_enabled and step.qq_bias is not None)):
        tensors |= step.tensors
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ContractError(name, f"a tensor on {tensor.device}", f"{device}, where {first} is")
        if grad_enabled and tensor.requires_grad:
            raise ContractError(name, "requires_grad=True", "no gradients: there is no backward; call under torch.no_grad()")
    if device.type == "meta":
        raise ContractError(first, "a tensor on meta", "a device that has memory")
    bytes_of = {name: memory_of(tensor) for name, tensor in tensors.items()}
    if step is not None:
        tensors |= step.tensors
        bytes_of |= step.memory
    for name, tensor in written.items():
        if overlaps_itself(tensor.shape, tensor.stride()):
            raise ContractError(name, f"strides {tuple(tensor.stride())}", "elements that do not share memory")
        start, end = bytes_of[name]
        for other, (other_start, other_end) in bytes_of.items():
            if end <= other_start or other_end <= start or other == name or start == end or other_start == other_end:
                continue
            if _are_interleaved(tensor, tensors[other]):
                continue
            if other not in (in_place or {}).get(name, ()) or not _is_same_view(tensor, tensors[other]):
                raise ContractError(name, f"memory that reaches into {other}'s", "memory of its own: it is written")


def _are_interleaved(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors, not empty, keep to disjoint bytes of one period, as q, k and v of a fused tensor's rows do."""
    for period in {step * tensor.element_size() for tensor in (a, b) for step in tensor.stride() if step}:
        shift = (b.data_ptr() - a.data_ptr()) % period
        if _bytes_within(a, period) <= shift and shift + _bytes_within(b, period) <= period:
            return True
    return False


def _bytes_within(tensor: torch.Tensor, period: int) -> int:
    """From its first byte to the end of its last element, without the dimensions that step by whole periods."""
    steps = [(size, step * tensor.element_size()) for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.element_size() + sum((size - 1) * step for size, step in steps if step % period)


def _is_same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


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


def _check_logit_values(layer: Layer, batch: Batch) -> None:
    """Logits may be -inf where that hides a key or a sink, and must be numbers otherwise."""
    if layer.alibi_slopes is not None:
        slopes = layer.alibi_slopes.cpu()
        if len(wrong := (~slopes.isfinite()).nonzero()):
            h = int(wrong[0])
            raise ContractError(f"alibi_slopes[{h}]", float(slopes[h]), "a finite number")
    if layer.sinks is not None:
        sinks = layer.sinks.float().cpu()
        if len(wrong := (sinks.isnan() | (sinks == torch.inf)).nonzero()):
            h = int(wrong[0])
            raise ContractError(f"sinks[{h}]", float(sinks[h]), "a finite logit or -inf (no sink)")
    if batch.qq_bias is not None:
        bias = batch.qq_bias.cpu()
        if len(wrong := (bias.isnan() | (bias == torch.inf)).nonzero()):
            i, j = wrong[0].tolist()
            raise ContractError(f"qq_bias[{i}, {j}]", float(bias[i, j]), "a finite number or -inf (hidden)")


def _check_scale_values(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("k_scale", "v_scale", "output_scale"):
        if name in tensors:
            scale = tensors[name].flatten().cpu()
            if len(wrong := (~scale.isfinite() | (scale <= 0)).nonzero()):
                i = int(wrong[0])
                raise ContractError(f"{name}[{i}]", float(scale[i]), "a positive finite number")


def _describe(causal: bool | torch.Tensor) -> str:
    return f"a tensor of {len(causal)} flags" if isinstance(causal, torch.Tensor) else repr(causal)

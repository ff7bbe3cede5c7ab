"""Dimensions of numbers and heads, of this step's write, and of the tensors of a call."""

from collections.abc import Callable
from typing import Any

import torch
from attn_contract import AttentionType, KVCacheView
from attn_fuzz.cases.case import Case, Rope
from attn_fuzz.cases.dimensions.cache import INFINITE, ONE_SCALE, QUANTIZED, SEEN, of_scale
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    Setting,
    Value,
    aspect,
    dimension,
    equals,
    feature,
    has,
    idle_stride,
    illegal,
    in_step,
    not_drawn,
    of_tensor,
    of_view,
    region,
    setting,
    unscoped,
)
from attn_fuzz.cases.dimensions.rules import OF_ANY_SIZE, values_of
from attn_fuzz.cases.tensors import Step

_GROUPS = (
    setting(group_size=2),
    setting(num_kv_heads=2, group_size=3),
    # of latent caches, whose group is one or several tiles of rows: less than 16, and more than 64
    setting(group_size=12),
    setting(group_size=71),
)
_HEADS = "Layer.num_heads Layer.num_kv_heads KVCacheView.num_kv_heads"
SIZES = (
    dimension("dtype", "dtype", "dtype", "argument.q", is_total=True)(
        feature("float32", lambda case: case.dtype == "float32", unscoped(dtype="float32"), dtypes=has("float32")),
        equals("float16", "dtype", "float16", dtypes=has("float16")),
        equals("bfloat16", "dtype", "bfloat16", dtypes=has("bfloat16")),
    ),
    dimension("heads", "size", "num_kv_heads group_size", _HEADS)(
        aspect("several KV heads", lambda case: case.num_kv_heads > 1, setting(num_kv_heads=2)),
        aspect("grouped heads", lambda case: case.group_size > 1, *_GROUPS),
        region("3 KV heads", lambda case: case.num_kv_heads == 3),
        region("8 KV heads", lambda case: case.num_kv_heads == 8),
        region("groups of no power of two", lambda case: case.group_size.bit_count() > 1),
        region("groups above 16", lambda case: case.group_size > 16),
        region("groups of more than a tile of the kernels holds", lambda case: case.group_size > 64),
        not_drawn("more than 8 KV heads", "a KV head is a program of its own: the ninth is found as the eighth is"),
    ),
    dimension("head_size", "size", "head_size", "Layer.head_size KVCacheView.head_size KVCacheView.head_size_v")(
        aspect("head size no power of two", lambda case: case.head_size.bit_count() > 1),
        region("above 128", lambda case: case.head_size > 128),
        region("above 256", lambda case: case.head_size > 256 and not case.has_latent_cache),
        region("odd", lambda case: case.head_size % 2 and not case.has_latent_cache),
        in_step("rows of no multiple of 16 bytes", lambda case, step: case.head_size * step.q.element_size() % 16),
        not_drawn("below 16, or above 512", "Triton's dot needs 16, to which all are padded; models have at most 512"),
    ),
)


def _skips_slots(case: Case) -> bool:
    """True if slot_mapping has a -1, which is cheaper to say than to look up: `case.written_slots` goes through all rows."""
    if case.cache is None or not case.writes or case.attn_type is not AttentionType.DECODER:
        return False
    return bool(case.unwritten or case.unowned_rows) or any(request.context_len < 0 for request in case.requests)


def _of_latent_write(name: str, holds: Callable[[torch.Tensor, torch.Tensor], object]) -> Value:
    """A region of calls by the kv_c and k_pe of their write to a latent cache."""
    return in_step(
        name, lambda case, step: case.has_latent_cache and any(holds(*write.latent_parts) for write in step.writes[:1])
    )


def _rope(name: str, holds: Callable[[Rope, Case], bool], *settings: Setting) -> Value:
    return feature(name, lambda case: case.rope is not None and holds(case.rope, case), *settings, rules=has("rope"))


def _of_rotation(name: str, holds: Callable[[torch.Tensor, int, Case], object]) -> Value:
    """A region of calls by the angles, and by the number of positions, of a write that rotates."""

    def of(case: Case, step: Step) -> bool:
        found = [write.rotation for write in step.writes if write.rotation is not None]
        return any(holds(rotation.cos_sin_cache, len(rotation.positions), case) for rotation in found)

    return in_step(name, of)


_FIRST_ROW = (setting(unwritten=(0,)), unscoped(unowned_rows=1))
_SATURATED = (INFINITE, unscoped({"dtype": "fp8_e4m3fn", "scales": "tensor"}, saturated=True), unscoped(saturated=True))
_NEOX, _INTERLEAVED = values_of("rope", (Rope(rotary_dim=16), Rope(rotary_dim=16, neox=False)))
_PARTIAL = (*values_of("rope", (Rope(rotary_dim=8),)), unscoped(rope=Rope(rotary_dim=2, neox=False)))
_ROPE = "rope.neox rope.narrow_cache rope.all_rows"
_ROTATION = "call.rope argument.positions argument.cos_sin_cache argument.is_neox"
_FORM: dict[str, Any] = {"choice": "form", "needs_cache": True}
WRITE = (
    dimension("slots", "write", "unwritten", "Batch.slot_mapping argument.slot_mapping", **_FORM)(
        feature("slot -1", _skips_slots, *_FIRST_ROW, attn_types=has(AttentionType.DECODER)),
        in_step("fewer slots than rows", lambda case, step: any(len(w.slot_mapping) < len(w.k) for w in step.writes)),
        of_tensor("slot_mapping", "beyond 15 bits", lambda slots: (slots >= 1 << 15).any()),
        not_drawn("beyond 31 bits", "a target's own: the blocks of `triton@far` lie so far apart"),
        illegal("a slot twice, or outside the cache", "`validation.values` refuses it: the order of writes is undefined"),
    ),
    dimension("writes", "write", "writes", "call.kv_sharing argument.k argument.kv_c argument.k_pe", **_FORM)(
        feature(
            "nothing written", lambda case: case.cache is not None and not case.writes, setting(writes=False), writes=has(False)
        ),
        of_tensor("k", "contiguous", lambda k: k.is_contiguous()),
        idle_stride("k"),
        _of_latent_write("kv_c, a slice of rows with k_pe", lambda kv_c, k_pe: kv_c.stride(0) == k_pe.stride(0)),
        _of_latent_write("kv_c, strides unlike k_pe's", lambda kv_c, k_pe: kv_c.stride(0) != k_pe.stride(0)),
        _of_latent_write("k_pe, no column", lambda kv_c, k_pe: not k_pe.shape[1]),
        _of_latent_write("k_pe, wider than kv_c", lambda kv_c, k_pe: k_pe.shape[1] > kv_c.shape[1]),
        SEEN,
    ),
    dimension("saturated", "write", "saturated", **QUANTIZED)(
        feature("saturated", lambda case: case.saturated, *_SATURATED, saturated=bool, cache_dtypes=any),
    ),
    dimension("rope", "write", _ROPE, _ROTATION, needs_cache=True)(
        _rope("rope, NeoX", lambda rope, case: rope.neox, _NEOX),
        _rope("rope, interleaved", lambda rope, case: not rope.neox, _INTERLEAVED),
        _of_rotation("angles in float32", lambda angles, count, case: angles.dtype is torch.float32),
        _of_rotation("angles of q's dtype", lambda angles, count, case: angles.dtype is not torch.float32),
        _of_rotation("angles of all dims", lambda angles, count, case: angles.shape[1] == case.head_size),
        _of_rotation("positions of the rows that count", lambda angles, count, case: count == case.num_actual_tokens),
        _of_rotation("positions of all rows", lambda angles, count, case: count > case.num_actual_tokens),
        _of_rotation("positions of rows of no request", lambda angles, count, case: count > case.query_start_loc[-1]),
        _of_rotation("positions of not all rows", lambda angles, count, case: count < case.num_rows),
        illegal("a position beyond cos_sin_cache", "`validation.values` refuses it"),
    ),
    dimension("rotary_dim", "write", "rope.rotary_dim", choice="rope", needs_cache=True)(
        _rope("rope, partial", lambda rope, case: rope.rotary_dim < case.head_size, *_PARTIAL),
    ),
)


def _form(field: str, contract: str = "", choice: str = "form", left_out: str = "") -> Callable[..., Dimension]:
    """A dimension of one field of Case, and of arguments of the contract."""
    arguments = " ".join(f"argument.{name}" for name in contract.split())
    return dimension(field, "call", field, arguments, choice=choice, left_out=left_out)


def _is_aligned(tensor: torch.Tensor) -> bool:
    steps = (tensor.data_ptr() // tensor.element_size(), *tensor.stride()[:-1])
    return all(step * tensor.element_size() % 16 == 0 for step in steps)


def _is_odd(view: KVCacheView) -> bool:
    """True if all rows begin at odd addresses, so that no two dims may be loaded at once."""
    strides = (view.kv_stride, view.block_stride, view.slot_stride, view.head_stride)
    return view.itemsize == 1 and view.offset % 2 == 1 and not any(stride % 2 for stride in strides)


def _has_strides_unlike_k(case: Case, step: Step) -> bool:
    return step.v is not None and step.k is not None and step.v.stride() != step.k.stride()


def _has_idle_cache(case: Case, step: Step) -> bool:
    return case.unlike_strides and step.kv_cache is not None and 1 in step.kv_cache.shape


_ONCE = "a scope makes each call once, in any process: calls that change later ones are the fuzzer's"
_TOGETHER = "programs of interpreted kernels run together here, in no order"
CALL = (
    _form("fused_qkv")(
        feature("fused qkv", lambda case: case.fused_qkv and case.writes, setting(fused_qkv=True), fused_qkv=has(True)),
        of_tensor("q", "contiguous", lambda q: q.is_contiguous()),
        of_tensor("q", "not aligned to 16 bytes", lambda q: not _is_aligned(q)),
        idle_stride("q"),
        illegal("NaN, infinity in rows of q of a request", "the contract says nothing of the output: q is finite"),
    ),
    dimension("scale", "call", "scale", "Layer.scale")(
        equals("scale 0", "scale", 0.0, scale_signs=has(0)),
        feature("scale below 0", lambda case: case.scale < 0, setting(scale=-0.5), scale_signs=has(-1)),
        region("near the least magnitude", lambda case: 0 < abs(case.scale) < 2.0**-100),
        not_drawn("other magnitudes below 1e-3 or above 10", OF_ANY_SIZE),
        illegal("subnormal, above 2^64, NaN, infinity", "Layer refuses it: kernels multiply by it"),
    ),
    dimension("unlike_strides", "call", "unlike_strides", "argument.v KVCacheView.offset")(
        feature("unlike strides", lambda case: case.unlike_strides, unscoped(unlike_strides=True), unlike_strides=has(True)),
        in_step("v with strides unlike k's", _has_strides_unlike_k),
        idle_stride("v"),
        in_step("a cache with a dimension of one element and any stride", _has_idle_cache),
        of_view("an odd offset, beside even strides", _is_odd),
        not_drawn("offset 0", "guards surround every allocation; the tests of backends have caches of their own"),
    ),
    _form("dense_out", "out")(
        equals("dense output", "dense_out", True, dense_out=has(True)),
        idle_stride("out"),
        not_drawn("none", "targets' own: `triton@returned` and `triton-cascade@returned` call without it in every case"),
        not_drawn("beyond 2^31 elements", "a target's own: the rows of `triton@far` lie so far apart"),
    ),
    _form("flat_out")(aspect("flat output", lambda case: case.flat_out, setting(flat_out=True))),
    dimension("lse", "call", "lse", "call.lse argument.lse")(
        equals("LSE", "lse", True, rules=has("lse")),
        of_tensor("lse", "rows longer than its own", lambda lse: not lse.is_contiguous()),
        idle_stride("lse"),
        not_drawn("contiguous", "its rows lie between guards; its stride is an argument of the kernels"),
    ),
    _form("earlier", left_out=_ONCE)(
        feature("earlier call", lambda case: bool(case.earlier), unscoped(earlier=("same",))),
    ),
    dimension("output_dtype", "call", "output_dtype", "Layer.output_scale")(
        equals("output fp8_e4m3fn", "output_dtype", "fp8_e4m3fn", output_dtypes=has("fp8_e4m3fn")),
        equals("output fp8_e4m3fnuz", "output_dtype", "fp8_e4m3fnuz", output_dtypes=has("fp8_e4m3fnuz")),
        *of_scale("output_scale"),
        *ONE_SCALE,
    ),
    dimension("values", "values", "values.kind values.seed values.file values.sha256", left_out="a scope has random ones")(
        aspect("unequal logits", lambda case: case.values.kind != "exact"),
        aspect("large logits", lambda case: case.values.kind in ("extreme", "below")),
        region("all logits far below 0", lambda case: case.values.kind == "below"),
    ),
    _form("program_order", left_out=_TOGETHER)(),
    _form("target", left_out="a run names it")(),
    dimension("a target's own", contract="call.batch_invariant call.over_ranks argument.values argument.layer argument.batch")(
        not_drawn("batch_invariant", "`triton@invariant` asks for it in every case"),
        not_drawn("over_ranks", "`triton-over-ranks` and others deal every case to ranks"),
        not_drawn("values=False", "calls of a target in another mode, and layers of backends"),
    ),
)

"""Dimensions of heads and numbers, of this step's write, and of the tensors of a call."""

from collections.abc import Callable
from typing import get_args

import torch
from attn_contract import AttentionType, KVCacheView
from attn_fuzz.cases.case import Case, Dtype, Float8, Rope
from attn_fuzz.cases.dimensions.cache import ONE_SCALE, SEEN, regions_of_scale
from attn_fuzz.cases.dimensions.dimension import (
    Dimension,
    InStep,
    Setting,
    Value,
    aspect,
    feature,
    has,
    idle_stride,
    illegal,
    not_drawn,
    of_rotation,
    of_tensor,
    of_view,
    region,
    setting,
    step_region,
    tensor_regions,
    unscoped,
)
from attn_fuzz.cases.dimensions.rules import OF_ANY_SIZE, values_of
from attn_fuzz.cases.tensors import Step

DECODER = AttentionType.DECODER


def _dtype(name: str) -> Value:
    own = setting(f"dtype {name}", dtype=name, scopes="none" if name == "float32" else "every")
    return feature(name, lambda case: case.dtype == name, own, dtypes=has(name))


DTYPE = Dimension(
    name="dtype", group="dtype", fields=("dtype",), contract=("argument q",), values=tuple(map(_dtype, get_args(Dtype)))
)
SCALE = Dimension(
    name="scale",
    group="call",
    fields=("scale",),
    contract=("Layer.scale",),
    values=(
        feature("scale 0", lambda case: case.scale == 0, *values_of("scale", (0.0,)), scale_signs=has(0)),
        feature("scale below 0", lambda case: case.scale < 0, *values_of("scale", (-0.5,)), scale_signs=has(-1)),
        region("positive", lambda case: case.scale > 0),
        region("near the least magnitude", lambda case: 0 < abs(case.scale) < 2.0**-100),
        not_drawn("other magnitudes below 1e-3 or above 10", OF_ANY_SIZE),
        illegal("subnormal, above 2^64, NaN, infinity", "Layer refuses it: kernels multiply by it"),
    ),
)
HEADS = Dimension(
    name="heads",
    group="size",
    fields=("num_kv_heads", "group_size"),
    contract=("Layer.num_heads", "Layer.num_kv_heads", "KVCacheView.num_kv_heads"),
    values=(
        aspect("several KV heads", lambda case: case.num_kv_heads > 1, setting("2 KV heads", num_kv_heads=2)),
        aspect(
            "grouped heads",
            lambda case: case.group_size > 1,
            setting("2 query heads of 1 KV head", group_size=2),
            setting("3 query heads of each of 2 KV heads", num_kv_heads=2, group_size=3),
            # of latent caches, whose group is one or several tiles of rows: less than 16, and more than 64
            setting("12 query heads of 1 KV head", group_size=12),
            setting("71 query heads of 1 KV head", group_size=71),
        ),
        region("1 KV head", lambda case: case.num_kv_heads == 1),
        region("3 KV heads", lambda case: case.num_kv_heads == 3),
        region("8 KV heads", lambda case: case.num_kv_heads == 8),
        not_drawn("more than 8 KV heads", "a KV head is a program of its own: the ninth is found as the eighth is"),
        region("as many heads as KV heads", lambda case: case.group_size == 1),
        region("groups of no power of two", lambda case: case.group_size.bit_count() > 1),
        region("groups above 16", lambda case: case.group_size > 16),
        region("groups of more than a tile of the kernels holds", lambda case: case.group_size > 64),
    ),
)
HEAD_SIZE = Dimension(
    name="head_size",
    group="size",
    fields=("head_size",),
    contract=("Layer.head_size", "KVCacheView.head_size"),
    values=(
        aspect("head size no power of two", lambda case: case.head_size.bit_count() > 1),
        region("a power of two", lambda case: case.head_size.bit_count() == 1),
        region("above 128", lambda case: case.head_size > 128),
        region("odd", lambda case: case.head_size % 2 and not case.has_latent_cache),
        step_region("rows of no multiple of 16 bytes", lambda case, step: case.head_size * step.q.element_size() % 16),
        not_drawn("below 16, or above 256", "Triton's dot needs 16, to which all are padded; models have at most 256"),
    ),
)


def _skips_slots(case: Case) -> bool:
    """Whether slot_mapping has a -1, which is cheaper to say than to look up: `case.written_slots` goes through all rows."""
    if case.cache is None or not case.writes or case.attn_type is not DECODER:
        return False
    return bool(case.unwritten or case.unowned_rows) or any(request.context_len < 0 for request in case.requests)


_INTERLEAVED = Rope(rotary_dim=16, neox=False)


def _rope(name: str, holds: Callable[[Rope, Case], bool], *settings: Setting) -> Value:
    return feature(name, lambda case: case.rope is not None and holds(case.rope, case), *settings, rules=has("rope"))


def _of_latent_write(holds: Callable[[torch.Tensor, torch.Tensor], object]) -> InStep:
    """Whether the kv_c and k_pe of the step's write to a latent cache have a property."""
    return lambda case, step: case.has_latent_cache and any(holds(*write.latent_parts) for write in step.writes[:1])


def _is_slice(kv_c: torch.Tensor, k_pe: torch.Tensor) -> bool:
    return kv_c.stride(0) == k_pe.stride(0)


def _angles(name: str, holds: Callable[[torch.Tensor, Case], object]) -> Value:
    return step_region(f"angles {name}", of_rotation("cos_sin_cache", holds))


def _positions(name: str, holds: Callable[[int, Case], object]) -> Value:
    """A region of cases that rotate so many rows."""
    return step_region(f"positions {name}", of_rotation("positions", lambda positions, case: holds(len(positions), case)))


WRITE = (
    Dimension(
        name="slots",
        group="write",
        fields=("unwritten",),
        contract=("Batch.slot_mapping", "argument slot_mapping"),
        values=(
            feature(
                "slot -1",
                _skips_slots,
                setting("a first row of slot -1", unwritten=(0,)),
                unscoped(unowned_rows=1),
                attn_types=has(DECODER),
            ),
            step_region("none", lambda case, step: step.batch.slot_mapping is None),
            step_region("fewer slots than rows", lambda case, step: any(len(w.slot_mapping) < len(w.k) for w in step.writes)),
            *tensor_regions("slot_mapping", {"beyond 15 bits": lambda slots: (slots >= 1 << 15).any()}),
            not_drawn("beyond 31 bits", "a target's own: the blocks of `triton-far` lie so far apart"),
            illegal("a slot twice, or outside the cache", "`validation.values` refuses it: the order of writes is undefined"),
        ),
        choice="form",
        needs_cache=True,
    ),
    Dimension(
        name="writes",
        group="write",
        fields=("writes",),
        contract=("call: kv_sharing", "argument k", "argument kv_c", "argument k_pe"),
        values=(
            feature(
                "nothing written",
                lambda case: case.cache is not None and not case.writes,
                setting("nothing written", writes=False),
                writes=has(False),
            ),
            step_region("k contiguous", of_tensor("k", lambda k: k.is_contiguous())),
            idle_stride("k"),
            step_region(
                "kv_c a slice of rows with k_pe", _of_latent_write(lambda kv_c, k_pe: kv_c.stride(0) == k_pe.stride(0))
            ),
            step_region(
                "kv_c with strides unlike k_pe's", _of_latent_write(lambda kv_c, k_pe: kv_c.stride(0) != k_pe.stride(0))
            ),
            step_region("no column of k_pe", _of_latent_write(lambda kv_c, k_pe: not k_pe.shape[1])),
            step_region("k_pe wider than kv_c", _of_latent_write(lambda kv_c, k_pe: k_pe.shape[1] > kv_c.shape[1])),
            illegal("NaN, infinity in a key that is seen", SEEN),
        ),
        choice="form",
        needs_cache=True,
    ),
    Dimension(
        name="saturated",
        group="write",
        fields=("saturated",),
        values=(
            feature(
                "saturated",
                lambda case: case.saturated,
                setting("int8, infinite keys and values", {"dtype": "int8", "scales": "token"}, num_kv_heads=2, saturated=True),
                unscoped({"dtype": "fp8_e4m3fn", "scales": "tensor"}, saturated=True),
                unscoped(saturated=True),
                saturated=bool,
                cache_dtypes=any,
            ),
        ),
        choice="quantized cache",
        needs_cache=True,
    ),
    Dimension(
        name="rope",
        group="write",
        fields=("rope", "rope.neox", "rope.narrow_cache", "rope.all_rows"),
        contract=("call: rope", "argument positions", "argument cos_sin_cache", "argument is_neox"),
        values=(
            _rope("rope, NeoX", lambda rope, case: rope.neox, *values_of("rope", (Rope(rotary_dim=16),))),
            _rope(
                "rope, interleaved", lambda rope, case: not rope.neox, *values_of("rope", (Rope(rotary_dim=16, neox=False),))
            ),
            region("off", lambda case: case.writes and not case.rope),
            _angles("in float32", lambda angles, case: angles.dtype is torch.float32),
            _angles("of q's dtype", lambda angles, case: angles.dtype is not torch.float32),
            _angles("of all dims", lambda angles, case: angles.shape[1] == case.head_size),
            _positions("of the rows that count", lambda count, case: count == case.num_actual_tokens),
            _positions("of all rows", lambda count, case: count > case.num_actual_tokens),
            _positions("of rows of no request", lambda count, case: count > case.query_start_loc[-1]),
            _positions("of not all rows", lambda count, case: count < case.num_rows),
            illegal("a position beyond cos_sin_cache", "`validation.values` refuses it"),
        ),
        needs_cache=True,
    ),
    Dimension(
        name="rotary_dim",
        group="write",
        fields=("rope.rotary_dim",),
        values=(
            _rope(
                "rope, partial",
                lambda rope, case: rope.rotary_dim < case.head_size,
                *values_of("rope", (Rope(rotary_dim=8),)),
                unscoped(rope=Rope(rotary_dim=2, neox=False)),
            ),
        ),
        choice="rope",
        needs_cache=True,
    ),
)


def _call(field: str, *values: Value, contract: tuple[str, ...] = (), choice: str = "form", left_out: str = "") -> Dimension:
    own = tuple(f"argument {name}" for name in contract)
    return Dimension(name=field, group="call", fields=(field,), contract=own, values=values, choice=choice, left_out=left_out)


def _has_strides_unlike_k(case: Case, step: Step) -> bool:
    return step.v is not None and step.k is not None and step.v.stride() != step.k.stride()


def _is_odd(view: KVCacheView) -> bool:
    """Whether all rows begin at odd addresses, so that no two dims may be loaded at once."""
    strides = (view.kv_stride, view.block_stride, view.slot_stride, view.head_stride)
    return view.itemsize == 1 and view.offset % 2 == 1 and not any(stride % 2 for stride in strides)


def _is_aligned(tensor: torch.Tensor) -> bool:
    steps = (tensor.data_ptr() // tensor.element_size(), *tensor.stride()[:-1])
    return all(step * tensor.element_size() % 16 == 0 for step in steps)


def _has_idle_cache(case: Case, step: Step) -> bool:
    return case.unlike_strides and step.kv_cache is not None and 1 in step.kv_cache.shape


def _output(dtype: Float8) -> Value:
    own = values_of("output_dtype", (dtype,))
    return feature(f"output {dtype}", lambda case: case.output_dtype == dtype, *own, output_dtypes=has(dtype))


CALL = (
    _call(
        "fused_qkv",
        feature(
            "fused qkv",
            lambda case: case.fused_qkv and case.writes,
            setting("fused qkv", fused_qkv=True),
            fused_qkv=has(True),
        ),
        *tensor_regions("q", {"q contiguous": lambda q: q.is_contiguous(), "q not aligned": lambda q: not _is_aligned(q)}),
        idle_stride("q"),
        illegal("NaN, infinity in rows of a request", "the contract says nothing of the output: q is finite"),
    ),
    SCALE,
    _call(
        "unlike_strides",
        feature("unlike strides", lambda case: case.unlike_strides, unscoped(unlike_strides=True), unlike_strides=has(True)),
        step_region("v with strides unlike k's", _has_strides_unlike_k),
        idle_stride("v"),
        step_region("a cache with a dimension of one element and any stride", _has_idle_cache),
        step_region("an odd byte, beside even strides", of_view(_is_odd)),
        not_drawn("offset 0", "guards surround every allocation; the tests of backends have caches of their own"),
        contract=("v",),
    ),
    _call(
        "dense_out",
        feature("dense output", lambda case: case.dense_out, setting("dense out", dense_out=True), dense_out=has(True)),
        *tensor_regions("out", {"rows longer than its own": lambda out: not out.is_contiguous()}),
        idle_stride("out"),
        not_drawn("no out", "targets' own: `triton-returned` and `triton-cascade-returned` call without it in every case"),
        not_drawn("beyond 2^31 elements", "a target's own: the rows of `triton-far` lie so far apart"),
        contract=("out",),
    ),
    _call(
        "flat_out",
        aspect("flat output", lambda case: case.flat_out, setting("flat out", flat_out=True)),
        region("[T, H, D]", lambda case: not case.flat_out),
    ),
    _call(
        "lse",
        feature("LSE", lambda case: case.lse, *values_of("lse", (True,)), rules=has("lse")),
        region("off", lambda case: not case.lse),
        *tensor_regions("lse", {"rows longer than its own": lambda lse: not lse.is_contiguous()}),
        idle_stride("lse"),
        not_drawn(
            "contiguous", "its rows lie between guards; its stride is an argument of the kernels, which no path asks for"
        ),
        contract=("lse",),
        choice="lse",
    ),
    _call(
        "earlier",
        feature("earlier call", lambda case: bool(case.earlier), unscoped(earlier=("same",))),
        left_out="a scope makes each call once, in any process: calls that change later ones are the fuzzer's",
    ),
    Dimension(
        name="output_dtype",
        group="call",
        fields=("output_dtype",),
        contract=("Layer.output_scale",),
        values=(
            _output("fp8_e4m3fn"),
            _output("fp8_e4m3fnuz"),
            *regions_of_scale("output_scale"),
            *ONE_SCALE,
        ),
    ),
    Dimension(
        name="values",
        group="values",
        fields=("values.kind", "values.seed", "values.file", "values.sha256"),
        values=(
            aspect("unequal logits", lambda case: case.values.kind != "exact"),
            aspect("large logits", lambda case: case.values.kind == "extreme"),
        ),
        left_out="a scope draws all values at random",
    ),
    _call("program_order", left_out="programs of interpreted kernels run together here, in no order"),
    _call("target", left_out="a run names it"),
    Dimension(
        name="objects",
        contract=("argument layer", "argument batch", "argument values", "call: batch_invariant", "call: over_ranks"),
        values=(
            not_drawn("fields of layer and batch", "they have regions of their own"),
            not_drawn("values=False", "a target's own: its calls in another mode, and layers of backends"),
            not_drawn("batch_invariant", "a target's own: `triton-invariant` asks for it in every case"),
            not_drawn("over_ranks", "a target's own: `triton-over-ranks` and others deal every case to ranks"),
        ),
    ),
)

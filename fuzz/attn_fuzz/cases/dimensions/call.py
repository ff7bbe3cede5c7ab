"""Dimensions of numbers and heads, of this step's write, and of the tensors of a call."""

from collections.abc import Callable

from attn_contract import AttentionType
from attn_fuzz.cases.case import Case, Rope
from attn_fuzz.cases.dimensions.dimension import (
    Value,
    aspect,
    dimension,
    equals,
    feature,
    has,
)

SIZES = (
    dimension("dtype", "dtype", "dtype")(
        feature("float32", lambda case: case.dtype == "float32", dtypes=has("float32")),
        equals("float16", "dtype", "float16", dtypes=has("float16")),
        equals("bfloat16", "dtype", "bfloat16", dtypes=has("bfloat16")),
    ),
    dimension("heads", "size", "num_kv_heads group_size", of_layers=True)(
        aspect("several KV heads", lambda case: case.num_kv_heads > 1),
        aspect("grouped heads", lambda case: case.group_size > 1),
    ),
    dimension("head_size", "size", "head_size", of_layers=True)(
        aspect("head size no power of two", lambda case: case.head_size.bit_count() > 1),
    ),
)


def _skips_slots(case: Case) -> bool:
    """True if slot_mapping has a -1, which is cheaper to say than to look up: `case.written_slots` goes through all rows."""
    if case.cache is None or not case.writes or case.attn_type is not AttentionType.DECODER:
        return False
    return bool(case.unwritten or case.unowned_rows) or any(request.context_len < 0 for request in case.requests)


def _rope(name: str, holds: Callable[[Rope, Case], bool]) -> Value:
    return feature(name, lambda case: case.rope is not None and holds(case.rope, case), rules=has("rope"))


_ROPE = "rope.neox rope.narrow_cache rope.all_rows"
WRITE = (
    dimension("slots", "write", "unwritten", needs_cache=True)(
        feature("slot -1", _skips_slots, attn_types=has(AttentionType.DECODER)),
    ),
    dimension("writes", "write", "writes", needs_cache=True)(
        feature("nothing written", lambda case: case.cache is not None and not case.writes, writes=has(False)),
    ),
    dimension("saturated", "write", "saturated", needs_cache=True)(
        feature("saturated", lambda case: case.saturated, saturated=bool, cache_dtypes=any),
    ),
    dimension("rope", "write", _ROPE, needs_cache=True)(
        _rope("rope, NeoX", lambda rope, case: rope.neox),
        _rope("rope, interleaved", lambda rope, case: not rope.neox),
    ),
    dimension("rotary_dim", "write", "rope.rotary_dim", needs_cache=True)(
        _rope("rope, partial", lambda rope, case: rope.rotary_dim < case.head_size),
    ),
)


CALL = (
    dimension("fused_qkv", "call", "fused_qkv")(
        feature("fused qkv", lambda case: case.fused_qkv and case.writes, fused_qkv=has(True)),
    ),
    dimension("scale", "call", "scale", of_layers=True)(
        equals("scale 0", "scale", 0.0, scale_signs=has(0)),
        feature("scale below 0", lambda case: case.scale < 0, scale_signs=has(-1)),
    ),
    dimension("unlike_strides", "call", "unlike_strides")(
        feature("unlike strides", lambda case: case.unlike_strides, unlike_strides=has(True)),
    ),
    dimension("dense_out", "call", "dense_out")(equals("dense output", "dense_out", True, dense_out=has(True))),
    dimension("flat_out", "call", "flat_out")(aspect("flat output", lambda case: case.flat_out)),
    dimension("lse", "call", "lse")(equals("LSE", "lse", True, rules=has("lse"))),
    dimension("earlier", "call", "earlier")(
        feature("earlier call", lambda case: bool(case.earlier)),
    ),
    dimension("output_dtype", "call", "output_dtype", of_layers=True)(
        equals("output fp8_e4m3fn", "output_dtype", "fp8_e4m3fn", output_dtypes=has("fp8_e4m3fn")),
        equals("output fp8_e4m3fnuz", "output_dtype", "fp8_e4m3fnuz", output_dtypes=has("fp8_e4m3fnuz")),
    ),
    dimension("values", "values", "values.kind values.seed values.file values.sha256")(
        aspect("unequal logits", lambda case: case.values.kind != "exact"),
        aspect("large logits", lambda case: case.values.kind in ("extreme", "below")),
    ),
    dimension("program_order", "call", "program_order")(),
    dimension("target", "call", "target")(),
)

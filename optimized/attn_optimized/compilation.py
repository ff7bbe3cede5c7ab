"""Compile the shipping kernels for a GPU that need not be there, and print what the compiler made of them as JSON.

    python -m attn_optimized.compilation gfx942

needs a process without Triton's interpreter: TRITON_INTERPRET must not be set.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from attn_contract import ContractError
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch import attention_tiles, reduce_tiles, row_tiles
from attn_optimized.quantization import stored_format

_TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.uint8: "u8",
}
_FLOATS = (
    "lse",
    "lse_a",
    "lse_b",
    "row_max",
    "row_sum",
    "acc",
    "sinks",
    "alibi_slopes",
    "qq_bias",
    "k_scale",
    "v_scale",
    "output_scale",
)
_INTEGERS = ("query_start_loc", "seq_lens", "block_table", "ranges")
_POINTERS = {
    **dict.fromkeys(_FLOATS, "fp32"),
    **dict.fromkeys(_INTEGERS, "i32"),
    "causal": "i1",
    "slot_mapping": "i64",
    "positions": "i64",
}
_NARROW_PRODUCT = re.compile(r"%([a-z_]+?)(?:_\d+)? = arith\.muli .* : (?:tensor<[\dx]*i32|i32)")
# products of no address: a query of its request, and a row of a tile as a query and a head
_SMALL = {"first_query", "tile_query", "head"}
# what the attention kernel can be compiled for, beside dtypes and sizes
_VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"PAGED": False},
    "rules": {"HOLES": True, "INNER": False, "SOFT_CAP": True, "BIAS": True},
    "parts": {"PARTIAL": True},
    "x_packed": {"INTERIOR": "x_packed"},
    "shuffled": {"INTERIOR": "shuffled"},
    "token scales": {"TOKEN_SCALES": True},
    "float8 output": {"OUT_FORMAT": "e4m3fn_bits"},
}


class Configuration(NamedTuple):
    """A kernel and what it is compiled for, every optional tensor given."""

    name: str
    kernel: Any
    elements: dict[str, str]
    """Triton's name of the elements of each pointer that _POINTERS does not know."""
    constants: dict[str, Any]
    options: dict[str, Any]


def gpu_target(architecture: str) -> GPUTarget:
    """Triton's name of a GPU: "gfx942" and its like (RDNA's waves have 32 lanes, CDNA's 64), or "sm90" and its like.

    Raises:
        ContractError: it is neither.
    """
    if found := re.fullmatch(r"gfx(1?)[0-9a-f]{3}", architecture):
        return GPUTarget("hip", architecture, 32 if found.group(1) else 64)
    if found := re.fullmatch(r"sm(\d+)", architecture):
        return GPUTarget("cuda", int(found.group(1)), 32)
    raise ContractError("architecture", repr(architecture), "such as gfx90a, gfx942, gfx1201 or sm90")


def configurations(architecture: str) -> Iterator[Configuration]:
    """What models need most: every kernel, every variant once, every cache dtype."""
    bf16 = torch.bfloat16
    for dtype, head_size, max_query_len in [
        (bf16, 128, 1),
        (bf16, 128, 512),
        (torch.float16, 80, 512),
        (bf16, 256, 512),
        (torch.float32, 128, 512),
        (torch.float32, 256, 512),
    ]:
        yield _attention(architecture, "paged", dtype, head_size, max_query_len)
    for variant in _VARIANTS:
        yield _attention(architecture, variant, bf16, 128, 512)
    for cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8):
        for max_query_len in (1, 512):
            yield _attention(architecture, "paged", bf16, 128, max_query_len, cache_dtype)
    yield _attention(architecture, "token scales", bf16, 128, 512, torch.int8)
    yield _write(architecture, torch.int16)
    yield _write(architecture, bf16, rotates=True)
    yield _write(architecture, torch.float32, rotates=True)
    for interior in ("rows", "x_packed", "shuffled"):
        yield _write(architecture, bf16, torch.float8_e4m3fn, interior, rotates=True)
    yield _write(architecture, torch.float16, torch.float8_e4m3fnuz)
    yield _write(architecture, bf16, torch.int8, token_scales=True)
    for kernel, tiles, units in (
        (merge_attn_states_kernel, row_tiles(architecture, head_size=128), {"STRIDE_UNIT": 8}),
        (
            reduce_parts_kernel,
            reduce_tiles(architecture, head_size=128, num_parts=32),
            {"OUT_UNIT": 8, "OUT_FORMAT": "float"},
        ),
    ):
        elements = {"out": "bf16", "out_a": "bf16", "out_b": "bf16"}
        yield Configuration(kernel.fn.__name__, kernel, elements, {**tiles.constants, **units}, tiles.options)


def compile_for(architecture: str, configuration: Configuration) -> dict[str, int]:
    """Compile, all pointers and strides multiples of 16 bytes, and count in the code what matters.

    Returns:
        shared_bytes, narrow_products (32-bit ones of what may be an address), matrix_instructions,
        wide_loads and fused_multiply_adds; for AMD also vgpr_count, agpr_count, sgpr_count, vgpr_spill_count, sgpr_spill_count.
    """
    _, kernel, elements, constants, options = configuration
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + {**_POINTERS, **elements}[name.removesuffix("_ptr")]
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif name in ("scale", "cap"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(source, target=gpu_target(architecture), options=options)
    facts = {
        "shared_bytes": compiled.metadata.shared,
        "narrow_products": sum(name not in _SMALL for name in _NARROW_PRODUCT.findall(compiled.asm["ttir"])),
    }
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        for name in ("vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count"):
            if found := re.search(rf"\.{name}:\s*(\d+)", text):
                facts[name] = int(found.group(1))
        facts["matrix_instructions"] = len(re.findall(r"\bv_(?:mfma|wmma)_", text))
        facts["wide_loads"] = len(re.findall(r"\b(?:global|buffer)_load_(?:dwordx4|b128)\b", text))
        facts["fused_multiply_adds"] = len(re.findall(r"\bv_(?:pk_|dual_)?fmac?_f32", text))
    else:
        text = compiled.asm["ptx"]
        facts["matrix_instructions"] = len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.", text))
        facts["fused_multiply_adds"] = len(re.findall(r"\bfma\.\w+\.f32", text))
        facts["wide_loads"] = len(re.findall(r"\.v4\.b32|cp\.async\.c[ag]\.shared\.global [^;]*0x10", text))
    return facts


def _attention(
    architecture: str,
    variant: str,
    dtype: torch.dtype,
    head_size: int,
    max_query_len: int,
    cache_dtype: torch.dtype | None = None,
) -> Configuration:
    tiles = attention_tiles(
        architecture,
        itemsize=dtype.itemsize,
        head_size=head_size,
        group=4,
        max_query_len=max_query_len,
        phase="decode" if max_query_len == 1 else "prefill",
        quantized=cache_dtype is not None,
    )
    stored, kv_format = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    constants = {
        "Q_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "PAGED": True,
        "BLOCK_SIZE": 16,
        "INTERIOR": "rows",
        "X": 16 // stored.itemsize,
        "KV_FORMAT": kv_format,
        "OUT_FORMAT": "float",
        "SIGN": 1,
        "TOKEN_SCALES": False,
        "HOLES": False,
        "INNER": True,
        "SOFT_CAP": False,
        "BIAS": False,
        "PARTIAL": False,
        **tiles.constants,
        **_VARIANTS.get(variant, {}),
    }
    row, cached = _TRITON_NAMES[dtype], _TRITON_NAMES[stored.dtype]
    elements = {"q": row, "out": row, "k": cached, "v": cached}
    if constants["OUT_FORMAT"] != "float":
        elements["out"] = "u8"
    cache = f" {kv_format}" if cache_dtype else ""
    name = f"attention_kernel {variant} {_TRITON_NAMES[dtype]}{cache} D{head_size} M{tiles.block_m}"
    return Configuration(name, attention_kernel, elements, constants, tiles.options)


def _write(
    architecture: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    interior: str = "rows",
    rotates: bool = False,
    token_scales: bool = False,
) -> Configuration:
    stored, stored_as = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    tiles = row_tiles(architecture, head_size=128)
    constants = {
        "ROW_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "INTERIOR": interior,
        "X": 16 // stored.itemsize,
        "FORMAT": stored_as,
        "TOKEN_SCALES": token_scales,
        "ROTATES": rotates,
        **tiles.constants,
    }
    options = {**tiles.options, "enable_fp_fusion": False}
    row = _TRITON_NAMES[dtype]
    elements = {"q": row, "k": row, "v": row, "kv_cache": _TRITON_NAMES[stored.dtype], "cos_sin_cache": "fp32"}
    options_given = f"{' rotary' if rotates else ''}{' token scales' if token_scales else ''}"
    name = f"write_kv_cache_kernel {row} {stored_as} {interior}{options_given}"
    return Configuration(name, write_kv_cache_kernel, elements, constants, options)


def main(architecture: str) -> None:
    """Print {name: facts} of all configurations."""
    facts = {config.name: compile_for(architecture, config) for config in configurations(architecture)}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])

"""Compile the shipping kernels for one GPU, which need not be there, and print what the compiler says of them as JSON.

Run as a script, in a process without Triton's interpreter: `python compile_kernels.py gfx942`.
"""

import json
import re
import sys

import torch
import triton
from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch import attention_tiles, row_tiles
from attn_optimized.quantization import stored_format
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
    "sm90": GPUTarget("cuda", 90, 32),
}
TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.uint8: "u8",
}
FLOATS = (
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
INTEGERS = ("query_start_loc", "seq_lens", "block_table", "ranges")
POINTERS = {
    **dict.fromkeys(FLOATS, "fp32"),
    **dict.fromkeys(INTEGERS, "i32"),
    "causal": "i1",
    "slot_mapping": "i64",
    "positions": "i64",
}
# what an attention kernel can be compiled for, beside dtypes and sizes
VARIANTS = {
    "dense": {"PAGED": False},
    "rules": {"HOLES": True, "LOGITS": True},
    "parts": {"PARTIAL": True},
    "x_packed": {"INTERIOR": "x_packed"},
    "shuffled": {"INTERIOR": "shuffled"},
    "token scales": {"TOKEN_SCALES": True},
    "float8 output": {"OUT_FORMAT": "e4m3fn_bits"},
}


def compile_kernel(kernel, architecture: str, elements: dict, constants: dict, options: dict) -> dict:
    """Compile a kernel with every optional tensor given, and all pointers and strides multiples of 16 bytes.

    Args:
        elements: Triton's name of the elements of each pointer that POINTERS does not know.
    """
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + {**POINTERS, **elements}[name.removesuffix("_ptr")]
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif name in ("scale", "cap"):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(source, target=TARGETS[architecture], options=options)
    facts = {
        "shared_bytes": compiled.metadata.shared,
        "narrow_products": len(re.findall(r"arith\.muli .* : (?:tensor<[\dx]*i32|i32)", compiled.asm["ttir"])),
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


def compile_attention(
    report: dict,
    architecture: str,
    variant: str,
    dtype: torch.dtype,
    head_size: int,
    max_query_len: int,
    cache_dtype: torch.dtype | None = None,
) -> None:
    tiles = attention_tiles(
        architecture,
        itemsize=dtype.itemsize,
        head_size=head_size,
        group=4,
        max_query_len=max_query_len,
        batch_invariant=False,
    )
    stored, kv_format = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    constants = {
        "Q_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "PAGED": True,
        "INTERIOR": "rows",
        "X": 16 // stored.itemsize,
        "KV_FORMAT": kv_format,
        "OUT_FORMAT": "float",
        "TOKEN_SCALES": False,
        "HOLES": False,
        "LOGITS": False,
        "PARTIAL": False,
        **tiles.options,
        **VARIANTS.get(variant, {}),
    }
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    elements = dict.fromkeys(("q", "out"), TRITON_NAMES[dtype]) | dict.fromkeys(("k", "v"), TRITON_NAMES[stored.dtype])
    if constants["PARTIAL"]:
        elements["out"] = "fp32"
    if constants["OUT_FORMAT"] != "float":
        elements["out"] = "u8"
    cache = f" {kv_format}" if cache_dtype else ""
    name = f"attention_kernel {variant} {TRITON_NAMES[dtype]}{cache} D{head_size} M{tiles.block_m}"
    report[name] = compile_kernel(attention_kernel, architecture, elements, constants, options)


def compile_write_kv_cache(
    report: dict,
    architecture: str,
    dtype: torch.dtype,
    cache_dtype: torch.dtype | None = None,
    interior: str = "rows",
    rotates: bool = False,
    token_scales: bool = False,
) -> None:
    stored, stored_as = stored_format(torch.empty(0, dtype=cache_dtype or dtype), architecture)
    constants = {
        "ROW_UNIT": 16 // dtype.itemsize,
        "KV_UNIT": 16 // stored.itemsize,
        "INTERIOR": interior,
        "X": 16 // stored.itemsize,
        "FORMAT": stored_as,
        "TOKEN_SCALES": token_scales,
        "ROTATES": rotates,
        **row_tiles(architecture, head_size=128).options,
    }
    options = {"num_warps": constants.pop("num_warps"), "enable_fp_fusion": False}
    row = TRITON_NAMES[dtype]
    elements = {**dict.fromkeys(("q", "k", "v"), row), "kv_cache": TRITON_NAMES[stored.dtype], "cos_sin_cache": "fp32"}
    options_given = f"{' rotary' if rotates else ''}{' token scales' if token_scales else ''}"
    name = f"write_kv_cache_kernel {row} {stored_as} {interior}{options_given}"
    report[name] = compile_kernel(write_kv_cache_kernel, architecture, elements, constants, options)


def main(architecture: str) -> None:
    report = {}
    for dtype, head_size, max_query_len in [
        (torch.bfloat16, 128, 1),
        (torch.bfloat16, 128, 512),
        (torch.float16, 80, 512),
        (torch.bfloat16, 256, 512),
        (torch.float32, 128, 512),
        (torch.float32, 256, 512),
    ]:
        compile_attention(report, architecture, "paged", dtype, head_size, max_query_len)
    for variant in VARIANTS:
        compile_attention(report, architecture, variant, torch.bfloat16, 128, 512)
    for cache_dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8):
        for max_query_len in (1, 512):
            compile_attention(report, architecture, "paged", torch.bfloat16, 128, max_query_len, cache_dtype)
    compile_attention(report, architecture, "token scales", torch.bfloat16, 128, 512, torch.int8)
    compile_write_kv_cache(report, architecture, torch.int16)
    compile_write_kv_cache(report, architecture, torch.bfloat16, rotates=True)
    compile_write_kv_cache(report, architecture, torch.float32, rotates=True)
    for interior in ("rows", "x_packed", "shuffled"):
        compile_write_kv_cache(report, architecture, torch.bfloat16, torch.float8_e4m3fn, interior, rotates=True)
    compile_write_kv_cache(report, architecture, torch.float16, torch.float8_e4m3fnuz)
    compile_write_kv_cache(report, architecture, torch.bfloat16, torch.int8, token_scales=True)
    constants = row_tiles(architecture, head_size=128).options
    options = {"num_warps": constants.pop("num_warps")}
    for kernel, units in (
        (merge_attn_states_kernel, {"STRIDE_UNIT": 8}),
        (reduce_parts_kernel, {"OUT_UNIT": 8, "OUT_FORMAT": "float"}),
    ):
        elements = dict.fromkeys(("out", "out_a", "out_b"), "bf16")
        report[kernel.fn.__name__] = compile_kernel(kernel, architecture, elements, {**constants, **units}, options)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])

"""Compile the shipping kernels for one GPU, which need not be there, and print what the compiler says of them as JSON.

Run as a script, in a process without Triton's interpreter: `python compile_kernels.py gfx942`.
"""

import json
import re
import sys

import torch
import triton
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.kernels.paged_attention import paged_attention_kernel
from attn_optimized.kernels.varlen_attention import varlen_attention_kernel
from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel
from attn_optimized.launch import attention_tiles, row_tiles
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
    "sm90": GPUTarget("cuda", 90, 32),
}
TRITON_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
POINTERS = {"lse": "fp32", "sinks": "fp32", "query_start_loc": "i32", "seq_lens": "i32", "block_table": "i32", "causal": "i1",
            "slot_mapping": "i64", "lse_a": "fp32", "lse_b": "fp32"}  # fmt: skip


def compile_kernel(kernel, architecture: str, element: str, constants: dict, options: dict) -> dict:
    """Compile a kernel with every optional tensor given, and all pointers and strides multiples of 16 bytes."""
    signature, divisible = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + POINTERS.get(name.removesuffix("_ptr"), element)
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif name == "scale":
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
    else:
        text = compiled.asm["ptx"]
        facts["matrix_instructions"] = len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.", text))
        facts["wide_loads"] = len(re.findall(r"\.v4\.b32|cp\.async\.c[ag]\.shared\.global [^;]*0x10", text))
    return facts


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
        tiles = attention_tiles(
            architecture, itemsize=dtype.itemsize, head_size=head_size, group=4, max_query_len=max_query_len
        )
        constants = {"STRIDE_UNIT": 16 // dtype.itemsize, **tiles.options}
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        for kernel in (paged_attention_kernel, varlen_attention_kernel):
            name = f"{kernel.fn.__name__} {TRITON_NAMES[dtype]} D{head_size} M{tiles.block_m}"
            report[name] = compile_kernel(kernel, architecture, TRITON_NAMES[dtype], constants, options)
    tiles = row_tiles(architecture, head_size=128)
    constants = {"STRIDE_UNIT": 8, **tiles.options}
    options = {"num_warps": constants.pop("num_warps")}
    for kernel, element in ((write_kv_cache_kernel, "i16"), (merge_attn_states_kernel, "bf16")):
        report[f"{kernel.fn.__name__} {element}"] = compile_kernel(kernel, architecture, element, constants, options)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])

"""Compile the decoding of float8 for GPUs, which need not be there, and print as JSON whether they do it in an instruction.

Run as a script, in a process without Triton's interpreter: `python compile_decode.py gfx942 sm90`.
"""

import json
import re
import sys

import torch
import triton
import triton.language as tl
from attn_fuzz.emulated.compilation import gpu_target
from attn_optimized.kernels.quantization import decode
from attn_optimized.quantization import stored_format
from triton.compiler import ASTSource

BLOCK = 1024
POINTERS = {torch.uint8: "*u8", torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e4m3fnuz: "*fp8e4b8"}


@triton.jit
def decode_kernel(out_ptr, x_ptr, FORMAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, decode(tl.load(x_ptr + i), FORMAT, out_ptr.dtype.element_ty, False))


def main(architectures: list[str]) -> None:
    report = {}
    for architecture in architectures:
        report[architecture] = {}
        for float8 in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
            stored, name = stored_format(torch.empty(0, dtype=float8), architecture)
            for dtype in ("fp32", "fp16", "bf16"):
                signature = {
                    "out_ptr": f"*{dtype}",
                    "x_ptr": POINTERS[stored.dtype],
                    "FORMAT": "constexpr",
                    "BLOCK": "constexpr",
                }
                source = ASTSource(decode_kernel, signature, constexprs={"FORMAT": name, "BLOCK": BLOCK})
                compiled = triton.compile(source, target=gpu_target(architecture))
                text = compiled.asm.get("amdgcn") or compiled.asm["ptx"]
                instruction = re.search(r"\bv_cvt_\w*fp8|\bcvt\S*\.e4m3x2", text)
                report[architecture][f"{str(float8).removeprefix('torch.')} {dtype}"] = instruction is not None
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

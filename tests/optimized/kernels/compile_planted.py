"""Compile what must not ship for GPUs, which need not be here, and print the facts as JSON.

Run as a script, in a process without Triton's interpreter: `python compile_planted.py gfx942 sm90`.
"""

import dataclasses
import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from attn_binaries.compilation import compile_call
from attn_binaries.shipped_calls import chosen
from attn_optimized.kernel_call import KernelCall, Launch

SIDE = 64


@triton.jit
def dot_kernel(out_ptr, x_ptr, y_ptr, stride_row, PRECISION: tl.constexpr, SIDE: tl.constexpr):
    row = tl.arange(0, SIDE)
    place = (row * stride_row)[:, None] + row[None, :]
    product = tl.dot(tl.load(x_ptr + place), tl.load(y_ptr + place), input_precision=PRECISION)
    tl.store(out_ptr + place, product)


@triton.jit
def place_of(row, stride_row):
    return (row * stride_row)[:, None] + row[None, :]  # int32: SIDE * SIDE at most


@triton.jit
def excused_kernel(out_ptr, x_ptr, y_ptr, stride_row, PRECISION: tl.constexpr, SIDE: tl.constexpr):
    """dot_kernel with a product that says why it is small."""
    place = place_of(tl.arange(0, SIDE), stride_row)
    tl.store(out_ptr + place, tl.dot(tl.load(x_ptr + place), tl.load(y_ptr + place), input_precision=PRECISION))


def dot(precision: str, kernel: Any = dot_kernel) -> KernelCall:
    """A call of the kernel on float32, at 32-bit offsets."""
    tensor = torch.empty(SIDE, SIDE, device="meta")
    tensors = {f"{name}_ptr": tensor for name in ("out", "x", "y")}
    constants = {"PRECISION": precision, "SIDE": SIDE}
    return KernelCall(Launch.of(kernel, (1,), constants, {}, stride_row=tensor.stride(0)), tensors)


def main(architectures: list[str]) -> None:
    report = {}
    for architecture in architectures:
        rotation = chosen(architecture, only="RoPE and cache write, fp32")["RoPE and cache write, fp32"]
        fused = dataclasses.replace(rotation.launch, options={**rotation.launch.options, "enable_fp_fusion": True})
        calls = {
            "tf32": dot("tf32"),
            "ieee": dot("ieee"),
            "excused": dot("ieee", excused_kernel),
            "rotation": rotation,
            "fused rotation": rotation._replace(launch=fused),
        }
        binaries = {name: compile_call(call, architecture) for name, call in calls.items()}
        report[architecture] = {name: dataclasses.asdict(binary.facts) for name, binary in binaries.items()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

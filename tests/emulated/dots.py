"""Kernels that are one product of matrices each. As a program: compile them, and print {name: assembly} as JSON.

The compiler has put its knowledge of the matrix instructions' layouts into the addresses from which a kernel loads, so a right
product says that the layouts here are those of the compiler. The process needs Triton without its interpreter.
"""

import json

import torch
import triton
import triton.language as tl

ROWS = COLUMNS = 32
KINDS = {
    "bf16": (torch.bfloat16, torch.float32),
    "f32": (torch.float32, torch.float32),
    "f64": (torch.float64, torch.float64),
    "i8": (torch.int8, torch.int32),
    "fp8": (torch.float8_e4m3fn, torch.float32),
    "bf8_fnuz": (torch.float8_e5m2fnuz, torch.float32),
}
"""The dtypes of A and B, and of the product."""
ARCHITECTURES = {
    "gfx90a": "bf16 i8 f32 f64",
    "gfx942": "bf16 i8 f32 f64 bf8_fnuz",
    "gfx950": "bf16 i8 f32 f64 fp8",
    "gfx1100": "bf16 i8",
    "gfx1201": "bf16 i8 fp8",
    "gfx1250": "bf16 i8 f32 fp8",
}
"""The kinds that each architecture multiplies by matrix instructions, one for each layout: f16 has the layouts of bf16."""
SCALED = (128, 128, 256)
"""Rows, columns and k of the product with scales, whose A is E4M3 and whose B is E2M1, two elements in a byte."""


def cases() -> list[tuple[str, str, int]]:
    """An architecture, a kind, and the rows of the instruction on gfx9, which has two shapes; 0 elsewhere."""
    return [
        (architecture, kind, rows)
        for architecture, kinds in ARCHITECTURES.items()
        for kind in kinds.split()
        for rows in ((0,) if architecture.startswith("gfx1") else (16,) if kind == "f64" else (16, 32))
    ]


def k_of(kind: str) -> int:
    return 64 if "8" in kind else 32


@triton.jit
def dot(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, OUT: tl.constexpr):
    row, column, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + row[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + column[None, :])
    tl.store(c_ptr + row[:, None] * N + column[None, :], tl.dot(a, b, out_dtype=OUT, input_precision="ieee"))


@triton.jit
def scaled_dot(a_ptr, b_ptr, c_ptr, a_scale_ptr, b_scale_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    pair, group = tl.arange(0, K // 2), tl.arange(0, K // 32)
    a = tl.load(a_ptr + row[:, None] * K + k[None, :])
    b = tl.load(b_ptr + pair[:, None] * N + column[None, :])
    a_scale = tl.load(a_scale_ptr + row[:, None] * (K // 32) + group[None, :])
    b_scale = tl.load(b_scale_ptr + column[:, None] * (K // 32) + group[None, :])
    c = tl.dot_scaled(a, a_scale, "e4m3", b, b_scale, "e2m1")
    tl.store(c_ptr + row[:, None] * N + column[None, :], c)


def compiled() -> dict[str, str]:
    from attn_fuzz.emulated.compilation import compiled_kernel

    def empty(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(1 << 16, dtype=dtype, device="meta")

    out = {torch.float32: tl.float32, torch.float64: tl.float64, torch.int32: tl.int32}
    found = {}
    for architecture, kind, rows in cases():
        source, result = KINDS[kind]
        tensors = empty(source), empty(source), empty(result)
        options = {"num_warps": 1} | ({"matrix_instr_nonkdim": rows} if rows else {})
        binary, _ = compiled_kernel(dot, architecture, *tensors, M=ROWS, N=COLUMNS, K=k_of(kind), OUT=out[result], **options)
        found[f"{architecture} {kind} {rows}"] = binary.asm["amdgcn"]
    tensors = empty(torch.float8_e4m3fn), empty(torch.uint8), empty(torch.float32), empty(torch.uint8), empty(torch.uint8)
    rows, columns, k = SCALED
    found["scaled"] = compiled_kernel(scaled_dot, "gfx950", *tensors, M=rows, N=columns, K=k)[0].asm["amdgcn"]
    return found


if __name__ == "__main__":
    print(json.dumps(compiled()))

"""Run as a script: kernels on bfloat16 under the interpreter, compared with torch bit by bit; exit 0 if all agree."""

import itertools
import math

import torch
import triton
import triton.language as tl
from attn_fuzz.interpreted import interpreter

interpreter.install()
interpreter.install()  # twice is once

SIZE = 32
ROWS = 256


@triton.jit
def _twice(x):
    return x + x


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, dot_ptr, sum_ptr, larger_ptr, twice_ptr, SIZE: tl.constexpr):
    element = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x, y = tl.load(x_ptr + element), tl.load(y_ptr + element)
    tl.store(dot_ptr + element, tl.dot(x, y))
    tl.store(sum_ptr + element, x + y)
    tl.store(larger_ptr + element, x > y)
    tl.store(twice_ptr + element, _twice(x))


@triton.jit
def cast_kernel(x_ptr, out_ptr, ROWS: tl.constexpr):
    element = tl.arange(0, ROWS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    tl.store(out_ptr + element, tl.load(x_ptr + element).to(out_ptr.dtype.element_ty))


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(1,)](x, out, ROWS=ROWS)
    return out


for dtype in (torch.bfloat16, torch.float16):
    # multiples of 1/4 below 8: every product and sum is exact in float32
    x, y = (torch.randint(-32, 33, (SIZE, SIZE)).to(dtype) / 4 for _ in range(2))
    dot, total, larger, twice = torch.empty(SIZE, SIZE), *(torch.empty(SIZE, SIZE, dtype=d) for d in (dtype, torch.bool, dtype))
    arithmetic_kernel[(1,)](x, y, dot, total, larger, twice, SIZE=SIZE)
    assert torch.equal(dot, x.float() @ y.float()), dtype
    assert torch.equal(total, x + y), dtype
    assert torch.equal(larger, x > y), dtype
    assert torch.equal(twice, x + x), dtype

every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).reshape(ROWS, ROWS)
assert torch.equal(cast(every, torch.float32).nan_to_num(7), every.float().nan_to_num(7))
# float32 halfway between two bfloat16 values, and a little to either side
bits = every.float().view(torch.int32)
for offset in (0x7FFF, 0x8000, 0x8001):
    between = (bits + offset).view(torch.float32)
    assert torch.equal(cast(between, torch.bfloat16).nan_to_num(7), between.bfloat16().nan_to_num(7)), hex(offset)

# of one name there is one type, whichever way it is asked for: same element, shape and number of elements
for element, shape in itertools.product((tl.float32, tl.bfloat16, tl.pointer_type(tl.float32)), ([4], [4, 8], [8, 4])):
    first, again = tl.block_type(element, shape), tl.block_type(element, [tl.constexpr(size) for size in shape])
    assert first == again
    assert [int(size) for size in again.shape] == shape
    assert (again.element_ty, again.numel) == (element, math.prod(shape))
    held = tl.tensor(None, again)
    assert (held.dtype, [size.value for size in held.shape], held.numel.value) == (element, shape, math.prod(shape))

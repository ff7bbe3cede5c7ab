"""Products of pairs of 16 bits, and their sum.

v_dot2_bf16_bf16 adds the product of the lower halves of its first two sources, the product of their upper halves, and its third
source, which is a bfloat16. op_sel names the half of the third source and, last, of the result. A constant is the 32 bits of
both halves: a float such as -1.0 is a bfloat16 in the lower half, and the upper half is 0.

AMD does not say where the sum is rounded. Here it is rounded once. Triton multiplies two bfloat16 by it, with zeros in all
other places: one product is rounded once, wherever the rounding is.

v_dot2_f32_f16 and v_dot2c_f32_f16 add a float32 and the two products of float16, the lower halves' first. A denormal float32
becomes 0, as a source and as the result, whatever the modes say. Each sum is rounded here, in the order of AMD's pseudocode;
AMD does not say that hardware does so. v_dot2_f32_bf16 and v_dot2c_f32_bf16 do the same with bfloat16, and keep its denormals.

Source: "VOP3 Instructions" in AMD's RDNA3 ISA and in AMD's RDNA4 ISA; "VOP2" and "VOP3P Instructions" in AMD's Instinct MI300
ISA, and of bfloat16 in AMD's Instinct MI355 ISA; in LLVM getInlineEncodingV2BF16 for constants, and performFMACombine for
denormals.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.instructions.convert import bf16_to_f32, f32_to_bf16
from attn_amdgcn.instructions.forms import vector
from attn_amdgcn.instructions.fused import F16, F32, dot2_to_odd, fma32
from attn_amdgcn.instructions.modes import flushed


def _low(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16)


def _high(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint32(16)).astype(np.uint16)


@vector("v_dot2_bf16_bf16", "bf16 = 2bf16 2bf16 bf16", takes=("op_sel",), keeps_half=True)
def dot2_bf16(a, b, c):
    low, high = ((bf16_to_f32(part(a)), bf16_to_f32(part(b))) for part in (_low, _high))
    return f32_to_bf16(dot2_to_odd(*low, *high, bf16_to_f32(c)))


def _sum(in_float32: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The sum of a float32 and of two products, whose factors a function makes float32 of 16 bits."""

    def total(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        for part in (_low, _high):
            c = flushed(fma32(in_float32(part(a)), in_float32(part(b)), flushed(c)))
        return c

    return total


for _kind, _in_float32 in (("f16", lambda bits: bits.view(F16).astype(F32)), ("bf16", bf16_to_f32)):
    vector(f"v_dot2_f32_{_kind}", "f32 = b32 b32 f32")(_sum(_in_float32))
    vector(f"v_dot2c_f32_{_kind}", "f32 = b32 b32 *f32")(_sum(_in_float32))

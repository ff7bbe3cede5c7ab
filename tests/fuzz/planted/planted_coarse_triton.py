"""The Triton kernel, interpreted, with a coarser step of its online softmax: the zoo's bugs can be put into it.

attn_lab zoo run --target planted_coarse_triton:SUMS
"""

import dataclasses
from unittest import mock

import triton
import triton.language as tl
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON
from attn_fuzz.verdict.rounding import Rounding
from attn_optimized.kernels import attention as kernel
from attn_optimized.kernels.online_softmax import add_values, softmax_step


@triton.jit
def _narrow_step(row_max, sums, logits, to_base_2, IN_COLUMNS: tl.constexpr, LOG2_UNIT: tl.constexpr):
    new_max, sums, weights, decay = softmax_step(row_max, sums, logits, to_base_2, IN_COLUMNS, LOG2_UNIT)
    return new_max.to(tl.bfloat16).to(tl.float32), sums.to(tl.bfloat16).to(tl.float32), weights, decay


@triton.jit
def _narrow_values(acc, decay, weights, v, v_scale, SCALES: tl.constexpr, IN_INTEGERS: tl.constexpr):
    decay = decay.to(tl.bfloat16).to(tl.float32)
    return add_values(acc, decay, weights, v, v_scale, SCALES, IN_INTEGERS).to(tl.bfloat16).to(tl.float32)


@triton.jit
def _float8_step(row_max, sums, logits, to_base_2, IN_COLUMNS: tl.constexpr, LOG2_UNIT: tl.constexpr):
    new_max, sums, weights, decay = softmax_step(row_max, sums, logits, to_base_2, IN_COLUMNS, LOG2_UNIT)
    scale = 256.0 * 2.0**-LOG2_UNIT
    return new_max, sums, (weights * scale).to(tl.float8e4nv).to(tl.float32) / scale, decay


def _triton_target(name: str, functions: dict[str, object], **does) -> Target:
    """The Triton kernel with functions of this module in place of its own."""

    def attention(*args, **kwargs) -> None:
        with mock.patch.multiple(kernel, **functions):
            TRITON.attention(*args, **kwargs)

    def rounding(device: str) -> Rounding:
        return dataclasses.replace(TRITON.rounding(device), exact_division=False, **does)

    return dataclasses.replace(TRITON, name=name, attention=attention, rounding=rounding)


SUMS = _triton_target(
    "planted-coarse-triton-sums",
    {"softmax_step": _narrow_step, "add_values": _narrow_values},
    maximum="bfloat16",
    sums="bfloat16",
    outputs="bfloat16",
)
FLOAT8 = _triton_target("planted-coarse-triton-float8", {"softmax_step": _float8_step}, weights="fp8_e4m3fn", weight_scale=256)

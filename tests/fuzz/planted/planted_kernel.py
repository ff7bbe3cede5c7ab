"""A kernel that no compiler takes: the function that it calls names what is not there."""

import triton
import triton.language as tl


@triton.jit
def _called():
    tl.unheard_of()


@triton.jit
def refused_kernel():
    _called()

"""extend_attention: a soft cap of 0.5 puts a dot into the kernel's name, and Triton refuses to compile it.

The name that AITER makes of the constants is given to a kernel of one line, which is compiled for gfx942.
"""

import os
import sys

from kernels import load, tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError, compile
from triton.runtime.jit import JITFunction

os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # the cache does not tell names apart


def kernel(x, logit_cap: tl.constexpr):
    tl.store(x, logit_cap)


name_of = load("aiter.ops.triton._triton_kernels.attention.extend_attention")._fwd_kernel_extend_repr
source = ASTSource(JITFunction(kernel, repr=name_of), {"x": "*fp32", "logit_cap": "constexpr"}, {(1,): 0.5})
try:
    compile(source, target=GPUTarget("hip", "gfx942", 64))
except CompilationError as error:
    print("expected  a name with logit_cap_0_5 or the like\ngot      ", str(error).splitlines()[-1])
    sys.exit(1)

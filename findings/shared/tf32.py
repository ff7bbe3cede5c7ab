"""Show on a CPU the numbers that TF32 gives on a GPU, where a script imports this."""

import numpy as np
from kernels import DEVICE
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def cut(operand):
    """An operand of a dot as an H100 reads it: float32 without its last 13 bits."""
    if operand.data.dtype != np.float32:
        return operand
    return TensorHandle((operand.data.view(np.uint32) & 0xFFFFE000).view(np.float32), operand.dtype)


def cutting(create_dot):
    """The interpreter's dot, which multiplies in float32, with the precision that the kernel asks for, or takes by default."""

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if input_precision.name == "TF32":
            a, b = cut(a), cut(b)
        return create_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    return dot


if DEVICE == "cpu":
    InterpreterBuilder.create_dot = cutting(InterpreterBuilder.create_dot)

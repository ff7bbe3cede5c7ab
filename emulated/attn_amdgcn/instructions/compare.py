"""Comparisons: a bit for each lane, and 0 for the lanes that are off.

Source: "VOPC Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA. v_cmpx writes EXEC: beside its result on gfx9,
and in place of a result from gfx10 on.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Operand, Register
from attn_amdgcn.instructions.forms import Step, own_step, parts_of, vector
from attn_amdgcn.operands import mask_result
from attn_amdgcn.pieces import function_of, piece

INTEGERS: dict[str, Callable] = {
    "f": lambda a, b: np.zeros(np.broadcast(a, b).shape, bool),
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "t": lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
}


def unordered(a, b):
    """True if one of two floats is a NaN."""
    return np.isnan(a) | np.isnan(b)


FLOATS: dict[str, Callable] = {
    "f": INTEGERS["f"],
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ge": np.greater_equal,
    "o": lambda a, b: (a == a) & (b == b),
    "u": unordered,
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": np.not_equal,
    "nlt": lambda a, b: ~(a < b),
    "tru": INTEGERS["t"],
    "t": INTEGERS["t"],
}
"""The names of numpy's comparisons are false for a NaN, except not_equal. A name with n is true where its opposite is not."""

_KINDS = {**dict.fromkeys(("i16", "u16", "i32", "u32", "i64", "u64"), INTEGERS), **dict.fromkeys(("f16", "f32", "f64"), FLOATS)}
for _kind, _comparisons in _KINDS.items():
    for _name, _compare in _comparisons.items():
        vector(f"v_cmp_{_name}_{_kind}", f"mask = {_kind} {_kind}")(_compare)


def _classes(quiet: int):
    """The function that says whether a float's class is among those that a mask names.

    Bits 0 to 9 of the mask: signalling NaN, quiet NaN, -infinity, -normal, -denormal, -0, 0, denormal, normal, infinity.

    Args:
        quiet: the bit that is set in a quiet NaN.
    """

    def is_of_class(a, mask):
        bits = a.view(np.dtype(f"u{a.dtype.itemsize}"))
        size, tiny = np.abs(a), np.finfo(a.dtype).smallest_normal
        distance = np.where(size == 0, 0, np.where(size < tiny, 1, np.where(np.isinf(a), 3, 2)))
        number = np.where(np.signbit(a), 5 - distance, 6 + distance)
        number = np.where(np.isnan(a), bits >> bits.dtype.type(quiet) & bits.dtype.type(1), number)
        return mask >> number.astype(mask.dtype) & mask.dtype.type(1) != 0

    return is_of_class


vector("v_cmp_class_f16", "mask = f16 u16")(_classes(9))
vector("v_cmp_class_f32", "mask = f32 u32")(_classes(22))
vector("v_cmp_class_f64", "mask = f64 u32")(_classes(51))

_EXEC = Operand(Register("exec", 0, 2))


def _compare_and_switch(instruction: Instruction, kernel: Kernel) -> Step:
    names_result = kernel.architecture.startswith("gfx9")
    operands = instruction.operands if names_result else (_EXEC, *instruction.operands)
    compare = replace(instruction, name=instruction.name.replace("v_cmpx_", "v_cmp_"), operands=operands)
    compute, write = parts_of(compare, kernel).statements()
    write_exec = mask_result(_EXEC)(piece("value0"))
    return function_of(compute, write, write_exec) if names_result else function_of(compute, write)


own_step(" ".join(f"v_cmpx_{name}_{kind}" for kind, names in _KINDS.items() for name in names))(_compare_and_switch)
own_step("v_cmpx_class_f16 v_cmpx_class_f32 v_cmpx_class_f64")(_compare_and_switch)

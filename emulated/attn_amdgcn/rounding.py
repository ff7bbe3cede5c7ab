"""Instructions that hardware may round in another way. A launch without them has one result, bit by bit.

NaN is the exception. A NaN that an instruction makes or passes on may have other bits on hardware: see `instructions.modes`.
"""

import re

from attn_amdgcn.launch import Report
from attn_amdgcn.program import Program

OPEN = re.compile(r"v_(s_)?(exp|log|rcp|rsq|sqrt|sin|cos|tanh)_f\d+|v_(mfma|wmma)_(?!i32_).*|v_dot2_.*")
"""Functions that are exact to 1 ulp, and sums whose order or rounding is not published. Sums of integers have one result.

v_rcp_iflag_f32 is left out: compilers begin divisions of integers with it, and correct what it leaves.
"""


def inexact(program: Program, report: Report) -> tuple[str, ...]:
    """The mnemonics among the executed instructions whose rounding the ISA leaves open, each once."""
    executed = zip(program.kernel.instructions, report.executed, strict=True)
    return tuple(sorted({instruction.name for instruction, count in executed if count and OPEN.fullmatch(instruction.name)}))

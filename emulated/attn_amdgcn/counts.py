"""Counts what a launch executed, by classes of instructions. Counts are no time: an instruction of one class may take as long
as a hundred of another, and waves of a GPU run beside each other.

An instruction of a wave counts once, whatever its number of lanes, and so does one that issues two (v_dual_... :: v_dual_...).
"""

import re

from attn_amdgcn.launch import Report
from attn_amdgcn.program import Program

CLASSES = {
    "matrix": r"v_(mfma|smfmac|wmma|swmmac)_.*",
    "vector": r"v_.*",
    "global memory": r"(global|buffer|flat)_.*",
    "scratch memory": r"scratch_.*",
    "LDS": r"ds_.*",
    "scalar memory": r"s_(buffer_)?load_.*",
    "branches": r"s_c?branch.*|s_endpgm",
    "waits": r"s_(waitcnt|wait_|barrier|nop|delay_alu|sleep).*",
    "scalar": r"s_.*",
}
"""The mnemonics of each class. The first class that fits counts. gfx90a reaches scratch memory by buffer instructions."""


def class_of(name: str) -> str:
    """The class of a mnemonic.

    Raises:
        ValueError: it has none.
    """
    for kind, names in CLASSES.items():
        if re.fullmatch(names, name):
            return kind
    raise ValueError(f"instruction {name!r} has no class")


def counts(program: Program, report: Report) -> dict[str, int]:
    """How many instructions of each class the waves of a launch executed, in the order of CLASSES."""
    found = dict.fromkeys(CLASSES, 0)
    for instruction, executed in zip(program.kernel.instructions, report.executed, strict=True):
        found[class_of(instruction.name)] += int(executed)
    return found

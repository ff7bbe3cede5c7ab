"""Counts what a launch executed, by classes of instructions. Counts are no time: an instruction of one class may take as long
as a hundred of another, and waves of a GPU run beside each other.

An instruction of a wave counts once, whatever its number of lanes, and so does one that issues two (v_dual_... :: v_dual_...).
"""

import re
from math import prod

from attn_amdgcn.accesses import COLUMNS, Accesses
from attn_amdgcn.instructions.matrix.mfma import SHAPES_GFX90A, shape_of
from attn_amdgcn.launch import Report
from attn_amdgcn.program import Program

CLASSES = {
    "matrix": r"v_(mfma|smfmac|wmma|swmmac)_.*",
    "vector": r"v_.*",
    "global memory": r"(global|buffer|flat)_.*|tensor_.*",
    "scratch memory": r"scratch_.*",
    "LDS": r"ds_.*",
    "scalar memory": r"s_(buffer_)?load_.*",
    "branches": r"s_c?branch.*|s_endpgm",
    "waits": r"s_(waitcnt|wait_|barrier|nop|delay_alu|sleep).*",
    "scalar": r"s_.*",
}
"""The mnemonics of each class. The first class that fits counts. gfx90a reaches scratch memory by buffer instructions."""
COUNTED = (*CLASSES, "multiply-adds", *COLUMNS)
"""All that is counted of a launch, see `totals`."""


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
    """The number of instructions of each class that the waves of a launch executed, in the order of CLASSES."""
    found = dict.fromkeys(CLASSES, 0)
    for instruction, executed in zip(program.kernel.instructions, report.executed, strict=True):
        found[class_of(instruction.name)] += int(executed)
    return found


def multiply_adds(program: Program, report: Report) -> int:
    """The number of multiply-adds in the matrix instructions of a launch, with those of padding."""
    executed = zip(program.kernel.instructions, report.executed, strict=True)
    return sum(of_matrix_instruction(each.name) * int(times) for each, times in executed if class_of(each.name) == "matrix")


def of_matrix_instruction(name: str) -> int:
    """The multiply-adds of a matrix instruction: rows x columns x k x blocks."""
    found = re.fullmatch(r"v_(?:mfma|mfma_scale|wmma)_(\w+?)_(\d+x\d+x\d+(?:_\d+b)?)(\w+)", name)
    if found is None:
        raise ValueError(f"instruction {name!r} has no shape")
    accumulators, shape, kinds = found.groups()
    if not kinds.startswith("_"):  # gfx90a's name does not say how many blocks there are
        shapes = SHAPES_GFX90A[f"{accumulators} {kinds}"].split()
        shape = next(each for each in shapes if each.partition("_")[0] == shape)
    return prod(shape_of(shape))


def totals(program: Program, report: Report, accesses: Accesses) -> dict[str, int]:
    """The counts of a launch at which `accesses` looked on, in the order of COUNTED."""
    return counts(program, report) | {"multiply-adds": multiply_adds(program, report)} | accesses.total

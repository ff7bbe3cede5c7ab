"""Errors: a kernel cannot be run, or does what it must not do."""

import reprlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from attn_amdgcn.assembly import Instruction


MAX_SHOWN = 200


def shown(value: object) -> str:
    """A value of a file for a message, on one line of at most MAX_SHOWN characters and three dots."""
    try:
        text = " ".join(value.split()) if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # Python writes no int of thousands of digits
        text = f"{type(value).__name__} that is too long to show"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class AmdgcnError(Exception):
    """Every error of this package."""


class AssemblyError(AmdgcnError):
    """The text is no kernel that Triton could have written: the message holds the line."""


class UnknownInstructionError(AmdgcnError):
    """The text holds an instruction, an operand or a modifier whose meaning is not defined here. Nothing was run.

    Or a launch reached an access that is a race unless atomic instructions order the workgroups, which is not known here.
    """


class LaunchError(AmdgcnError):
    """The grid or the arguments do not fit the kernel."""


class Touch(NamedTuple):
    """A byte that a wave must not touch: the buffer (or the nearest one), the byte in it, and "read" or "written"."""

    buffer: str
    byte: int
    does: str


class EmulationFault(AmdgcnError):  # noqa: N818 - the hardware's word
    """A wave did what hardware would punish, or would let pass with a wrong result.

    Attributes:
        what: the fault in words.
        wave: the number of the wave in its workgroup, or None.
        workgroup: the number of the workgroup in the grid, or None.
        lane: the first lane at fault, or None.
        touch: the byte of global memory that the lane must not touch, or None.
        instruction: the text of the instruction; empty until the fault leaves the instruction.
        line: the number of the instruction's line in the text.
        source: the line of the kernel's source from which the instruction was made, such as "attention.py:120".
    """

    def __init__(
        self,
        what: str,
        *,
        wave: int | None = None,
        workgroup: int | None = None,
        lane: int | None = None,
        touch: Touch | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.wave, self.workgroup, self.lane, self.touch = what, wave, workgroup, lane, touch
        self.instruction, self.line, self.source = "", 0, ""

    def at(self, instruction: "Instruction") -> "EmulationFault":
        """This fault, with its instruction."""
        self.instruction, self.line, self.source = instruction.text, instruction.line, instruction.source
        return self

    def __str__(self) -> str:
        places = [("workgroup", self.workgroup), ("wave", self.wave), ("lane", self.lane)]
        where = ", ".join(f"{name} {number}" for name, number in places if number is not None)
        text = f"{self.what} ({where})" if where else self.what
        if not self.instruction:
            return text
        return f"{text}: {_place(self.instruction, self.line, self.source)}"


Hazards = dict[tuple[int, int], EmulationFault]
"""Faults of code that is right only if hardware is quick enough: it reads a register before its load has ended, or LDS races.

The keys are the lines of the two instructions: the earlier one, and the one that does not wait for it.
"""


MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The exceptions of an instruction whose operands or modifiers are not those that its name requires."""


def malformed(instruction: "Instruction", error: BaseException) -> AssemblyError:
    where = f"line {instruction.line}: `{instruction.text}`"
    return AssemblyError(f"{where}: its operands or modifiers are not of its form: {type(error).__name__}: {shown(str(error))}")


def described(instruction: "Instruction") -> str:
    """An instruction and where it stands."""
    return _place(instruction.text, instruction.line, instruction.source)


def _place(text: str, line: int, source: str) -> str:
    return f"`{text}`, line {line} of the assembly, made of {source or 'an unknown line'}"

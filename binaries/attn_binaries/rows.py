"""Results of launches that were compiled, and of launches that ran on the emulator."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from attn_binaries.assembly import digest
from attn_binaries.build import Outcome, OutOfTime
from attn_binaries.facts import Facts

COLUMNS = ("launch", "kernel", "warps", "VGPRs", "AGPRs", "SGPRs", "spills", "LDS", "waves", "matrix", "load", "loop")
"""Columns of a table of binaries; all but the first two hold numbers."""
AGREES = "agree"


@dataclass(frozen=True)
class Row:
    """One binary: a launch on an architecture, its kernel, its waves (warps) and its facts.

    Attributes:
        code: the digest of its assembly.
        loop: the number of instructions of its hot loop (`attn_amdgcn.hot_loop`); None without one, and for NVIDIA.
    """

    architecture: str
    call: str
    kernel: str
    num_warps: int
    facts: Facts
    code: str
    loop: int | None = None


class Execution(NamedTuple):
    """The result of a launch on small cases.

    Attributes:
        verdict: "agree"; a kind of failure of `attn_fuzz.verdict.verdict`, such as "value" or "raised"; or "not run".
        error: the largest error / bound of outputs; 0 where what is written is compared bitwise.
        why: why it does not agree, or did not run; empty if it agrees.
    """

    verdict: str
    error: float
    why: str = ""

    @property
    def agrees(self) -> bool:
        return self.verdict == AGREES


def rows_of(outcome: Outcome) -> tuple[Row, ...]:
    return tuple(
        Row(
            architecture,
            name,
            binary.name,
            binary.num_warps,
            binary.facts,
            digest(binary.assembly, binary.name),
            binary.hot_loop,
        )
        for (architecture, name), binary in outcome.binaries.items()
    )


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of one architecture and code as one: the first, whose name says how many others there are."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.architecture, row.code), []).append(row)
    return [
        replace(first, call=f"{first.call} (and {len(others)} with the same code)") if others else first
        for first, *others in found.values()
    ]


def errors_of(outcome: Outcome) -> tuple[str, ...]:
    """A sentence for each launch that has no code."""
    return tuple(
        f"{architecture} {name}: {error if isinstance(error, OutOfTime) else f'does not compile: {error}'}"
        for (architecture, name), error in outcome.errors.items()
    )


def uncompiled(outcome: Outcome) -> str:
    """The number of launches without code, in words. That one has no code in time is no fault of the launch."""
    out_of_time = outcome.out_of_time
    words = f"{len(outcome.errors) - out_of_time} do not compile"
    return f"{words}, {out_of_time} have no code after --compile-seconds" if out_of_time else words


def exit_code(wrong: Iterable[str], outcome: Outcome) -> int:
    """1 if a launch is wrong, 2 if none is, but one had no code after --compile-seconds."""
    return 1 if list(wrong) or len(outcome.errors) > outcome.out_of_time else 2 * bool(outcome.out_of_time)


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a binary, by COLUMNS. Spills are VGPRs and SGPRs, LDS is KiB, load is the bytes of a lane's widest load.
    loop is the instructions of the hot loop.
    """
    facts = row.facts
    spills = "/".join(shown(spilled) for spilled in (facts.vgpr_spills, facts.sgpr_spills) if spilled is not None)
    registers = (shown(facts.vgprs), shown(facts.agprs), shown(facts.sgprs))
    others = (shown(facts.waves), shown(facts.matrix_instructions), shown(facts.widest_load), shown(row.loop))
    kernel = row.kernel.removesuffix("_kernel")
    return (row.call, kernel, str(row.num_warps), *registers, spills, f"{facts.lds_bytes / 1024:.3g}", *others)


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"

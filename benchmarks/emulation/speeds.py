"""How fast the emulator ran fixed launches, as data and as a table."""

from collections.abc import Sequence

import msgspec


class Speed(msgspec.Struct, frozen=True):
    """The speed of a launch: the fastest of some runs.

    Attributes:
        instructions: of all waves.
        seconds, with_races: of the CPU, without races looked for, and with.
    """

    architecture: str
    launch: str
    instructions: int
    seconds: float
    with_races: float


class Speeds(msgspec.Struct, frozen=True):
    """What one machine measured.

    Attributes:
        machine: its processor and the version of Python.
    """

    machine: str
    rows: tuple[Speed, ...]


def table(rows: Sequence[Speed]) -> list[str]:
    """The table of a page."""
    lines = ["| architecture | launch | wave instructions | M/s | M/s with races |", "|---|---|--:|--:|--:|"]
    for row in rows:
        rates = (f"{row.instructions / seconds / 1e6:.2f}" for seconds in (row.seconds, row.with_races))
        lines.append(f"| {row.architecture} | {row.launch} | {row.instructions:,} | {' | '.join(rates)} |")
    return lines

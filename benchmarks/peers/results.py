"""Rows of facts about launches, as the CSV file that keeps them: a line for each launch, or for why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attn_lab import csv_file

SCHEMA = "attn-parity.peers/1"
MAX_REASON_CHARACTERS = 100
"""Characters of a reason."""
PLACE = ("architecture", "case", "whose", "kernel")
KEYS = 2
"""The number of PLACE's columns that a line leaves out where they equal those of the line before."""


class Row(NamedTuple):
    """A participant's launch in a case, on an architecture.

    Attributes:
        kernel: the name of the kernel; empty where nothing was launched.
        facts: numbers by name. Unknown ones, and those without a meaning here, are left out.
        why: the fault of the launch, or the reason why there are no facts.
    """

    architecture: str
    case: str
    whose: str
    kernel: str = ""
    facts: Mapping[str, float] = {}
    why: str = ""

    def without(self, error: str) -> "Row":
        """The row with the kind of an error and its last line as the reason."""
        kind, _, rest = error.partition(":")
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        return self._replace(why=f"{kind}: {lines[-1]}"[:MAX_REASON_CHARACTERS] if lines else kind[:MAX_REASON_CHARACTERS])


@dataclass(frozen=True)
class Results:
    """The rows, the version of Triton, and the versions of the peers by their names in `Row.whose`."""

    triton: str
    peers: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def versions(self) -> str:
        """The versions of Triton and of the peers, in words."""
        named = {"Triton": self.triton} | {whose.removesuffix(" Triton"): version for whose, version in self.peers.items()}
        return ", ".join(f"{name} {version}" for name, version in named.items())

    def json(self) -> dict[str, Any]:
        """The record that `--json` writes."""
        rows = [row._asdict() for row in self.rows]
        return {"schema": SCHEMA, "triton": self.triton, "peers": dict(self.peers), "rows": rows}

    def save(self, path: Path, facts: Sequence[str]) -> None:
        """Write a file with a column for each of these facts."""
        lines = ([*row[:4], *(_shown(row.facts.get(name)) for name in facts), row.why] for row in self.rows)
        csv_file.save(path, (*PLACE, *facts, "why"), lines, {"Triton": self.triton, **self.peers}, KEYS)


def read(path: Path, facts: Sequence[str]) -> Results:
    """
    Raises:
        InputError: it is missing, or no such file.
    """
    versions, records = csv_file.load(path, (*PLACE, *facts, "why"), KEYS)
    triton, rows = versions.pop("Triton"), []
    for record in records:
        found = {name: float(record[name]) for name in facts if record[name]}
        rows.append(Row(*(record[name] for name in PLACE), facts=found, why=record["why"]))
    return Results(triton, versions, tuple(rows))


def _shown(fact: float | None) -> str:
    return "" if fact is None else str(int(fact)) if fact == int(fact) else f"{fact:g}"

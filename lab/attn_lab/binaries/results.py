"""Launches that were compiled, and what came of running them on the emulator: a CSV file with a line for each launch."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.build import LaunchName
from attn_binaries.facts import Facts
from attn_binaries.rows import AGREES, Execution, Row
from attn_fuzz.errors import InputError
from attn_lab import csv_file
from attn_lab.pages import PAGES

DATA = PAGES / "binaries.csv"
FAULTS = ("lost_addresses", "tf32_instructions", "narrow_products")
"""Facts that are 0 of every binary that is kept."""
NOT_KEPT = (*FAULTS, "agprs", "sgprs", "sgpr_spills", "widest_load", "lds_bytes")
"""Facts that the page and the budgets do not read of a file: 0 of a row that was read."""
FACTS = tuple(field.name for field in dataclasses.fields(Facts) if field.name not in (*NOT_KEPT, "lds_limit"))
"""The facts that a CSV file keeps. `lds_limit` is not kept: it follows from the architecture."""
COLUMNS = ("launch", "architecture", *FACTS, "code", "emulated", "emulated code")
"""A launch tells its kernel. `emulated` is the largest error / bound of a launch that agrees, or what came of another one.
`emulated code` is the code that ran, if it is another one."""


@dataclass
class Results:
    """The launches that one version of Triton compiled, by architecture and name.

    Attributes:
        ran: what came of those that ran on the emulator.
    """

    triton: str
    rows: dict[LaunchName, Row] = field(default_factory=dict)
    ran: dict[LaunchName, Execution] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, the lines of a launch together. Of those that ran it has the code, and what came of it."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in self.rows))}
        lines = (
            [name, architecture, *fact_cells(row.facts), row.code, *self._emulated((architecture, name))]
            for (architecture, name), row in sorted(self.rows.items(), key=lambda each: numbers[each[0][1]])
        )
        csv_file.save(path, COLUMNS, lines, {"Triton": self.triton})

    def _emulated(self, job: LaunchName) -> tuple[str, str]:
        one = self.ran.get(job)
        if one is None:
            return "", ""
        came = f"{one.error:.2g}" if one.agrees else f"{one.verdict} {one.error:.2g}: {one.why}"
        return came, "" if one.code == self.rows[job].code else one.code

    @property
    def wrong(self) -> list[str]:
        """The launches that do not agree, in words."""
        return [f"{' '.join(job)}: {one.verdict}: {one.why}" for job, one in self.ran.items() if not one.agrees]


def load(path: Path) -> Results:
    """Read the file.

    Raises:
        InputError: it is missing, or no such file.
    """
    versions, records = csv_file.load(path, COLUMNS)
    results = Results(versions["Triton"])
    for record in records:
        job = record["architecture"], record["launch"]
        row = Row(*job, "", 0, facts_from(record, path), record["code"])
        results.rows[job] = row
        if came := record["emulated"]:
            verdict, _, why = came.partition(": ")
            kind, _, error = verdict.rpartition(" ")
            results.ran[job] = Execution(kind or AGREES, float(error), why, record["emulated code"] or row.code)
    return results


def fact_cells(facts: Facts) -> list[str]:
    """A binary's cells for the columns of FACTS. The cell of an unknown fact is empty."""
    return ["" if (fact := getattr(facts, name)) is None else f"{fact:g}" if name == "waves" else str(fact) for name in FACTS]


def facts_from(record: Mapping[str, str], path: Path) -> Facts:
    """Read a binary's facts from a line.

    Raises:
        InputError: a cell is no number.
    """
    given: dict[str, Any] = {fact: record[fact] or None for fact in FACTS} | dict.fromkeys(NOT_KEPT, 0)
    given["lds_limit"] = ARCHITECTURES[record["architecture"]].lds_limit
    try:
        return msgspec.convert(given, Facts, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {record['architecture']} {record['launch']}: {error}") from None


def updated(kept: Results, found: Results, names: Mapping[str, Sequence[str]]) -> Results:
    """Join new results with the stored results of all other launches, in the order of the launches.

    Args:
        names: every launch, by architecture. Of one that is none of them any more, nothing is kept.
    """
    order = [(architecture, name) for architecture, calls in names.items() for name in calls]
    rows = kept.rows | found.rows
    ran = (kept.ran if kept.triton == found.triton else {}) | found.ran
    kept_rows = {job: rows[job] for job in order if job in rows}
    return Results(found.triton, kept_rows, {job: ran[job] for job in order if job in ran})


def differences(results: Results, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the launches that have no facts, and the facts that have no launch.

    Args:
        names: every launch, by architecture.
    """
    wanted = {(architecture, name) for architecture, calls in names.items() for name in calls}
    wrong = [f"{' '.join(job)}: a launch without facts" for job in sorted(wanted - results.rows.keys())]
    return wrong + [f"{' '.join(job)}: facts without a launch" for job in sorted(results.rows.keys() - wanted)]

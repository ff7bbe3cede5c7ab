"""The results of a compilation: rows of facts, kept as a CSV file with a line for each binary."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from attn_fuzz.text import one_line, printable
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.assembly import DIGITS
from attn_parity.binaries.facts import Facts

SCHEMA = "attn-parity.compile/1"
FACTS = tuple(field.name for field in dataclasses.fields(Facts) if field.name != "lds_limit")
"""The facts that a CSV file keeps. `lds_limit` is not kept: it follows from the architecture."""
SHOWN = 100
"""The most characters of a cell that an error quotes."""
_MAY_BE_UNKNOWN = {fact: type(None) in get_args(kind) for fact, kind in get_type_hints(Facts).items()}
_COLUMNS = ("triton", "architecture", "launch", "kernel", "num_warps", *FACTS, "code")


@dataclass(frozen=True)
class Row:
    """One binary: a launch on an architecture, its kernel, its waves (warps) and its facts.

    Attributes:
        code: the first digits of the digest of its assembly; empty if nobody noted it.
    """

    architecture: str
    call: str
    kernel: str
    num_warps: int
    facts: Facts
    code: str = ""


@dataclass(frozen=True)
class Results:
    """The binaries of one version of Triton, the binaries over budget, and the launches that do not compile."""

    triton: str
    binaries: tuple[Row, ...]
    over: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """The results as plain data for `compile --json`."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def csv(self) -> str:
        """The binaries as CSV, one line for each. Budgets and errors are left out."""
        return csv_of(
            _COLUMNS,
            (
                [self.triton, row.architecture, row.call, row.kernel, row.num_warps, *fact_cells(row.facts), row.code]
                for row in self.binaries
            ),
        )


def loads(text: str, name: str) -> Results:
    """Read the binaries from the text of a CSV file.

    Raises:
        ValueError: the text is not such a file.
    """
    records = records_of(text, _COLUMNS, name)
    rows = tuple(
        Row(
            record["architecture"],
            record["launch"],
            record["kernel"],
            count_of(record, "num_warps", name),
            facts_from(record, name),
            code_of(record, name),
        )
        for record in records
    )
    check_once(((row.architecture, row.call) for row in rows), name)
    return Results(records[0]["triton"], rows)


def csv_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file with these column names and rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([printable(str(cell), kept="\n") for cell in row] for row in rows)
    return text.getvalue()


def records_of(text: str, columns: Sequence[str], name: str) -> list[dict[str, str]]:
    """The lines of a CSV file, each as a dict by column.

    Args:
        columns: `triton` first: one version of Triton compiled what the lines are about.

    Raises:
        ValueError: the file has other columns, no line, a line of another length or Triton, or a control character.
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise ValueError(f"{name}: {error}") from None
    if len(lines) < 2 or tuple(lines[0]) != tuple(columns):
        raise ValueError(f"{name}: expected lines of {', '.join(columns)}")
    if wrong := next((line for line in lines if len(line) != len(columns)), None):
        raise ValueError(f"{name}: a line has {len(wrong)} cells, expected {len(columns)}: {','.join(wrong)}")
    if unfit := next((cell for line in lines for cell in line if printable(cell, kept="\n") != cell), None):
        raise ValueError(f"{name}: a control character in {one_line(ascii(unfit), SHOWN)}")
    if len(tritons := dict.fromkeys(line[0] for line in lines[1:])) > 1:
        raise ValueError(f"{name}: lines of several versions of Triton: {one_line(', '.join(tritons), SHOWN)}")
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def check_once(launches: Iterable[tuple[str, str]], name: str) -> None:
    """
    Raises:
        ValueError: a launch, an architecture and a name, is there twice.
    """
    seen: set[tuple[str, str]] = set()
    for launch in launches:
        if launch in seen:
            raise ValueError(f"{name}: {' '.join(launch)} is there twice")
        seen.add(launch)


def count_of(record: Mapping[str, str], column: str, name: str) -> int:
    """
    Raises:
        ValueError: the cell is no count.
    """
    if not re.fullmatch(r"[0-9]{1,18}", record[column]):
        raise ValueError(f"{name}: {column}: got {one_line(repr(record[column]), SHOWN)}, expected a count")
    return int(record[column])


def code_of(record: Mapping[str, str], name: str) -> str:
    """
    Raises:
        ValueError: the cell of `code` is neither empty nor the first digits of a digest.
    """
    if not re.fullmatch(rf"([0-9a-f]{{{DIGITS}}})?", record["code"]):
        got = one_line(repr(record["code"]), SHOWN)
        raise ValueError(f"{name}: code: got {got}, expected {DIGITS} hexadecimal digits or nothing")
    return record["code"]


def fact_cells(facts: Facts) -> list[str]:
    """A binary's cells for the columns of FACTS. The cell of an unknown fact is empty."""
    return ["" if (fact := getattr(facts, name)) is None else f"{fact:g}" if name == "waves" else str(fact) for name in FACTS]


def facts_from(record: Mapping[str, str], name: str) -> Facts:
    """Read a binary's facts from a line.

    Raises:
        ValueError: a cell is no number, or the architecture is unknown.
    """
    if record["architecture"] not in ARCHITECTURES:
        got = one_line(repr(record["architecture"]), SHOWN)
        raise ValueError(f"{name}: architecture: got {got}, expected one of {', '.join(ARCHITECTURES)}")
    figures: dict[str, Any] = {}
    for fact in FACTS:
        if not record[fact] and _MAY_BE_UNKNOWN[fact]:
            figures[fact] = None
        elif fact == "waves" and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", record[fact]):
            figures[fact] = float(record[fact])
        else:
            figures[fact] = count_of(record, fact, name)
    return Facts(**figures, lds_limit=ARCHITECTURES[record["architecture"]].lds_limit)


def updated(kept: Results, found: Results, names: Mapping[str, Sequence[str]]) -> Results:
    """What was found, and of all other launches what was kept, in the order of the launches.

    Args:
        names: every launch, by architecture. Of one that is none of them any more, nothing is kept.
    """
    rows = {(row.architecture, row.call): row for row in (*kept.binaries, *found.binaries)}
    order = [(architecture, name) for architecture, calls in names.items() for name in calls]
    return Results(found.triton, tuple(rows[launch] for launch in order if launch in rows))


def differences(results: Results, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the launches that have no facts, and the facts that have no launch.

    Args:
        names: every launch, by architecture.
    """
    kept = {(row.architecture, row.call) for row in results.binaries}
    wanted = {(architecture, name) for architecture, calls in names.items() for name in calls}
    wrong = [f"{architecture} {name}: a launch without facts" for architecture, name in sorted(wanted - kept)]
    return wrong + [f"{architecture} {name}: facts without a launch" for architecture, name in sorted(kept - wanted)]

"""What was counted, as the CSV file that keeps it: a line for each launch of a participant, or for why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attn_amdgcn.counts import COUNTED
from attn_parity.binaries.results import csv_of, records_of

from benchmarks.side_by_side import Versions, versions_of

SCHEMA = "attn-parity.counts/1"
FEW_WORDS = 100
"""Characters of a reason."""
_COLUMNS = ("triton", "architecture", "case", "whose", "version", "kernel", "programs", "num_warps", "needed", *COUNTED, "why")


class Row(NamedTuple):
    """A participant's launch in a case, on an architecture.

    Attributes:
        kernel: its name; empty where nothing ran.
        programs, num_warps: its workgroups, and the waves of one.
        needed: the multiply-adds of the case: of all visible pairs of a query and a key.
        counts: by COUNTED.
        why: nothing ran, or what is wrong with its output.
    """

    architecture: str
    case: str
    whose: str
    kernel: str = ""
    programs: int = 0
    num_warps: int = 0
    needed: int = 0
    counts: Mapping[str, int] = {}
    why: str = ""

    def without(self, error: str) -> "Row":
        """With the reason why nothing ran, on one line."""
        return self._replace(why=" ".join(error.split())[-FEW_WORDS:])


@dataclass(frozen=True, kw_only=True)
class Results(Versions):
    """All rows, and the versions of what they are about."""

    rows: tuple[Row, ...]

    def json(self) -> dict[str, Any]:
        """As `--json` writes them."""
        return {"schema": SCHEMA, "versions": self.versions, "rows": [row._asdict() for row in self.rows]}

    def csv(self) -> str:
        """As a file keeps them."""
        return csv_of(_COLUMNS, map(self._line, self.rows))

    def _line(self, row: Row) -> list[object]:
        place = [self.triton, row.architecture, row.case, row.whose, self.peers.get(row.whose, "")]
        found = [row.counts.get(name, "") for name in COUNTED]
        return [*place, row.kernel, row.programs, row.num_warps, row.needed, *found, row.why]


def read(path: Path) -> Results:
    """
    Raises:
        ValueError: it is no such file.
    """
    try:
        records = records_of(path.read_text(encoding="utf-8"), _COLUMNS, str(path))
        rows = [_row(record) for record in records]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Results(**versions_of(records), rows=tuple(rows))


def _row(record: Mapping[str, str]) -> Row:
    counts = {name: int(record[name]) for name in COUNTED if record[name]}
    return Row(
        record["architecture"],
        record["case"],
        record["whose"],
        record["kernel"],
        int(record["programs"]),
        int(record["num_warps"]),
        int(record["needed"]),
        counts,
        record["why"],
    )

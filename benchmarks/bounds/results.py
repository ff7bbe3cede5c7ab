"""Hot loops of launches, as the CSV file that keeps them: a line for each launch, or for why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attn_parity.binaries.results import csv_of, records_of

from benchmarks.bounds.rates import Cost
from benchmarks.side_by_side import Versions, versions_of

SCHEMA = "attn-parity.bounds/1"
FEW_WORDS = 100
"""Characters of a reason."""
_COLUMNS = ("triton", "architecture", "case", "whose", "version", "kernel", "num_warps", "waves", *Cost._fields, "why")


class Row(NamedTuple):
    """A participant's launch in a case, on an architecture.

    Attributes:
        kernel: its name; empty where nothing was compiled.
        num_warps, waves: waves of a program, and of a SIMD at most; 0: a program does not fit.
        turn: of its hot loop; None: it has none.
        why: there is no loop, or no binary.
    """

    architecture: str
    case: str
    whose: str
    kernel: str = ""
    num_warps: int = 0
    waves: float = 0
    turn: Cost | None = None
    why: str = ""

    def without(self, error: str) -> "Row":
        """With the reason why there is no loop, on one line."""
        return self._replace(why=" ".join(error.split())[-FEW_WORDS:])


@dataclass(frozen=True, kw_only=True)
class Results(Versions):
    """All rows, and the versions of what they are about."""

    rows: tuple[Row, ...]

    def json(self) -> dict[str, Any]:
        """As `--json` writes them."""
        rows = [row._asdict() | {"turn": row.turn and row.turn._asdict()} for row in self.rows]
        return {"schema": SCHEMA, "versions": self.versions, "rows": rows}

    def csv(self) -> str:
        """As a file keeps them."""
        return csv_of(_COLUMNS, map(self._line, self.rows))

    def _line(self, row: Row) -> list[object]:
        place = [self.triton, row.architecture, row.case, row.whose, self.peers.get(row.whose, "")]
        turn = [""] * len(Cost._fields) if row.turn is None else [f"{part:g}" for part in row.turn]
        return [*place, row.kernel, row.num_warps, f"{row.waves:g}", *turn, row.why]


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
    places = (record[name] for name in ("architecture", "case", "whose", "kernel"))
    turn = Cost(*(float(record[name]) for name in Cost._fields)) if record["matrix"] else None
    return Row(*places, int(record["num_warps"]), float(record["waves"]), turn, record["why"])

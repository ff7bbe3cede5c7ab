"""What was compiled, as the CSV file that keeps it: a line for each launch of a participant, or for why there is none."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from attn_parity.binaries import page
from attn_parity.binaries.facts import Facts
from attn_parity.binaries.results import FACTS, count_of, csv_of, fact_cells, facts_from, records_of
from attn_parity.binaries.results import Row as Binary

from benchmarks.side_by_side import Versions, versions_of

SCHEMA = "attn-parity.binaries/1"
FEW_WORDS = 100
"""Characters of a reason."""
_COLUMNS = ("triton", "architecture", "case", "whose", "version", "kernel", "num_warps", *FACTS, "why")


@dataclass(frozen=True)
class Row:
    """A participant's launch in a case, on an architecture.

    Attributes:
        kernel: its name; empty where nothing is launched.
        num_warps, facts: of its binary.
        why: there is no binary, or what keeps it from being launched.
    """

    architecture: str
    case: str
    whose: str
    kernel: str = ""
    num_warps: int = 0
    facts: Facts | None = None
    why: str = ""

    def of(self, num_warps: int, facts: Facts) -> Self:
        """With what was compiled."""
        wanted, there = facts.lds_bytes, facts.lds_limit
        why = f"{wanted / 1024:.3g} KiB of LDS, of {there / 1024:.3g}" if wanted > there else ""
        return dataclasses.replace(self, num_warps=num_warps, facts=facts, why=why)

    def without(self, error: str) -> Self:
        """With the last of the words that a compiler has for what it does not compile."""
        kind, _, rest = error.partition(":")
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        return dataclasses.replace(self, why=f"{kind}: {lines[-1]}"[:FEW_WORDS] if lines else kind[:FEW_WORDS])

    @property
    def cells(self) -> tuple[str, ...]:
        """What COLUMNS say of it."""
        if self.facts is None:
            nothing = ("",) * (len(page.COLUMNS) - 2)
            return (self.case, self.whose, ": ".join(filter(None, (self.kernel.removesuffix("_kernel"), self.why))), *nothing)
        _, kernel, *others = page.cells(Binary(self.architecture, self.case, self.kernel, self.num_warps, self.facts))
        return (self.case, self.whose, ": ".join(filter(None, (kernel, self.why))), *others)


COLUMNS = ("case", "whose", *page.COLUMNS[1:])
NUMBERS = page.COLUMNS[2:]


@dataclass(frozen=True, kw_only=True)
class Results(Versions):
    """All rows, and the versions of what they are about."""

    rows: tuple[Row, ...]

    def json(self) -> dict[str, Any]:
        """As `--json` writes them."""
        return {"schema": SCHEMA, "versions": self.versions, "rows": [dataclasses.asdict(row) for row in self.rows]}

    def csv(self) -> str:
        """As a file keeps them."""
        return csv_of(_COLUMNS, map(self._line, self.rows))

    def _line(self, row: Row) -> list[object]:
        facts = [""] * len(FACTS) if row.facts is None else fact_cells(row.facts)
        version = self.peers.get(row.whose, "")
        return [self.triton, row.architecture, row.case, row.whose, version, row.kernel, row.num_warps, *facts, row.why]


def read(path: Path) -> Results:
    """
    Raises:
        ValueError: it is no such file.
    """
    try:
        records = records_of(path.read_text(encoding="utf-8"), _COLUMNS, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    rows = []
    for record in records:
        named = {name: record[name] for name in ("architecture", "case", "whose", "kernel", "why")}
        facts = facts_from(record, str(path)) if record["lds_bytes"] else None
        rows.append(Row(**named, num_warps=count_of(record, "num_warps", str(path)), facts=facts))
    return Results(**versions_of(records), rows=tuple(rows))

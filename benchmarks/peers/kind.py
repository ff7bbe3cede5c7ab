"""A kind of facts about launches, and the rows of facts that a case has."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from attn_contract import UnsupportedError

from benchmarks.peers.launches import Launch, launches_of
from benchmarks.peers.results import Results, Row
from benchmarks.steps.calls import Call, attention_call, float8_of
from benchmarks.steps.cases import Attention

CPU, META = torch.device("cpu"), torch.device("meta")
SEED = 1


def _as_they_are(rows: list[Row], call: Call, out: torch.Tensor) -> list[Row]:
    return rows


class Kind(NamedTuple):
    """A kind of facts.

    Attributes:
        facts: names of the facts that a CSV file keeps.
        columns: columns of facts, in a table of rows.
        cells: the cells of a row that has facts, for these columns.
        of_launch: the facts of a launch on an architecture, and its faults in words.
        cases: the cases, by name.
        architectures: the architectures of the page.
        section: makes the kind's part of the page from the results.
        on_the_page: names of the page's cases; empty: of all.
        device: the device of the tensors; on `META` nothing is run.
        finished: makes the final rows from the rows of a call's launches and from the output of the call.
        is_amds: True if only AMD's code has such facts.
        checks_outputs: True if a row without facts is a fault, for which the command's exit code is 1.
    """

    facts: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Callable[[Mapping[str, float]], Sequence[str]]
    of_launch: Callable[[str, Launch], tuple[dict[str, float], str]]
    cases: dict[str, Attention]
    architectures: tuple[str, ...]
    section: Callable[[Results], list[str]]
    on_the_page: tuple[str, ...] = ()
    device: torch.device = META
    finished: Callable[[list[Row], Call, torch.Tensor], list[Row]] = _as_they_are
    is_amds: bool = True
    checks_outputs: bool = False

    def row(self, row: Row) -> list[str]:
        """A row of a table with the columns `case`, `whose`, `kernel` and those of this kind."""
        why = "wants more LDS or registers than there are" if row.facts.get("waves") == 0 else row.why
        kernel = ": ".join(filter(None, (row.kernel.removesuffix("_kernel"), why)))
        return [row.case, row.whose, kernel, *(self.cells(row.facts) if row.facts else [""] * len(self.columns))]


def rows_of(kind: Kind, case: Attention, architecture: str, whose: str, folder: Path | None) -> list[Row]:
    """The rows of a participant's launches in a case, in their order; none if it refuses the case.

    Args:
        folder: a peer's, see `benchmarks.participants.loading`.
    """
    call = attention_call(case, kind.device, SEED, float8_of(architecture))
    try:
        found = launches_of(call, architecture, whose, folder)
    except UnsupportedError:
        return []
    rows = [_row(kind, Row(architecture, case.name, whose, launch.kernel.fn.__name__), launch) for launch in found.all]
    return kind.finished(rows, call, found.out)


def _row(kind: Kind, row: Row, launch: Launch) -> Row:
    try:
        found, why = kind.of_launch(row.architecture, launch)
    except Exception as error:  # any error of a compiler is a result
        return row.without(f"{type(error).__name__}: {error}")
    return row._replace(facts=found, why=why)

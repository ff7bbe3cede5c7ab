"""What ran on the emulator: drawn cases, from what `attn-parity fuzz --json` wrote, and its speed."""

import re
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec
from attn_fuzz import inputs
from attn_fuzz.errors import InputError
from attn_lab.written import table

from benchmarks import PAGES
from benchmarks.emulation.settled import settle
from benchmarks.emulation.speeds import Speeds
from benchmarks.emulation.speeds import table as speeds_table

DATA = PAGES / "emulated.json"
SCHEMA = "attn-parity.fuzz/1"
_ARCHITECTURE = re.compile(r"[@-](gfx\w+)$")
_PREFACE = """\
## Drawn cases

`python -m benchmarks emulated` adds runs to emulated.json. What the launches that ship compute stands in
[binaries.md](binaries.md).

Each row is a run of `attn-parity fuzz --target TARGET --seed SEED --examples EXAMPLES --json FILE`. Past cases are stored; they
run first. Failures by known findings are no new ones. The largest error is in units of the judge's bound. "Split" counts the
cases whose keys were split, so that parts were reduced. It is empty for runs of a version that drew too few keys to split them.

"""
_SPEED = """
## Speed

Wave instructions in a second of the CPU, in millions: the fastest of some runs of each launch. `python -m benchmarks emulated
--speed` measured them on {machine}. Other work on a machine makes them slower.

"""


class Run(msgspec.Struct, frozen=True):
    """A run of `attn-parity fuzz` on an emulated target.

    Attributes:
        replayed: past cases.
        known, failing: cases that failed, by known findings and by others.
        max_ratio: the largest error / bound; None of a target without an oracle.
        split: cases whose keys were split; None of a version that did not count them.
    """

    target: str
    triton: str
    seed: int
    examples: int
    replayed: int
    known: int
    failing: int
    interrupted: bool
    max_ratio: float | None
    split: int | None = None

    @property
    def architecture(self) -> str:
        found = _ARCHITECTURE.search(self.target)
        return found[1] if found else ""

    @property
    def verdict(self) -> str:
        words = f"{self.failing} failing" if self.failing else f"nothing new, {self.known} known" if self.known else "all agree"
        return f"interrupted: {words}" if self.interrupted else words


class Kept(msgspec.Struct, frozen=True):
    """What the page is made of."""

    runs: tuple[Run, ...] = ()
    speeds: Speeds | None = None


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--speed", "measures", is_flag=True, help="Measure the emulator's speed, which takes a minute.")
def emulated(files: tuple[Path, ...], measures: bool) -> None:
    """Add what ran on the emulator to the page: FILES are JSONs of `attn-parity fuzz`, which replace runs alike."""
    kept = load()
    kept = Kept(updated(kept.runs, map(read, files)), _measured() if measures else kept.speeds)
    DATA.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    settle(checks=False)


def load() -> Kept:
    return msgspec.convert(inputs.read_json(DATA), Kept) if DATA.is_file() else Kept()


def read(path: Path) -> Run:
    """The run whose JSON a file is.

    Raises:
        InputError: it is no such JSON, or of a target that is not emulated.
    """
    record = inputs.read_record(path, SCHEMA)
    run = Run(
        target=record["target"],
        triton=record["versions"].get("triton", ""),
        seed=record["seed"],
        examples=record["examples"],
        replayed=record["replayed"],
        known=sum(record["known"].values()),
        failing=len(record["failures"]),
        interrupted=record["interrupted"] or record["error"] is not None,
        max_ratio=record["max_ratio"],
        split=record["events"].get("split", 0),
    )
    if not run.architecture:
        raise InputError(f"{path}: target {run.target} is not emulated: expected triton@gfx942, NAME@gfx942 or their like")
    return run


def updated(kept: Iterable[Run], found: Iterable[Run]) -> tuple[Run, ...]:
    """What was kept, and what was found in the place of runs of the same target, Triton and seed, by architecture."""
    runs = {(run.target, run.triton, run.seed): run for run in (*kept, *found)}
    return tuple(sorted(runs.values(), key=lambda run: (run.architecture, run.target, run.triton, run.seed)))


def text(kept: Kept) -> str:
    """The part of the page."""
    columns = ("architecture", "target", "Triton", "seed", "examples", "split", "past cases", "verdict", "largest error")
    lines = table(columns, map(_cells, kept.runs), ("seed", "examples", "split", "past cases", "largest error"))
    if kept.speeds is not None:
        lines += [*_SPEED.format(machine=kept.speeds.machine).rstrip("\n").splitlines(), "", *speeds_table(kept.speeds.rows)]
    return _PREFACE + "\n".join(lines) + "\n"


def _cells(run: Run) -> tuple[object, ...]:
    error = "" if run.max_ratio is None else f"{run.max_ratio:.2f}"
    place = (run.architecture, f"`{run.target}`", run.triton, run.seed, run.examples, run.split)
    return (*place, run.replayed, run.verdict, error)


def _measured() -> Speeds:
    from benchmarks.emulation.speed import measured

    return measured()

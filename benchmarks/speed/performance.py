"""docs/generated/performance.json: runs, with each participant's times in a case to four digits, or a word in their place."""

from pathlib import Path

import msgspec
from attn_fuzz import inputs
from attn_parity.timing import Positive, Spread

from benchmarks.measuring.machine import Rates
from benchmarks.results import Head
from benchmarks.speed.results import CaseResult, Result, Run

SCHEMA = "attn-parity.performance/3"


class StoredCase(msgspec.Struct, frozen=True, array_like=True):
    """A CaseResult. Its floor follows from the rates of the run.

    Attributes:
        found: for each participant of the run the median, the 10th and the 90th percentile; or a verdict and its reason, as in
            "wrong: relative error 0.1"; None if it did not take part, or refused.
    """

    name: str
    traffic: str | None
    flops: int
    bytes: int
    found: list[tuple[Positive, Positive, Positive] | str | None]


class StoredRun(Head, kw_only=True):
    """A Run of `speed`."""

    rates: Rates
    participants: list[str]
    host_us: dict[str, float]
    unmeasured: list[str]
    cases: list[StoredCase]


class Performance(msgspec.Struct, kw_only=True):
    """The file."""

    schema: str = SCHEMA
    speed: list[StoredRun] = []


def read(path: Path) -> Performance:
    """
    Raises:
        InputError: it is no such file.
    """
    return inputs.read_as(path, SCHEMA, Performance, inputs.MAX_LARGE_BYTES)


def with_run(stored: Performance, run: Run) -> Performance:
    """Add a run, in place of runs on its machine that have no other cases. Drawn cases count as one."""
    new = of_run(run)
    names = {_kind(case) for case in new.cases}
    others = [one for one in stored.speed if one.machine != new.machine or not {_kind(case) for case in one.cases} <= names]
    return Performance(speed=[*others, new])


def _kind(case: StoredCase) -> str:
    return {None: case.name, "index": "drawn index"}.get(case.traffic, "drawn")


def of_run(run: Run) -> StoredRun:
    """The part of a run that is stored."""
    names = list(dict.fromkeys(name for case in run.cases for name in case.results))
    cases = [
        StoredCase(case.name, case.traffic, int(case.flops), int(case.bytes), [_found(case.results.get(n)) for n in names])
        for case in run.cases
    ]
    head = {name: getattr(run, name) for name in Head.__struct_fields__}
    others = {"rates": run.rates, "host_us": run.host_us, "unmeasured": run.unmeasured}
    return StoredRun(**head, **others, participants=names, cases=cases)


def _found(result: Result | None) -> tuple[float, float, float] | str | None:
    if result is None or result.verdict == "refused":
        return None
    if result.time is None:
        return f"{result.verdict}: {result.why}"
    return _short(result.time.ms), _short(result.time.p10), _short(result.time.p90)


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def case_of(run: StoredRun, case: StoredCase) -> CaseResult:
    """A case with the results of its participants."""
    found = {name: _result(cell) for name, cell in zip(run.participants, case.found, strict=True) if cell is not None}
    head = {name: getattr(case, name) for name in ("name", "traffic", "flops", "bytes")}
    return CaseResult(**head, floor_ms=run.rates.floor_ms(case.flops, case.bytes), results=found)


def _result(cell: tuple[float, float, float] | str) -> Result:
    if isinstance(cell, str):
        verdict, _, why = cell.partition(": ")
        return msgspec.convert({"verdict": verdict, "why": why}, Result)
    return Result(verdict="measured", time=Spread(*cell, replays=0))


def text(stored: Performance) -> str:
    """The file, with a line for each case."""
    runs = []
    for run in stored.speed:
        head = msgspec.json.encode(msgspec.structs.replace(run, cases=[])).decode().removesuffix("[]}")
        cases = ",\n".join(msgspec.json.encode(case).decode() for case in run.cases)
        runs.append(f"{head}[\n{cases}\n]}}")
    joined = ",\n".join(runs)
    return f'{{"schema":"{SCHEMA}","speed":[\n{joined}\n]}}\n'

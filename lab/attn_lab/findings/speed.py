"""docs/generated/findings-speed.json: after how many examples runs of the fuzzer met each finding."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from attn_fuzz import outputs
from attn_lab.findings.known import Shared, known
from attn_lab.pages import PAGES

FILE = PAGES / "findings-speed.json"


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The examples after which runs met a finding.

    Attributes:
        drawn: the most examples that a run drew for one of the finding's targets.
        after: of each run, how many examples a target had drawn when it met the finding; None if no target did.
    """

    drawn: int
    after: list[int | None]

    @property
    def median(self) -> str:
        middle = statistics.median_high(self.drawn + 1 if after is None else after for after in self.after)
        return f">{self.drawn}" if middle > self.drawn else str(middle)


def speeds(findings: Shared, runs: Sequence[dict[str, Any]]) -> dict[str, Speed]:
    """The speed at which these runs met each finding. A run of none of a finding's targets says nothing of it.

    Args:
        runs: of several seeds, the JSON of each target's run, by target.
    """
    found = {}
    for name, (_, targets) in findings.items():
        of_finding = [[run[target] for target in targets if target in run] for run in runs]
        if counts := [of for of in of_finding if of]:
            met = [[each["known_after"].get(name) for each in of] for of in counts]
            after = [min((number for number in of if number is not None), default=None) for of in met]
            found[name] = Speed(max(each["examples"] for of in counts for each in of), after)
    return found


def read() -> dict[str, Speed]:
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Speed])


def write(files: Iterable[Path]) -> None:
    """Write the file of what `attn-parity fuzz --keep-going --json` wrote, of several seeds, on a CPU."""
    written = [msgspec.json.decode(path.read_bytes()) for path in files]
    runs = [{run["target"]: run for run in each.get("runs", [each])} for each in written]
    met_there = {name: found for name, found in known().items() if not found[0].needs_gpu}
    lines = (f'"{name}":{msgspec.json.encode(of).decode()}' for name, of in speeds(met_there, runs).items())
    outputs.write(FILE, "{\n" + ",\n".join(lines) + "\n}\n")

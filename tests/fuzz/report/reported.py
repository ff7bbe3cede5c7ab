"""Failures and runs that no process has run, for tests of what is told of them."""

from pathlib import Path
from typing import Any

from attn_fuzz.cases.case import Case
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run.shard import Failure
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.verdict.verdict import Verdict


def failure_of(case: Case, verdict: Verdict, **fields: Any) -> Failure:
    """A failure whose case is as it was found."""
    found: dict[str, Any] = {"case": case, "verdict": verdict, "first": case, "first_verdict": verdict}
    return Failure(**{**found, "found_after": 1, "found_seconds": 0.0, "minimal": True, **fields})


def run_of(*failures: Failure, **fields: Any) -> Run:
    """A run of 300 examples by one worker, with files of its failures."""
    usual: dict[str, Any] = {
        "target": "a-target",
        "device": "CPU",
        "support": EVERYTHING,
        "versions": {"torch": "2.13.0"},
        "command": ["attn-parity", "fuzz", "--target", "a-target", "--seed", "9"],
        "seed": 9,
        "workers": 1,
        "planned": 300,
        "seconds": 4.0,
        "failures": [Found(failure, Path("runs/f.json"), Path("runs/f.py")) for failure in failures],
    }
    return Run(**{**usual, **fields})

"""A known finding is counted and passed over, hides nothing else, and is reported when its case no longer fails."""

import json
import re
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.findings import finding
from attn_fuzz.findings.finding import explanation, is_nan_before_windows
from attn_fuzz.report.run import Run
from attn_fuzz.run import fixed_findings
from attn_fuzz.run.known import explained
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.run.shard import Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.verdict.judge import Difference
from attn_fuzz.verdict.verdict import Verdict
from planted_findings import SINKS


def test_a_known_finding_is_counted_and_is_no_failure(fuzz_here):
    progress, cases = fuzz_here("planted_findings:KNOWN", examples=40)
    assert progress.failure is None
    assert progress.examples == len(cases) == 40
    assert 5 < progress.known["planted-sinks"] < 40
    fail = (any(request.query_len for request in case.requests) and case.sinks is not None for case in cases)
    assert progress.known_after == {"planted-sinks": 1 + list(fail).index(True)}


def test_a_run_counts_the_cases_of_earlier_shards_before_the_first_that_a_finding_explains():
    shards = [
        Progress(examples=25),
        Progress(examples=25, known={"one": 2}, known_after={"one": 3}),
        Progress(examples=25, known={"one": 4, "two": 1}, known_after={"one": 1, "two": 20}),
    ]
    numbers = {"seed": 0, "workers": 1, "planned": 75, "seconds": 1.0}
    run = Run(target="t", device="CPU", support=EVERYTHING, versions={}, command=[], progress=shards, failures=[], **numbers)
    assert run.to_json()["known_after"] == {"one": 28, "two": 70}


def test_it_hides_no_other_failure_and_does_not_shrink_into_itself(fuzz_here):
    progress, _ = fuzz_here("planted_findings:UNKNOWN_TOO", examples=200)
    assert progress.failure is not None
    assert progress.failure.case.logits_soft_cap is not None
    assert progress.failure.case.sinks is None
    assert progress.failure.verdict.kind in ("value", "bitwise")


def test_a_run_says_what_is_known(attn_parity, tmp_path):
    run = attn_parity(
        "fuzz", "--target", "planted_findings:KNOWN", "--examples", 40, "--seed", 1, "--workers", 1, "--json", "run.json"
    )
    result = json.loads((tmp_path / "run.json").read_text())
    known = result["known"]["planted-sinks"]
    assert run.code == 0
    assert "nothing new" in run.out
    assert f"{known} fail by known findings, explained by a predicate alone ({known} planted-sinks)" in " ".join(
        run.out.split()
    )
    assert "Fixed?" not in run.out
    assert result["no_longer_failing"] == []
    assert result["known_by_predicate"] == result["known"]


def test_a_run_says_what_no_longer_fails(attn_parity):
    run = attn_parity("fuzz", "--target", "planted_findings:FIXED", "--examples", 1, "--seed", 1, "--workers", 1)
    assert run.code == 0
    assert "finding planted-sinks: its stored case no longer fails. Fixed?" in run.out


@pytest.mark.parametrize(("kind", "passes"), [("agree", True), ("sanitizer", False), ("nan", False), ("limit", False)])
def test_a_stored_case_that_fails_in_another_way_does_not_pass(kind, passes):
    """AITER's main fails the case of aiter-split-without-keys by a store, before its NaN is seen."""
    executor: Any = SimpleNamespace(target=case_file.load(SINKS.path).target, run=lambda case: Verdict(kind=kind))
    assert fixed_findings.no_longer_failing([SINKS], executor) == [SINKS] * passes


@pytest.mark.nightly
def test_another_targets_case_is_not_missed(attn_parity):
    run = attn_parity("fuzz", "--target", "planted_findings:ANOTHERS", "--examples", 1, "--seed", 1, "--workers", 1)
    assert "Fixed?" not in run.out


def test_on_a_cpu_a_finding_that_needs_a_gpu_excuses_nothing(fuzz_here, attn_parity):
    progress, _ = fuzz_here("planted_findings:NEEDS_GPU", examples=80)
    assert progress.failure is not None
    assert progress.failure.case.sinks is not None
    assert progress.known == {}
    run = attn_parity("replay", SINKS.path, "--target", "planted_findings:NEEDS_GPU")
    assert run.code == 1
    assert "as the known finding" not in run.out


@pytest.mark.nightly
def test_on_a_cpu_a_finding_that_needs_a_gpu_is_not_missed(attn_parity):
    run = attn_parity("fuzz", "--target", "planted_findings:NEEDS_GPU_FIXED", "--examples", 1, "--seed", 1, "--workers", 1)
    assert run.code == 0
    assert "Fixed?" not in run.out


def test_a_stored_case_replays(attn_parity):
    run = attn_parity("replay", SINKS.path, "--target", "planted_findings:KNOWN")
    assert run.code == 1
    said = r"planted-sinks\.json: nan, target planted-known on [^,]+, as the known finding planted-sinks says"
    assert re.search(said, " ".join(run.out.split()))


OWN = """
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attn_fuzz.findings.finding import Finding
from planted_findings import UNKNOWN_TOO, SINKS

CAP = Finding(
    name="own-cap",
    what="A soft cap makes the output wrong.",
    cause="and_caps_are_wrong",
    seen_in="1.0",
    folder=Path(__file__).parent / "findings",
    explains=lambda case, verdict: case.logits_soft_cap is not None,
)
TARGET = dataclasses.replace(UNKNOWN_TOO, findings=(SINKS, CAP))
"""


def test_a_users_findings_lie_beside_their_target(attn_parity, tmp_path, step_case):
    """The run goes on past both, and the user's stored case replays and is missed when it is gone."""
    (tmp_path / "own_findings.py").write_text(OWN)
    run = attn_parity("fuzz", "--target", "own_findings:TARGET", "--examples", 10, "--seed", 1, "--workers", 1)
    assert run.code == 2
    assert "finding own-cap has no stored case" in run.err
    stored = tmp_path / "findings" / "own-cap.json"
    stored.parent.mkdir()
    case_file.save(stored, msgspec.structs.replace(step_case, target="own_findings:TARGET", head_size=16, logits_soft_cap=2.0))
    options = ("--examples", 60, "--seed", 1, "--workers", 1, "--corpus", "none", "--json", "run.json")
    run = attn_parity("fuzz", "--target", "own_findings:TARGET", *options)
    assert run.code == 0, run.out
    assert set(json.loads((tmp_path / "run.json").read_text())["known"]) == {"own-cap", "planted-sinks"}
    assert "Fixed?" not in run.out
    run = attn_parity("replay", "findings/own-cap.json", "--target", "own_findings:TARGET")
    assert "as the known finding own-cap says" in run.out


def _nan_at(*requests: int) -> Verdict:
    differences = [
        Difference(request=index, tensor="out", row=index, head=0, dim=0, got=got, expected=1.0, bound=0.1, rows=1)
        for index, got in enumerate([float("nan") if index in requests else 2.0 for index in range(2)])
    ]
    return Verdict(kind="nan", differences=tuple(differences))


def test_nan_is_of_slots_before_windows_where_the_wrong_request_has_such_slots():
    """Request 0 of the case has one; request 1 has none, and may be wrong by another finding, but not NaN by this one."""
    case = case_file.load(registry.load("vllm-rocm-attention").findings[2].path)
    [request] = case.requests
    case = msgspec.structs.replace(case, requests=(request, msgspec.structs.replace(request, seq_len=1, blocks=(1,))))
    assert is_nan_before_windows(case, _nan_at(0))
    assert not is_nan_before_windows(case, _nan_at(1))
    assert not is_nan_before_windows(case, _nan_at(0, 1))
    assert not is_nan_before_windows(case, _nan_at())
    assert not is_nan_before_windows(msgspec.structs.replace(case, finite_slots=True), _nan_at(0))
    assert not is_nan_before_windows(msgspec.structs.replace(case, recycled=False), _nan_at(0))


def test_only_failures_are_explained(step_case):
    case = msgspec.structs.replace(step_case, sinks="zero")
    assert explanation([SINKS], case, Verdict(kind="nan")) is SINKS
    assert explanation([SINKS], case, Verdict(kind="value")) is None
    assert explanation([SINKS], case, Verdict(kind="agree")) is None


STORED = {path.stem: path for path in sorted(finding.CASES.glob("*.json"))}


def test_every_finding_has_a_case():
    assert {finding.name for name in registry.names() for finding in registry.load(name).findings} <= STORED.keys()


@pytest.mark.parametrize("name", STORED)
def test_every_stored_case_is_of_a_finding_and_replays_where_its_kernel_is(name, tmp_path):
    case = case_file.load(STORED[name])
    target = registry.load(case.target)
    (finding,) = (each for each in target.findings if each.name == name)
    support = target.support("cpu")
    if "@" not in case.target:  # others have findings beyond what they draw, too
        assert (support.not_drawn(case), support.beyond(case)) == (None, None)
    if reason := target.unavailable("cpu"):
        pytest.skip(reason)
    with Executor(case.target, "cpu", 240.0, tmp_path / "ahead.json") as executor:
        verdict, known = explained(executor, target.findings_on("cpu"), case, executor.run(case))
    shows = finding in target.findings_on("cpu")
    assert verdict.failed == shows
    assert not shows or finding.explains(case, verdict), verdict
    assert not shows or known == (finding, finding.path.with_suffix(".toml").is_file())

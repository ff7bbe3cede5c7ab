"""A known finding is counted and passed over, hides nothing else, and is reported when its case no longer fails."""

import json
from pathlib import Path

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.findings.finding import explanation
from attn_fuzz.run import ledger
from attn_fuzz.targets import Target, registry
from attn_fuzz.verdict.verdict import Verdict
from planted_findings import SINKS

DOCS = Path(__file__).parents[2] / "docs" / "generated" / "findings.md"


@pytest.fixture
def store(step_case, tmp_path, monkeypatch):
    """Stores the planted finding's case, of one target, where those of all are looked for."""
    monkeypatch.setattr("attn_fuzz.findings.finding.CASES", tmp_path)

    def write(target: str) -> None:
        case = msgspec.structs.replace(step_case, target=target, sinks="zero", head_size=16)
        (tmp_path / "planted-sinks.json").write_text(case_file.dumps(case))

    return write


def test_a_known_finding_is_counted_and_is_no_failure(fuzz_here):
    progress, cases = fuzz_here("planted_findings:KNOWN", examples=80)
    assert progress.failure is None
    assert progress.examples == len(cases) == 80
    assert 5 < progress.known["planted-sinks"] < 80


def test_it_hides_no_other_failure_and_does_not_shrink_into_itself(fuzz_here):
    progress, _ = fuzz_here("planted_findings:UNKNOWN_TOO", examples=200)
    assert progress.failure is not None
    assert progress.failure.case.logits_soft_cap is not None
    assert progress.failure.case.sinks is None
    assert progress.failure.verdict.kind in ("value", "bitwise")


def test_a_run_says_what_is_known(attn_parity, store, tmp_path):
    store("planted_findings:KNOWN")
    run = attn_parity(
        "fuzz", "--target", "planted_findings:KNOWN", "--examples", 40, "--seed", 1, "--workers", 1, "--json", "run.json"
    )
    result = json.loads((tmp_path / "run.json").read_text())
    known = result["known"]["planted-sinks"]
    assert run.code == 0
    assert "nothing new" in run.out
    assert f"{known} fail by known findings ({known} planted-sinks)" in " ".join(run.out.split())
    assert "Fixed?" not in run.out
    assert result["no_longer_failing"] == []


def test_a_run_says_what_no_longer_fails(attn_parity, store):
    store("planted_findings:FIXED")
    run = attn_parity("fuzz", "--target", "planted_findings:FIXED", "--examples", 10, "--seed", 1, "--workers", 1)
    assert run.code == 0
    assert "finding planted-sinks: its stored case no longer fails. Fixed?" in run.out


def test_another_targets_case_is_not_missed(attn_parity, store):
    store("planted_findings:KNOWN")
    run = attn_parity("fuzz", "--target", "planted_findings:FIXED", "--examples", 10, "--seed", 1, "--workers", 1)
    assert "Fixed?" not in run.out


def test_a_stored_case_replays(attn_parity, store):
    store("planted_findings:KNOWN")
    run = attn_parity("replay", "planted-sinks.json", "--target", "planted_findings:KNOWN")
    assert run.code == 1
    assert "planted-sinks.json: nan, as the known finding planted-sinks says" in run.out


def test_only_failures_are_explained(step_case):
    case = msgspec.structs.replace(step_case, sinks="zero")
    assert explanation([SINKS], case, Verdict(kind="nan")) is SINKS
    assert explanation([SINKS], case, Verdict(kind="value")) is None
    assert explanation([SINKS], case, Verdict(kind="agree")) is None


def declared() -> list[Target]:
    return [target for target in map(registry.load, registry.names()) if target.findings]


def test_the_page_is_what_the_targets_declare():
    """If it is not: python -m attn_fuzz.run.ledger > docs/generated/findings.md"""
    assert DOCS.read_text(encoding="utf-8") == ledger.page((target.name, target.findings) for target in declared())


@pytest.mark.parametrize(
    "finding",
    {finding.name: finding for target in declared() for finding in target.findings}.values(),
    ids=lambda finding: finding.name,
)
def test_every_finding_has_a_case_that_its_target_can_run(finding):
    case = case_file.load(finding.path)
    support = registry.load(case.target).support("cpu")
    assert finding.name in [declared.name for declared in registry.load(case.target).findings]
    assert support.limit(case) is None
    assert support.beyond(case) is None

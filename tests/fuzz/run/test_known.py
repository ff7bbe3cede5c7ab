"""A finding explains a failure if the case agrees once the finding is repaired."""

import json
from pathlib import Path

import planted_repaired
import pytest
from attn_fuzz import foreign
from attn_fuzz.findings import repairs
from attn_fuzz.targets import registry


@pytest.fixture
def hunted(attn_parity, tmp_path, monkeypatch):
    """Fuzzes a target on sources of planted_foreign, and returns the run's JSON and what it printed."""

    def run(target: str, source: str, *options: str) -> tuple[dict, str]:
        file = tmp_path / planted_repaired.PACKAGE / planted_repaired.FILE
        file.parent.mkdir()
        file.write_text(source)
        (file.parent / "other.py").touch()
        monkeypatch.setenv("ATTN_PARITY_PLANTED_FOREIGN", str(tmp_path))
        plan = ("--examples", 50, "--seed", 1, "--workers", 1, "--corpus", "none", "--json", "run.json", *options)
        run = attn_parity("fuzz", "--target", f"planted_repaired:{target}", *plan)
        assert file.read_text() == source
        result = json.loads((tmp_path / "run.json").read_text())
        assert run.code == bool(result["failures"]), run.err
        return result, " ".join(run.out.split())

    return run


ALONE = planted_repaired.SOURCE.replace("found += 2", "found += 0")


def test_a_second_bug_behind_a_broad_predicate_is_new(hunted):
    result, out = hunted("TARGET", planted_repaired.SOURCE, "--keep-going")
    assert [{"logits_soft_cap", "several requests"} <= {*each["needs"]} for each in result["failures"]] == [True]
    assert all(len(each["case"]["requests"]) == 2 for each in result["failures"])
    assert result["known"]["planted-cap"] > 1
    assert result["known_by_predicate"] == {}
    assert "with planted-cap repaired, too: value: " in out


def test_a_run_says_that_known_failures_agree_once_repaired(hunted):
    result, out = hunted("TARGET", ALONE)
    known = result["known"]["planted-cap"]
    assert (result["failures"], result["known_by_predicate"]) == ([], {})
    assert f"{known} fail by known findings, and agree once repaired ({known} planted-cap)" in out
    assert "by a predicate alone" not in out


def test_on_sources_without_the_lines_of_a_repair_a_predicate_explains_alone(hunted):
    result, out = hunted("TARGET", ALONE.replace("found += 1", "found = found + 1"))
    known = result["known"]["planted-cap"]
    assert (result["failures"], result["known_by_predicate"]) == ([], {"planted-cap": known})
    assert f"{known} fail by known findings, explained by a predicate alone ({known} planted-cap)" in out


def test_a_failure_on_repaired_sources_may_be_that_of_a_finding_without_a_repair(hunted):
    """Sinks make the outputs NaN, of which the finding of soft caps says that it explains them, too."""
    result, _ = hunted("WITH_SINKS", ALONE)
    assert result["failures"] == []
    assert result["known"]["planted-cap"] > 1
    assert result["known_by_predicate"] == {"planted-sinks": result["known"]["planted-sinks"]}


def test_a_case_that_is_replayed_is_told_to_agree_once_repaired(hunted, attn_parity):
    hunted("TARGET", ALONE)
    run = attn_parity("replay", planted_repaired.CAP.path, "--target", "planted_repaired:TARGET")
    assert "as the known finding planted-cap says, and agrees once repaired" in " ".join(run.out.split())


def test_repaired_sources_are_links_but_for_what_is_repaired(tmp_path, monkeypatch):
    package = tmp_path / "here" / planted_repaired.PACKAGE
    package.mkdir(parents=True)
    (package / planted_repaired.FILE).write_text(ALONE)
    (package / "other.py").touch()
    monkeypatch.setenv("ATTN_PARITY_PLANTED_FOREIGN", str(package.parent))
    environment = repairs.environment(registry.load("planted_repaired:TARGET").findings)
    assert foreign.repaired(environment) == {"planted-cap"}
    made = Path(environment["ATTN_PARITY_PLANTED_FOREIGN"], planted_repaired.PACKAGE)
    assert (made / planted_repaired.FILE).read_text() == ALONE.replace("found += 1", "found += 0")
    assert (made / "other.py").readlink() == package / "other.py"

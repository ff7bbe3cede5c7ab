"""docs/generated/backends.md is what the backends declare, and a declaration that changed is noticed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from attn_contract import AttentionType, No
from attn_fuzz.targets import registry
from attn_lab.commands import matrix
from attn_lab.matrix.backends import backend_page
from attn_optimized.aiter_adapter import RECORDED, recorded
from attn_optimized.backends import BACKENDS
from attn_parity.backend_runs import NOT_RUN, RUNS


@pytest.fixture
def page(attn_lab, tmp_path):
    (tmp_path / "docs" / "generated").mkdir(parents=True)
    assert attn_lab("matrix", "--only", "backends").code == 0
    return tmp_path / "docs" / "generated" / "backends.md"


def table(text: str) -> dict[str, list[str]]:
    """The table with the newest AITER: cells by the name of the row."""
    rows = [line.strip("| ").split(" | ") for line in text.split("## With")[1].splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_page_in_the_repository_is_current():
    page = Path(__file__).parents[2] / "docs" / "generated" / "backends.md"
    assert page.read_text() == backend_page(), "run `python -m attn_lab matrix --only backends`"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_said_of_runs_is_what_the_targets_are(backend):
    for run in RUNS[backend]:
        assert (run.how == NOT_RUN) == (not run.target)
        if run.target:
            target = registry.load(run.target)
            # kernels that run as AMD's code alone have the findings of a target with an architecture
            held = target if run.how.endswith("interpreted") else target.compiled_for("gfx942")
            assert tuple(run.findings) == (() if run.target.startswith("backend-") else held.findings)


def test_select_says_how_the_kernels_were_run(attn_parity):
    run = attn_parity("select", "--heads", 8, "--head-size", 64, "--sinks", "--arch", "gfx942", "--aiter", "2026-08")
    told = " ".join(run.out.split("known findings")[1].split())
    assert "AITER's HIP paged_attention_v1 emulated as gfx942" in told
    assert "aiter-pa-assembly-short-tail" in told


def test_the_page_is_written_alone_and_checked(attn_lab, page):
    assert page.read_text() == backend_page()
    assert [path.name for path in page.parent.iterdir()] == ["backends.md"]
    assert attn_lab("matrix", "--only", "backends", "--check").code == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_declaration_that_the_page_does_not_have_is_noticed(backend, attn_lab, page, monkeypatch):
    declared = BACKENDS[backend].capabilities
    answered = {**declared(recorded(RECORDED[-1])).attn_types, AttentionType.ENCODER: No("planted")}
    monkeypatch.setattr(BACKENDS[backend], "capabilities", lambda aiter: replace(declared(aiter), attn_types=answered))
    before = page.read_text()
    run = attn_lab("matrix", "--only", "backends", "--check")
    assert run.code == 1
    assert "docs/generated/backends.md is not current: run `python -m attn_lab matrix`" in run.out
    assert page.read_text() == before, "--check changes nothing"
    assert attn_lab("matrix", "--only", "backends").code == 0
    assert page.read_text().count("planted") == 1


def test_a_page_that_was_edited_is_noticed(attn_lab, page):
    page.write_text(page.read_text().replace("| no [", "| yes [", 1))
    assert attn_lab("matrix", "--only", "backends", "--check").code == 1


def test_every_no_has_its_reason_in_words():
    text = backend_page()
    rows = table(text)
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", text, flags=re.MULTILINE))
    names = rows[""] if "" in rows else list(BACKENDS)
    declared = {name: BACKENDS[name].capabilities(recorded(RECORDED[-1])) for name in BACKENDS}
    for attn_type in AttentionType:
        for name, cell in zip(names, rows[attn_type.name], strict=True):
            answer = declared[name].attn_types[attn_type]
            if answer is True:
                assert cell == "yes"
            else:
                number = re.fullmatch(r"no \[(\d+)\]", cell)
                assert number is not None
                assert reasons[number[1]] == str(answer)
    assert len(set(reasons.values())) == len(reasons)


def test_what_changes_with_another_aiter_is_said():
    text = backend_page()
    older, missing = (text.split(f"## With {name} instead")[1].split("## ")[0] for name in ("AITER 0.1.7", "no AITER"))
    assert "| ROCM_AITER_FA | sinks | no | flash_attn_varlen_func of AITER 0.1.7" in older
    for backend in ("ROCM_AITER_FA", "ROCM_AITER_UNIFIED_ATTN"):
        assert f"| {backend} | available | no | AITER is not installed |" in missing
    assert "TRITON_ATTN" not in older + missing


def test_only_says_which_page_is_meant_whatever_its_name(attn_lab, tmp_path):
    assert attn_lab("matrix", "--only", "backends", "--page", "backends.md").code == 0
    assert (tmp_path / "backends.md").read_text() == backend_page()
    assert attn_lab("matrix", "--only", "backends", "--page", "backends.md", "--check").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--page", "backends.md"], "backends.md is the page of the backends"),
        (["--page", "backends.md", "--only", "coverage"], "backends.md is the page of the backends"),
        (["--page", ""], "--page: it names no file"),
    ],
)
def test_a_page_that_cannot_be_coverage_is_refused_before_anything_is_drawn(arguments, said, attn_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "_draw", lambda *_: pytest.fail("it drew"))
    run = attn_lab("matrix", *arguments)
    assert run.code == 2
    assert said in run.err
    assert not list(tmp_path.iterdir())


def test_json_of_what_is_not_drawn_is_refused(attn_lab, page):
    run = attn_lab("matrix", "--only", "backends", "--json", "matrix.json")
    assert run.code == 2
    assert "--only" in run.err

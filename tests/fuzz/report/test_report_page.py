"""The page about a run: what it holds, whatever became of the run, and that nothing of a stranger's case runs in it."""

import functools
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.features import features
from attn_fuzz.report import page
from attn_fuzz.report.run import Found
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import Failure, Progress, Size
from attn_fuzz.verdict.verdict import Verdict
from planted import FLASH, NAN

from tests.fuzz.report import reported

replace = msgspec.structs.replace


class Parsed(HTMLParser):
    """Tags with their attributes, and the text outside the style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.texts.append(data)


def holds_all_it_needs(source: str) -> bool:
    """True if nothing is run and nothing is fetched."""
    tags = Parsed(source).tags
    runs = any(tag in ("script", "iframe", "object", "embed", "link", "img") for tag, _ in tags)
    fetches = any(name in ("src", "href", "action") or name.startswith("on") for _, attributes in tags for name in attributes)
    return not runs and not fetches and "@import" not in source and "url(" not in source


@pytest.fixture
def run_of(step_case):
    progress = Progress(
        examples=3,
        seconds=2.0,
        ratio=0.5,
        spent={"build": 0.1, "target": 1.0, "judge": 0.4},
        events={"split": 2},
        features=dict.fromkeys(features(step_case), 1),
        ratios={"out float32 decode": [5] + [0] * 78 + [1] + [0] * 6},
    )
    return functools.partial(reported.run_of, progress=[progress])


@pytest.fixture
def failure(step_case) -> Failure:
    steps = [(0, 99), (7, 44), (8, 44), (31, 10)]
    sizes = [Size(tried=tried, requests=2, query_rows=5, keys=keys, blocks=4, fields=3) for tried, keys in steps]
    found = {"first": replace(step_case, window=(3, 0)), "found_after": 17, "found_seconds": 1.5, "path": tuple(sizes)}
    return reported.failure_of(step_case, try_case(step_case, NAN, "cpu"), **found)


def test_the_page_of_a_failure(run_of, failure):
    source = page.of_run(run_of(failure)).decode()
    parsed = Parsed(source)
    text = "\n".join(parsed.texts)
    assert holds_all_it_needs(source)
    assert "1 failing" in parsed.texts
    assert "attn-parity replay runs/f.json" in parsed.texts
    assert "python runs/f.py" in parsed.texts
    assert failure.verdict.message in text
    assert "found after 17 examples, in 1.5 s; the smallest case" in parsed.texts
    for title in (
        "out: error / bound by head and row of q",
        "request 1: mask, 3 x 3 (queries x keys)",
        "block table",
        "allocation",
    ):
        assert title in text
    rects = [attributes.get("class") for tag, attributes in parsed.tags if tag == "rect"]
    assert {"nan", "visible", "causal", "owner-0", "owner-1", "free", "unused", "written", "before"} <= set(rects)
    assert "window" in rects, "the case as it was found"
    assert all(attributes["aria-label"] for _, attributes in parsed.tags if attributes.get("role") == "img")


def test_a_failure_that_was_met_on_the_way_says_so(run_of, failure):
    told = "It was met while the failure before it was shrunk."
    for is_other in (False, True):
        found = Found(failure, Path("f.json"), Path("f.py"), while_shrinking=is_other)
        run = run_of(failures=[found])
        assert (told in Parsed(page.of_run(run).decode()).texts) == is_other
        assert run.to_json()["failures"][0]["while_shrinking"] == is_other


def test_a_line_to_copy_survives_a_shell(run_of, failure):
    run = run_of(failures=[Found(failure, Path("my runs/$f.json"), Path("f.py"))])
    assert "attn-parity replay 'my runs/$f.json'" in Parsed(page.of_run(run).decode()).texts


def test_a_clean_run_has_no_failure(run_of):
    source = page.of_run(run_of()).decode()
    text = "\n".join(Parsed(source).texts)
    assert holds_all_it_needs(source)
    assert "all agree" in text
    assert "replay" not in text
    assert "attn-parity fuzz --target a-target --seed 9" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interrupted": True}, "interrupted: no failure so far"),
        ({"interrupted": True, "progress": [Progress()]}, "interrupted: nothing was checked"),
        ({"error": "a worker process died"}, "a worker process died"),
        ({"progress": []}, "nothing was checked"),
    ],
)
def test_a_run_that_did_not_end_well_has_a_page(run_of, changes, said):
    assert said in Parsed(page.of_run(run_of(**changes)).decode()).texts


def test_nothing_of_a_case_becomes_markup(run_of, failure):
    evil = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    name = evil.replace("/", "")
    case = replace(failure.case, target=evil)
    verdict = Verdict(kind="raised", message=f"{evil}\ud800\x00")
    failure = replace(failure, case=case, first=case, verdict=verdict)
    run = run_of(failure, target=evil, command=[evil], device=evil, versions={evil: evil}, error=evil)
    for source in (page.of_run(run).decode(), page.of_case(case, verdict, Path(f"{name}.json")).decode()):
        assert holds_all_it_needs(source)
        assert evil in Parsed(source).texts or f"{name}.json" in Parsed(source).texts


def test_a_run_with_a_report_folder_writes_its_page(attn_parity, tmp_path):
    run = attn_parity("fuzz", "--target", "planted:NAN", "--examples", 20, "--seed", 2, "--workers", 1, "--report", "runs")
    assert run.code == 1
    assert "page: runs/planted-nan-2.html" in run.out
    text = Parsed((tmp_path / "runs/planted-nan-2.html").read_text()).texts
    assert "attn-parity replay runs/planted-nan-2.json --target planted:NAN" in text
    assert "attn-parity fuzz --target planted:NAN --device cpu --examples 20 --seed 2" in text
    assert case_file.load(tmp_path / "runs/planted-nan-2.json").requests


@pytest.mark.parametrize("report", [["--report", "new/runs"], ["--report", "./new/runs/"]])
def test_the_json_may_lie_in_the_report_folder_that_the_run_makes(report, attn_parity, tmp_path):
    arguments = ("fuzz", "--target", "planted:FLASH", "--examples", 2, "--seed", 2, "--workers", 1, "--corpus", "none", *report)
    assert attn_parity(*arguments, "--json", "new/other/run.json").code == 2
    assert not list(tmp_path.iterdir()), "what is refused makes no folder"
    run = attn_parity(*arguments, "--json", "new/runs/run.json")
    assert run.code == 0, run.err
    assert {path.name for path in (tmp_path / "new/runs").iterdir()} == {"run.json", "planted-flash-2.html"}


def test_the_page_of_a_case_that_was_not_run(step_case):
    text = "\n".join(Parsed(page.of_case(step_case, None, Path("case.json")).decode()).texts)
    assert "error / bound" not in text
    assert "attn-parity replay case.json" in text
    assert "error / bound" in "\n".join(
        Parsed(page.of_case(step_case, try_case(step_case, FLASH, "cpu"), Path("c")).decode()).texts
    )


@pytest.mark.parametrize(("refused", "outcome"), [(1, "all agree"), (2, "all were refused")])
def test_code_that_the_compiler_made_wrong_is_told(refused, outcome):
    run = reported.run_of(progress=[Progress(examples=2, refused=refused, miscompiled="LLVM loses an address")])
    assert f", {outcome}, {refused} refused" in run.sentence
    assert run.not_run == ["refused, the first of them: LLVM loses an address"]

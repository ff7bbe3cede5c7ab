"""performance.md is what its files make, one that is not is noticed, and what is reached is judged by the figures."""

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import cli
from benchmarks.speed import drawn_page, results
from benchmarks.speed.cases import Reach
from benchmarks.speed.clock import Spread
from benchmarks.speed.machine import Rates
from benchmarks.speed.page import FOLDER, PAGE
from benchmarks.speed.participants import AITER, OURS, VLLM
from benchmarks.speed.reach import standing
from benchmarks.speed.results import CaseResult, Result, Run

RATES = Rates(read=4.5e12, copy=4e12, matmul_burst=8e14, matmul_sustained=6e14)


def time(ms: float) -> Result:
    return Result(verdict="measured", error=1e-3, time=Spread(ms, 0.98 * ms, 1.02 * ms, 100), calls=1)


def case(name: str = "decode, 64 x 8k", floor_ms: float = 0.5, **participants: Result) -> CaseResult:
    return CaseResult(name=name, flops=1e9, bytes=2e9, floor_ms=floor_ms, results=participants)


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Path:
    """A folder with one run, in which a page belongs."""
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    run = Run(
        of_value=True,
        machine="a GPU",
        versions={"torch": "2.11.0"},
        command="python -m benchmarks speed",
        commit="abc",
        rates=RATES,
        cases=[
            case(**{OURS: time(0.52), VLLM: time(0.56), AITER: Result(verdict="wrong", error=0.1, why="relative error 0.1")}),
            case("prefill, 4 x 4k", **{OURS: Result(verdict="failed", why="OutOfResources | here"), VLLM: time(7.5)}),
            case("cascade, 64 requests share 8k, 256 of their own", **{OURS: time(0.1), "ours without cascade": time(0.5)}),
        ],
        host_us={OURS: 61.2},
        unmeasured=["decode, 8 x 32k"],
    )
    results.write(run, FOLDER / "gpu.json")
    return tmp_path


def page(*options: str):
    return CliRunner().invoke(cli, ["page", *options])


def test_the_page_says_what_was_found(docs):
    assert page().exit_code == 0
    text = PAGE.read_text(encoding="utf-8")
    reach = "reached: 96% of the copy bandwidth (at least 90%, aim 100%)"
    assert f"| decode, 64 x 8k | 0.5 | 0.52 (96%) | 0.51-0.53 | 0.56 (1.08) | wrong |  |  | {reach} |" in text
    assert "| prefill, 4 x 4k | 0.5 | failed |  | 7.5 |  |  |  | not measured |" in text
    assert "* prefill, 4 x 4k, ours: failed: OutOfResources / here" in text
    assert "ours without cascade: 0.5 ms, 5.00 times as long as ours" in text
    assert "Not measured, for lack of time: decode, 8 x 32k." in text
    assert "no number here has any value" not in text
    titles = [title.text for title in ElementTree.parse(FOLDER / "gpu.svg").iter("{http://www.w3.org/2000/svg}title")]
    assert "ours: 96%" in titles


def test_a_changed_page_or_picture_or_file_is_not_current(docs):
    assert page("--check").exit_code == 1
    page()
    assert page("--check").exit_code == 0
    written = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written.replace("0.52", "0.42"), encoding="utf-8")
    ended = page("--check")
    assert ended.exit_code == 1
    assert "not current: docs/generated/performance.md;" in ended.output
    page()
    assert PAGE.read_text(encoding="utf-8") == written
    (FOLDER / "gpu.svg").unlink()
    assert page("--check").exit_code == 1
    page()
    run = results.read(FOLDER / "gpu.json")
    results.write(msgspec.structs.replace(run, commit="def"), FOLDER / "gpu.json")
    assert page("--check").exit_code == 1


def test_without_a_file_there_is_no_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = page()
    assert ended.exit_code == 2
    assert "holds no JSON file" in ended.output


@pytest.mark.parametrize("content", ["{", '{"schema": "attn-parity.fuzz/1"}', '{"schema": "attn-parity.latent-speed/1"}'])
def test_another_file_is_refused_by_name(docs, content):
    (FOLDER / "other.json").write_text(content)
    ended = page()
    assert ended.exit_code == 2
    assert "other.json" in ended.output


def test_drawn_cases_and_others_have_folders_of_their_own(docs):
    (run,) = results.read_folder(FOLDER).values()
    drawn = msgspec.structs.replace(run, cases=[msgspec.structs.replace(case(), traffic="decode")])
    results.write(drawn, FOLDER / "drawn.json")
    ended = page("--check")
    assert ended.exit_code == 2
    assert "drawn.json: decode, 64 x 8k: traffic: got 'decode', expected no drawn cases" in " ".join(ended.output.split())
    (FOLDER / "drawn.json").unlink()
    drawn_page.FOLDER.mkdir()
    results.write(run, drawn_page.FOLDER / "fixed.json")
    ended = page("--check")
    assert ended.exit_code == 2
    assert "fixed.json: decode, 64 x 8k: traffic: got None, expected only drawn cases" in " ".join(ended.output.split())


@pytest.mark.parametrize("ms", [0.0, -1.0])
def test_a_time_that_is_not_positive_is_refused_by_name(docs, ms):
    run = results.read(FOLDER / "gpu.json")
    results.write(msgspec.structs.replace(run, cases=[case(**{OURS: time(ms)})]), FOLDER / "other.json")
    ended = page("--check")
    assert ended.exit_code == 2
    assert "other.json: Expected `float` > 0.0" in " ".join(ended.output.split())


def test_a_run_of_many_cases_is_read(docs):
    run = results.read(FOLDER / "gpu.json")
    results.write(msgspec.structs.replace(run, cases=[case("a" * 2000)] * 1000), FOLDER / "gpu.json")
    assert len(results.read(FOLDER / "gpu.json").cases) == 1000


@pytest.mark.parametrize(
    ("reach", "participants", "reached", "text"),
    [
        (Reach("bandwidth", 0.9, 1.0), {OURS: time(0.55)}, True, "91% of the copy bandwidth (at least 90%, aim 100%)"),
        (Reach("bandwidth", 0.9, 1.0), {OURS: time(0.57)}, False, "88% of the copy bandwidth (at least 90%, aim 100%)"),
        (Reach("floor", 0.9, 1.0), {OURS: time(0.5)}, True, "100% of the floor's speed (at least 90%, aim 100%)"),
        (Reach("matmul", 0.5, 0.8), {OURS: time(0.004)}, False, "42% of the sustained matmul rate (at least 50%, aim 80%)"),
        (Reach("AITER", 1.5, 3.0), {OURS: time(1.0), AITER: time(1.6)}, True, "1.60x AITER (at least 1.50x, aim 3.00x)"),
        (
            Reach("peers", 1.2, 2.0),
            {OURS: time(1.0), AITER: time(2.0), VLLM: time(1.1)},
            False,
            "1.10x the better peer (at least 1.20x, aim 2.00x)",
        ),
        (Reach("AITER", 1.5, 3.0), {OURS: time(1.0)}, None, "no AITER to compare with"),
        (None, {OURS: time(1.0), VLLM: time(1.01)}, True, ""),
        (None, {OURS: time(1.03), VLLM: time(1.0)}, True, ""),
        (None, {OURS: time(1.1), VLLM: time(1.0), AITER: time(2.0)}, False, "vLLM Triton is 1.10x as fast"),
        (Reach("floor", 0.1, 1.0), {OURS: time(1.1), AITER: time(1.0)}, False, None),
        (None, {OURS: time(1.0)}, None, ""),
        (None, {VLLM: time(1.0)}, None, "not measured"),
    ],
)
def test_reached_or_short(reach, participants, reached, text):
    found = standing(reach, case(**participants), RATES)
    assert found.reached is reached
    assert text is None or found.text == text

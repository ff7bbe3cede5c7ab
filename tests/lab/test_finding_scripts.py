"""The script of each finding fails alone, passes with a repaired kernel, and says when it cannot run."""

from pathlib import Path

import pytest
from attn_fuzz import foreign
from attn_fuzz.cases import case_file
from attn_fuzz.findings import repairs
from attn_fuzz.targets import registry
from attn_lab.findings import folders, reports
from attn_lab.findings import scripts as finding_scripts
from attn_lab.findings.folders import Checked
from attn_lab.findings.known import known, named
from attn_lab.findings.places import file_of, names, package_of
from attn_lab.findings.scripts import DOES_NOT_SHOW, SHOWS
from msgspec.structs import replace

NAMES = names()
REPORTS = {name: reports.load(name) for name in NAMES}
REPAIRS = repairs.of_names(NAMES)
FINDINGS = known()


def needs_package(name: str) -> None:
    if FINDINGS[name][1]:
        reason = registry.load(case_file.load(FINDINGS[name][0].path).target).unavailable("cpu")
    else:
        reason = foreign.missing(name.partition("-")[0], (), name)
    if reason or not reports.is_in(name):
        pytest.skip(reason or "another release has it")


def test_each_finding_has_a_script_a_report_and_a_result():
    assert sorted(FINDINGS) == NAMES == sorted(finding_scripts.stored())
    for name in NAMES:
        assert 10 <= len(file_of(name, ".py").read_text().splitlines()) <= 60
        source = finding_scripts.source(name)
        for text in (source.script(Path(source.package)), source.stand_ins(), source.test(Path(source.package))):
            compile(text, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_shows_its_finding_in_a_process_without_this_project(name):
    needs_package(name)
    assert finding_scripts.run(name) == (SHOWS, finding_scripts.stored()[name].interpreted)


@pytest.mark.parametrize("name", REPAIRS)
def test_a_script_passes_with_a_repaired_kernel(name, tmp_path):
    needs_package(name)
    sources = repairs.repaired({name: REPAIRS[name]}, tmp_path)
    assert finding_scripts.run(name, sources=sources) == (DOES_NOT_SHOW, finding_scripts.stored()[name].repaired)


def test_all_findings_have_a_repair():
    assert {*NAMES} == {*REPAIRS}


@pytest.mark.parametrize("package", ["aiter", "sglang", "vllm"])
def test_the_repairs_of_a_package_go_together(package, tmp_path):
    """No repair changes what another one looks for."""
    of_package = {name: REPAIRS[name] for name in NAMES if package_of(name) == package and not REPORTS[name].needs}
    needs_package(next(iter(of_package)))
    repairs.repaired(of_package, tmp_path)
    for name in of_package:
        for repair in of_package[name]:
            assert repair.new.splitlines()[-1] in (tmp_path / repair.file).read_text(), name
    assert {*(tmp_path / package / foreign.REPAIRED).read_text().split()} == {*of_package}


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_that_a_report_cites_are_in_the_package(name):
    needs_package(name)
    report = REPORTS[name]
    for cited in [*report.lines, *(line.partition(" ")[0] for line in report.sent_by)]:
        file, _, lines = cited.partition(":")
        path = foreign.sources(Path(file).parts[0]).parent / file
        numbers = [int(number) for number in lines.split("-")] if lines else [1]
        assert numbers == sorted(numbers), cited
        assert numbers[-1] <= len(path.read_text(encoding="utf-8").splitlines()), cited


def test_a_script_that_launches_no_kernel_or_needs_a_gpu_has_no_result_of_compiled_kernels():
    without = {name for name, shown in finding_scripts.stored().items() if shown.compiled is None}
    need_gpu = {name for name, (finding, _) in FINDINGS.items() if finding.needs_gpu}
    assert need_gpu == {name for name, report in REPORTS.items() if report.gpu} != set()
    assert (
        without - need_gpu
        == {name for name, report in REPORTS.items() if not report.launches}
        == {
            *("aiter-fractional-soft-cap", "sglang-aiter-decode-window", "vllm-flex-range-ahead", "vllm-flex-range-clamped"),
            *("vllm-index-decode-drafts", "vllm-mqa-logits-bfloat16"),
        }
    )


def test_a_repair_of_a_text_that_is_not_there_is_refused(tmp_path):
    needs_package("vllm-window-ahead")
    [first] = REPAIRS["vllm-window-ahead"]
    with pytest.raises(ValueError, match="there is no 'no such text'"):
        repairs.repaired({"vllm-window-ahead": [replace(first, old="no such text")]}, tmp_path)


def test_a_folder_that_is_written_passes_its_check_and_one_with_another_patch_does_not(tmp_path):
    needs_package("sglang-decode-window")
    [_] = folders.write(named(["sglang-decode-window"]), finding_scripts.stored(), tmp_path)
    [(name, found)] = folders.check_all(tmp_path)
    assert (name, found, found.passed) == ("sglang-decode-window", Checked((SHOWS, DOES_NOT_SHOW), (1, 0)), True)
    patch = tmp_path / name / "fix.patch"
    assert patch.read_text().startswith("--- a/python/sglang/")
    patch.write_text(patch.read_text().replace("size + 1", "size + 2"))
    [(_, found)] = folders.check_all(tmp_path / name)
    assert (found, found.passed) == (Checked((SHOWS, SHOWS), (1, 1)), False)


def test_a_finding_whose_lines_the_source_has_no_longer_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "sglang" / "srt" / "layers" / "attention").mkdir(parents=True)
    (tmp_path / "sglang" / "srt" / "layers" / "attention" / "triton_backend.py").write_text("# nothing\n")
    monkeypatch.setenv("ATTN_PARITY_SGLANG", str(tmp_path))
    [line] = folders.write(named(["sglang-decode-window"]), finding_scripts.stored(), tmp_path / "written")
    assert line.startswith("sglang-decode-window: not written, sglang/srt/layers/attention/triton_backend.py: there is no")
    assert not (tmp_path / "written").exists()


def test_a_known_failure_that_comes_on_repaired_sources_is_told(monkeypatch, tmp_path):
    assert [finding.name for finding in registry.load("planted_repaired:TARGET").findings] == ["planted-cap"]
    (tmp_path / "planted_foreign").mkdir()
    (tmp_path / "planted_foreign" / foreign.REPAIRED).write_text("planted-cap\n")
    monkeypatch.setenv("ATTN_PARITY_PLANTED_FOREIGN", str(tmp_path))
    assert registry.load("planted_repaired:TARGET").findings == ()

"""The script of each finding fails alone, passes with a mended kernel, and says when it cannot run; the pages are current."""

import subprocess
import sys

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.report import finding_scripts, findings_page
from attn_fuzz.report.finding_scripts import CANNOT_RUN, DOES_NOT_SHOW, FOLDER, SHOWS, Mend, Shown
from attn_fuzz.targets import registry
from msgspec.structs import replace

NAMES = sorted(file.stem for file in FOLDER.glob("*.toml"))
FINDINGS = findings_page.shared((name, registry.load(name).findings) for name in registry.names())


def needs_package(name: str) -> None:
    case = case_file.load(FINDINGS[name][0].path)
    if reason := registry.load(case.target).unavailable("cpu"):
        pytest.skip(reason)


def test_each_finding_has_a_script_a_report_and_a_result():
    assert sorted(FINDINGS) == NAMES == sorted(finding_scripts.results())
    for name in NAMES:
        assert 10 <= len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60
        compile(finding_scripts.script(name), name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_shows_its_finding_in_a_process_without_this_project(name):
    needs_package(name)
    assert finding_scripts.run(name) == (SHOWS, finding_scripts.results()[name].interpreted)


@pytest.mark.parametrize("name", ["aiter-hidden-tile", "sglang-decode-window", "vllm-flex-range-ahead", "vllm-window-ahead"])
def test_a_script_passes_with_a_mended_kernel(name, tmp_path):
    needs_package(name)
    report = finding_scripts.report(name)
    assert finding_scripts.run(name, sources=finding_scripts.mended(report, tmp_path)) == (
        DOES_NOT_SHOW,
        finding_scripts.results()[name].mended,
    )


def test_a_script_that_launches_no_kernel_has_no_result_of_compiled_kernels():
    without = {name for name, shown in finding_scripts.results().items() if shown.compiled is None}
    assert without == {name for name in NAMES if not finding_scripts.launches(name)} == {"vllm-flex-range-ahead"}
    page = findings_page.page(FINDINGS["vllm-flex-range-ahead"][0], finding_scripts.results()["vllm-flex-range-ahead"])
    assert "launches no kernel" in page
    assert "on an emulator" not in page


def test_named_scripts_are_run_and_other_results_are_kept(tmp_path, monkeypatch):
    before, new = finding_scripts.results(), Shown("new", "new")
    monkeypatch.setattr(finding_scripts, "RESULTS", tmp_path / "findings.json")
    monkeypatch.setattr(finding_scripts, "results", lambda: dict(before))
    monkeypatch.setattr(finding_scripts, "_shown", lambda name: new)
    finding_scripts.main(["vllm-window-ahead"])
    written = msgspec.json.decode((tmp_path / "findings.json").read_bytes(), type=dict[str, Shown])
    assert written == before | {"vllm-window-ahead": new}
    assert list(written) == NAMES


def test_a_name_of_no_finding_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(finding_scripts, "RESULTS", tmp_path / "findings.json")
    with pytest.raises(SystemExit, match="NAME: got no-such-finding, expected names of findings"):
        finding_scripts.main(["no-such-finding"])
    assert not list(tmp_path.iterdir())


def test_a_mend_of_a_text_that_is_not_there_is_refused(tmp_path):
    needs_package("vllm-window-ahead")
    report = replace(finding_scripts.report("vllm-window-ahead"), mend=[Mend("no such text", "")])
    with pytest.raises(ValueError, match="there is no 'no such text'"):
        finding_scripts.mended(report, tmp_path)


def test_without_its_package_a_script_cannot_run(tmp_path):
    """An empty folder of the package's name stands for a package without the file."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    code, output = finding_scripts.run("vllm-window-ahead", sources=tmp_path)
    assert code == CANNOT_RUN
    assert "No module named" in output


def test_a_script_that_imports_this_project_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr(finding_scripts, "script", lambda name: "import attn_contract\n")
    code, _ = finding_scripts.run("any")
    assert code not in (SHOWS, DOES_NOT_SHOW, CANNOT_RUN)


def test_the_pages_are_what_the_reports_make_of_them():
    """If they are not: python -m attn_fuzz.report.findings_page"""
    done = subprocess.run([sys.executable, "-m", "attn_fuzz.report.findings_page", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

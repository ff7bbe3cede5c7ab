"""The repairs of findings: sources of packages with the changes of their reports."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from attn_fuzz import foreign
from attn_lab.findings.places import names
from attn_lab.findings.reports import Report, is_in, load

_LOADED = {
    "aiter": ("ops/triton",),
    "lmdeploy": ("pytorch",),
    "sglang": ("kernels/ops/attention", "srt/layers/attention", "srt/models/gemma2.py"),
    "vllm": ("v1/attention", "utils/math_utils.py"),
}
"""The parts of a package that its targets and scripts load; all of any other package."""
_REPEATED = (
    "sglang/srt/layers/attention/aiter_backend.py",
    "sglang/srt/layers/attention/triton_backend.py",
    "vllm/v1/attention/backends/mla/triton_mla.py",
)
"""Files whose code the targets repeat, and do not load: a repair of them changes scripts alone."""


def repaired(reports: Mapping[str, Report], folder: Path) -> Path:
    """A folder with a package's Python files and their configurations, in which findings of the package are repaired.

    Its file REPAIRED names the findings whose repaired files the package's targets load: a target on these sources does not
    have them (`attn_fuzz.foreign.repaired`). Several packages may share a folder.

    Args:
        reports: the reports of the findings, by name.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    [package] = {report.file.parts[0] for report in reports.values()}
    sources = foreign.sources(package)
    files = changed(reports.values(), sources.parent)
    copied(sources, folder, files)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    loaded = [name for name, report in reports.items() if report.repair and str(report.file) not in _REPEATED]
    (folder / package / foreign.REPAIRED).write_text("".join(f"{name}\n" for name in loaded), encoding="utf-8")
    return folder


def changed(reports: Iterable[Report], sources: Path) -> dict[Path, str]:
    """The files in `sources` that the repairs change, as they are after these.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    texts: dict[Path, str] = {}
    for named, repair in (each for report in reports for each in report.changes()):
        file = placed(named, sources)
        text = texts.get(file) or (sources / file).read_text(encoding="utf-8")
        if repair.old not in text:
            raise ValueError(f"{file}: there is no {repair.old!r}")
        texts[file] = text.replace(repair.old, repair.new)
    return texts


def placed(file: Path, sources: Path) -> Path:
    """A file of a report where the release in `sources` has it: AITER moved its kernels of attention to a folder."""
    moved = file.with_name("attention") / file.name
    return moved if not (sources / file).is_file() and (sources / moved).is_file() else file


def copied(package: Path, folder: Path, files: Iterable[Path]) -> None:
    """Copy the sources that the scripts of a package load, and these files of it, into a folder."""
    parts = [Path(package.name, part) for part in _LOADED.get(package.name, ("",))]
    for part in [*parts, *(file for file in files if not any(part in file.parents for part in parts))]:
        if (package.parent / part).is_dir():
            shutil.copytree(package.parent / part, folder / part, ignore=_other_than_sources, dirs_exist_ok=True)
        else:
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(package.parent / part, folder / part)
    (folder / package.name / "__init__.py").touch()


def all_repaired(folder: Path) -> list[str]:
    """Write the sources of each package that has findings into a folder, with all repairs. Returns the names in REPAIRED."""
    reports = {name: load(name) for name in names() if is_in(name)}
    packages = {found.file.parts[0] for found in reports.values()}
    for package in sorted(packages):
        repaired({name: found for name, found in reports.items() if found.file.parts[0] == package}, folder)
    return [name for package in sorted(packages) for name in (folder / package / foreign.REPAIRED).read_text().split()]


def _other_than_sources(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_file() and not name.endswith((".py", ".json"))]

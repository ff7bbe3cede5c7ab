"""The repairs of findings, and sources of packages with them. A repair is a file NAME.toml beside a finding's stored case."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import util
from pathlib import Path

import msgspec
from attn_fuzz import foreign, inputs
from attn_fuzz.findings.finding import CASES, Finding

_BESIDE = ("aiter_meta", "csrc", "hsa", "3rdparty")
"""Folders beside AITER's package: what its targets load, but for Python."""


class Repair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of a text of a package's file, which is named from the folder that holds the package.

    That of code objects, PACKAGE/PATTERN.co, is the assembly that the emulator reads. Those without the text stay as they are.
    """

    old: str
    new: str
    file: str = ""


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """NAME.toml: changes, of `file` where a change names no other file."""

    file: str
    repair: list[Repair]


Repairs = Mapping[str, Sequence[Repair]]
"""The changes that repair each finding, by the finding's name."""


def of_names(names: Iterable[str]) -> Repairs:
    """The repairs of findings that come with the fuzzer, of those that have one."""
    return _read(CASES / f"{name}.toml" for name in names)


def of_findings(findings: Iterable[Finding]) -> Repairs:
    return _read(finding.path.with_suffix(".toml") for finding in findings)


def _read(files: Iterable[Path]) -> Repairs:
    stored = {file.stem: inputs.read_toml_as(file, _Stored) for file in files if file.is_file()}
    return {
        name: [msgspec.structs.replace(each, file=each.file or found.file) for each in found.repair]
        for name, found in stored.items()
    }


def environment(findings: Iterable[Finding]) -> dict[str, str]:
    """The variables with which a process takes sources in which these findings are repaired, as far as they can be: a finding
    whose lines the sources do not have is not. The sources are in a temporary folder of the run.

    Compiled kernels are in a folder of their own: Triton's key of a kernel has not the function that makes its name.
    """
    of_packages: dict[str, dict[str, Sequence[Repair]]] = {}
    for name, repair in of_findings(findings).items():
        if _applies(repair):
            of_packages.setdefault(_package(repair), {})[name] = repair
    cache = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME", Path.home()), ".triton", "cache")
    return {"TRITON_CACHE_DIR": str(Path(cache, "attn-parity-repaired"))} | {
        foreign.variable(package): str(repaired(each, Path(tempfile.mkdtemp(prefix="repaired-", dir=util.get_temp_dir()))))
        for package, each in of_packages.items()
    }


def _package(repair: Sequence[Repair]) -> str:
    return Path(repair[0].file).parts[0]


def _applies(repair: Sequence[Repair]) -> bool:
    try:
        changed(repair, foreign.sources(_package(repair)).parent)
    except (foreign.MissingSourcesError, OSError, ValueError):
        return False
    return True


def repaired(repairs: Repairs, folder: Path) -> Path:
    """A folder with the sources of a package, in which these findings are repaired. Other files are links.

    Its file REPAIRED names the findings: a target on these sources does not have them (`attn_fuzz.foreign.repaired`). A target
    that repeats a line of the package, and does not load it, asks for the name.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    [package] = {_package(repair) for repair in repairs.values()}
    sources = foreign.sources(package)
    changes = [each for repair in repairs.values() for each in repair]
    files = changed(changes, sources.parent)
    copied(sources, folder / package, [file.relative_to(package) for file in files])
    for each in filter(Path.is_dir, (sources.parent / name for name in _BESIDE)):
        (folder / each.name).symlink_to(each)
    code = [(each.file.partition("/")[2], each.old, each.new) for each in changes if _is_code(each)]
    (folder / foreign.REPAIRED_CODE).write_bytes(msgspec.json.encode(code))
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    (folder / package / foreign.REPAIRED).write_text("".join(f"{name}\n" for name in repairs), encoding="utf-8")
    return folder


def changed(repair: Iterable[Repair], sources: Path) -> dict[Path, str]:
    """The files in `sources` that repairs change, as they are after these.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    texts: dict[Path, str] = {}
    for each in repair:
        if _is_code(each):
            continue
        file = placed(Path(each.file), sources)
        text = texts.get(file) or (sources / file).read_text(encoding="utf-8")
        if each.old not in text:
            raise ValueError(f"{file}: there is no {each.old!r}")
        texts[file] = text.replace(each.old, each.new)
    return texts


def _is_code(repair: Repair) -> bool:
    return repair.file.endswith(".co")


def placed(file: Path, sources: Path) -> Path:
    """A file of a repair where the release in `sources` has it: AITER moved its kernels of attention to a folder."""
    moved = file.with_name("attention") / file.name
    return moved if not (sources / file).is_file() and (sources / moved).is_file() else file


def copied(source: Path, folder: Path, files: Iterable[Path]) -> None:
    """Make a folder of links to what a folder has, with copies of these of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {file.parts[0]: [each for each in files if each.parts[0] == file.parts[0]] for file in files}
    for each in source.iterdir():
        if each.name not in parts:
            (folder / each.name).symlink_to(each)
        elif each.is_file():
            shutil.copy(each, folder)
        else:
            copied(each, folder / each.name, [Path(*file.parts[1:]) for file in parts[each.name]])

"""The scripts that show findings to their owners: findings/PACKAGE/NAME.py, and what they print."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import foreign, inputs, outputs
from attn_fuzz.errors import InputError
from attn_lab.findings.issue_text import Source
from attn_lab.findings.places import FOLDER, file_of, names, package_of
from attn_lab.pages import PAGES

RESULTS = PAGES / "findings.json"
ARCHITECTURE = "gfx942"
SHOWS, DOES_NOT_SHOW, CANNOT_RUN = 1, 0, 2
CONFIRMED = ("closed form", "second implementation", "the package's own reference")
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
_ALONE = """
import runpy, sys, traceback

class Blocked:
    def find_spec(self, name, *rest):
        if name.startswith("attn_"):
            sys.exit(3)

sys.meta_path.insert(0, Blocked())
sys.path[:0] = sys.argv[2:]
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except Exception:
    traceback.print_exc()
    sys.exit(2)
finally:
    assert not [name for name in sys.modules if name.startswith("attn_")]
"""


class Repair(msgspec.Struct, forbid_unknown_fields=True):
    """A change of a text of a file: of `file`, or of the first one in the report's `lines`."""

    old: str
    new: str
    file: str | None = None


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """findings/PACKAGE/NAME.toml: what the owner of a kernel is told of a finding, besides what the finding says.

    Attributes:
        title: the title of an issue.
        kernel: the function at fault.
        lines: at fault, "file:first-last" in the version in which the finding was seen.
        confirmed: what says that it is no false alarm: one of CONFIRMED, a colon, and what it says.
        since: the first version or commit that is known to have the bug, and the last one that is known not to have it.
        newest: the newest version or commit that was looked at, and whether it has the bug.
        harm: the severity.
        sent_by: lines of engines that send such a call, "file:line what". Empty: no engine is known to send one.
        gpu: of a finding that needs a GPU (`Finding.needs_gpu`), which GPU showed it, and how a CPU imitates it. Its script
            does so where there is no GPU. None: the finding shows on a CPU.
        launches: True if the script launches kernels.
        needs: a file that the source must have; a source without it has not the finding. None: any has it.
        left: what the repair does not change, though it has the bug, too.
        repair: changes with which the script no longer shows the finding. They show that the lines are the cause, and are no
            patch. Empty: no change of a few lines was found.
    """

    title: str
    kernel: str
    lines: list[str]
    confirmed: str
    since: str
    newest: str
    harm: str
    sent_by: list[str] = []
    gpu: str | None = None
    launches: bool = True
    needs: str | None = None
    left: str = ""
    repair: list[Repair] = []

    def __post_init__(self) -> None:
        if self.confirmed_by not in CONFIRMED:
            raise ValueError(f"confirmed: got {self.confirmed!r}, expected to begin with one of {', '.join(CONFIRMED)}")

    @property
    def confirmed_by(self) -> str:
        return self.confirmed.partition(":")[0]

    @property
    def file(self) -> Path:
        """The first file in `lines`."""
        return Path(self.lines[0].partition(":")[0])

    def changes(self) -> Iterator[tuple[Path, Repair]]:
        """Each repair, with the file that it changes."""
        for repair in self.repair:
            yield Path(repair.file or self.file), repair


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The result of a finding's script.

    Attributes:
        interpreted: its output.
        compiled: its output with kernels that were compiled for gfx942 and emulated; None if it launches no kernel, or if
            the finding needs a GPU.
        repaired: its output with the repaired file; None if there is no repair.
        run_on: the GPU on which `findings check` passed, with its Triton; None if there was none.
    """

    interpreted: str
    compiled: str | None
    repaired: str | None = None
    run_on: str | None = None


def report(name: str) -> Report:
    """
    Raises:
        InputError: the finding has no report.
    """
    return inputs.read_toml_as(file_of(name, ".toml"), Report)


def source(name: str) -> Source:
    """findings/PACKAGE/NAME.py."""
    return Source(name, package_of(name))


def is_emulated(name: str) -> bool:
    """True if kernels that the script of a finding launches show it on the emulator, too."""
    found = report(name)
    return found.launches and found.gpu is None


def is_in(name: str) -> bool:
    """True if the source of a finding's package that is here is one that has the finding."""
    needs = report(name).needs
    return needs is None or (foreign.sources(package_of(name)).parent / needs).is_file()


def results() -> dict[str, Shown]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Shown])


def run(
    name: str, *, sources: Path | None = None, architecture: str | None = None, seconds: float | None = None
) -> tuple[int, str]:
    """The exit code and the output of a finding's complete script, in a process of its own.

    The code is CANNOT_RUN where the script raises: it does not fit these sources, and shows nothing.

    Args:
        sources: a folder with other sources of the package.
        architecture: for which the kernels are compiled, to be emulated. None: they are interpreted, in a process that cannot
            import this project.
        seconds: after which the script cannot run.
    """
    text, package = source(name), package_of(name)
    folder = foreign.sources(package) if sources is None else sources / package
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "show.py")
        file.write_text(text.script(folder), encoding="utf-8")
        Path(scratch, "stand_ins.py").write_text(text.stand_ins(), encoding="utf-8")
        others = [scratch, str(folder.parent)]
        how = ["-P", "-m", "attn_fuzz.emulated.script", str(architecture), str(file)]
        if architecture is None:
            how = ["-I", "-c", _ALONE, str(file), *others]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*others, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-W", "ignore", *how]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
        except subprocess.TimeoutExpired:
            return CANNOT_RUN, f"it did not end in {seconds:g} s"
    return done.returncode, done.stdout if done.returncode != CANNOT_RUN else done.stdout + done.stderr


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
    """The files in `sources` that the repairs change, as they are behind these.

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
    reports = {name: report(name) for name in names() if is_in(name)}
    packages = {found.file.parts[0] for found in reports.values()}
    for package in sorted(packages):
        repaired({name: found for name, found in reports.items() if found.file.parts[0] == package}, folder)
    return [name for package in sorted(packages) for name in (folder / package / foreign.REPAIRED).read_text().split()]


def _other_than_sources(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_file() and not name.endswith((".py", ".json"))]


def _shown(name: str) -> Shown:
    compiled = _showing(name, ARCHITECTURE) if is_emulated(name) else None
    return Shown(_showing(name, None), compiled, _repaired(name))


def _showing(name: str, architecture: str | None) -> str:
    code, output = run(name, architecture=architecture)
    if code != SHOWS:
        raise RuntimeError(f"{name}: exit code {code}, expected {SHOWS}\n{output}")
    return output


def _repaired(name: str) -> str | None:
    if not (found := report(name)).repair:
        return None
    with tempfile.TemporaryDirectory() as folder:
        code, output = run(name, sources=repaired({name: found}, Path(folder)))
    if code != DOES_NOT_SHOW:
        raise RuntimeError(f"{name}, repaired: exit code {code}, expected {DOES_NOT_SHOW}\n{output}")
    return output


def run_all(chosen: Sequence[str]) -> Iterator[str]:
    """Run the scripts of the named findings, or of all, and keep what they print. It needs the findings' packages.

    Yields the name of each finding when its script has run.

    Raises:
        InputError: a finding has no report.
    """
    known = names()
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"NAME: got {', '.join(unknown)}, expected names of findings with a report in {FOLDER}")
    shown = results()
    for name in chosen or filter(is_in, known):
        shown[name] = _shown(name)
        yield name
    _keep({name: shown[name] for name in known if name in shown})


def ran_on(name: str, gpu: str) -> None:
    """Keep that the script and the test of a finding passed on this GPU."""
    shown = results()
    _keep(shown | {name: msgspec.structs.replace(shown[name], run_on=gpu)})


def _keep(kept: Mapping[str, Shown]) -> None:
    outputs.write(RESULTS, msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")

"""The scripts that show findings to their owners: findings/NAME.py, and what they print."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import foreign
from attn_fuzz.errors import InputError

ROOT = Path(__file__).parents[3]
FOLDER, RESULTS = ROOT / "findings", ROOT / "docs" / "generated" / "findings.json"
ARCHITECTURE = "gfx942"
SHOWS, DOES_NOT_SHOW, CANNOT_RUN = 1, 0, 2
CONFIRMED = ("closed form", "second implementation", "the package's own reference")
_LOADED = {"aiter": "ops/triton", "lmdeploy": "pytorch", "sglang": "kernels/ops/attention", "vllm": "v1/attention"}
"""The part of a package that its targets load; all of any other package."""
_READ = {"sglang": ("sglang/srt/models/gemma2.py", "sglang/srt/layers/attention/triton_backend.py")}
"""Other files of a package that scripts read."""
_REPEATED = ("sglang/srt/layers/attention/triton_backend.py", "vllm/v1/attention/backends/mla/triton_mla.py")
"""Files whose code the targets repeat, and do not load: a repair of them changes scripts alone."""
_LOADS = re.compile(r"^from kernels import .*\bload\b", re.MULTILINE)
_SHARED = re.compile(r"^from (\w+) import .*\n", re.MULTILINE)
_DOCSTRING = re.compile(r'\A""".*?"""\n', re.DOTALL)
_ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, *rest):
        if name.startswith("attn_"):
            sys.exit(3)

sys.meta_path.insert(0, Blocked())
sys.path[:0] = sys.argv[2:]
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
finally:
    assert not [name for name in sys.modules if name.startswith("attn_")]
"""


class Repair(msgspec.Struct, forbid_unknown_fields=True):
    """A change of a text of a file: of `file`, or of the first one in the report's `lines`."""

    old: str
    new: str
    file: str | None = None


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """findings/NAME.toml: what the owner of a kernel is told of a finding, besides what the finding says.

    Attributes:
        title: of an issue.
        kernel: the function at fault.
        lines: at fault, "file:first-last" in the version in which the finding was seen.
        confirmed: what says that it is no false alarm: one of CONFIRMED, a colon, and what it says.
        since: the first version or commit that is known to have the bug, and the last one that is known not to have it.
        newest: the newest version or commit that was looked at, and whether it has the bug.
        harm: how bad it is.
        sent_by: lines of engines that send such a call, "file:line what". Empty: no engine is known to send one.
        gpu: of a finding that needs a GPU (`Finding.needs_gpu`), which GPU showed it, and how a CPU imitates it. Its script
            does so where there is no GPU. None: the finding shows on a CPU.
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


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the script of a finding did.

    Attributes:
        interpreted: what it printed.
        compiled: what it printed with kernels that were compiled for gfx942 and emulated; None if it launches no kernel, or if
            the finding needs a GPU.
        repaired: what it printed with the repaired file; None if there is no repair.
    """

    interpreted: str
    compiled: str | None
    repaired: str | None = None


def report(name: str) -> Report | None:
    """The report of a finding; None if there is none."""
    file = FOLDER / f"{name}.toml"
    return msgspec.toml.decode(file.read_bytes(), type=Report) if file.is_file() else None


def script(name: str) -> str:
    """The script of a finding, complete: with what it imports from its folder."""
    text, shared = (FOLDER / f"{name}.py").read_text(encoding="utf-8"), []
    for line in _SHARED.finditer(text):
        if (file := FOLDER / f"{line[1]}.py").is_file():
            shared.append(_DOCSTRING.sub("", file.read_text(encoding="utf-8")).strip("\n") + "\n")
            text = text.replace(line[0], "")
    if shared and shared[-1].splitlines()[-1].startswith(" "):
        shared[-1] += "\n"  # a function has two empty lines behind it
    docstring = _DOCSTRING.match(text)
    assert docstring is not None, f"{name}: a script begins with its docstring"
    complete = "\n".join([docstring[0], "\n\n".join(shared), text[docstring.end() :].lstrip("\n")])
    return complete.replace("  # noqa: E402", "")


def launches(name: str) -> bool:
    """Whether the script of a finding launches kernels: it loads a module that has them."""
    return _LOADS.search((FOLDER / f"{name}.py").read_text(encoding="utf-8")) is not None


def is_emulated(name: str) -> bool:
    """Whether kernels that the script of a finding launches show it on the emulator, too."""
    found = report(name)
    return launches(name) and (found is None or found.gpu is None)


def results() -> dict[str, Shown]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Shown])


def run(name: str, *, sources: Path | None = None, architecture: str | None = None) -> tuple[int, str]:
    """The exit code and the output of a finding's complete script, in a process of its own.

    Args:
        sources: a folder with other sources of the package.
        architecture: for which the kernels are compiled, to be emulated. None: they are interpreted, in a process that cannot
            import this project.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, f"{name}.py")
        file.write_text(script(name), encoding="utf-8")
        others = [] if sources is None else [str(sources)]
        how = ["-I", "-c", _ALONE] if architecture is None else ["-P", "-m", "attn_fuzz.emulated.script", architecture]
        done = subprocess.run([sys.executable, "-W", "ignore", *how, str(file), *others], capture_output=True, text=True)
    return done.returncode, done.stdout if done.returncode != CANNOT_RUN else done.stdout + done.stderr


def repaired(reports: Mapping[str, Report], folder: Path) -> Path:
    """A folder with a package's Python files and their configurations, in which findings of the package are repaired.

    Its file REPAIRED names the findings whose repaired files the package's targets load: a target on these sources does not
    have them (`attn_fuzz.foreign.repaired`). Several packages may share a folder.

    Args:
        reports: of the findings, by name.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    [package] = {report.file.parts[0] for report in reports.values()}
    part = Path(package, _LOADED.get(package, ""))
    installed = foreign.sources(package).parent
    shutil.copytree(installed / part, folder / part, ignore=_other_than_sources, dirs_exist_ok=True)
    changes = [change for report in reports.values() for change in report.changes()]
    for file in {*(file for file, _ in changes), *map(Path, _READ.get(package, ()))}:
        if part not in file.parents:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(installed / file, folder / file)
    (folder / package / "__init__.py").touch()
    for file, repair in changes:
        text = (folder / file).read_text(encoding="utf-8")
        if repair.old not in text:
            raise ValueError(f"{file}: there is no {repair.old!r}")
        (folder / file).write_text(text.replace(repair.old, repair.new), encoding="utf-8")
    loaded = [name for name, report in reports.items() if report.repair and str(report.file) not in _REPEATED]
    (folder / package / foreign.REPAIRED).write_text("".join(f"{name}\n" for name in loaded), encoding="utf-8")
    return folder


def all_repaired(folder: Path) -> list[str]:
    """Write the sources of each package that has findings into a folder, with all repairs. Returns the names in REPAIRED."""
    reports = {name: found for name in _known() if (found := report(name))}
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
    if not (found := report(name)) or not found.repair:
        return None
    with tempfile.TemporaryDirectory() as folder:
        code, output = run(name, sources=repaired({name: found}, Path(folder)))
    if code != DOES_NOT_SHOW:
        raise RuntimeError(f"{name}, repaired: exit code {code}, expected {DOES_NOT_SHOW}\n{output}")
    return output


def _known() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def run_all(names: Sequence[str]) -> None:
    """Run the scripts of the named findings, or of all, and keep what they print. It needs the findings' packages.

    Raises:
        InputError: a finding has no report.
    """
    known = _known()
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"NAME: got {', '.join(unknown)}, expected names of findings with a report in {FOLDER}")
    shown = results() if names else {}
    for number, name in enumerate(names or known, 1):
        shown[name] = _shown(name)
        print(f"{name} ({number})", flush=True)
    kept = {name: shown[name] for name in known if name in shown}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")

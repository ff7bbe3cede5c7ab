"""A folder for each finding, which a person can send to the owner of a kernel, made beside the owner's source; and their check.

    issue.md      in the owner's template
    show.py       exits with 1 where the finding shows, with 0 where it does not, and with 2 where it cannot run
    stand_ins.py  for show.py and the test where the package cannot be imported
    fix.patch     for `git apply` in the owner's repository; absent where no change of a few lines is known
    tests/...     a test in the owner's layout

The owner's files are read where `ATTN_PARITY_PACKAGE` says or the package is installed. A folder has no line of them but those
of the patch.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from attn_fuzz import foreign
from attn_fuzz.errors import InputError
from attn_fuzz.findings import repairs
from attn_fuzz.findings.finding import Finding
from attn_lab.findings import reports, scripts
from attn_lab.findings.issue_text import LAYOUTS
from attn_lab.findings.places import package_of
from attn_lab.findings.reports import Report
from attn_lab.findings.scripts import DOES_NOT_SHOW, SHOWS, Shown


def patch(name: str, package: Path) -> str:
    """A finding's repair of a package, for `git apply` in the owner's repository. Empty: it has none.

    Raises:
        ValueError: a file has not the text that is to be changed.
    """
    prefix, found = LAYOUTS[package.name].prefix, []
    for file, after in _changed(name, package).items():
        before = (package.parent / file).read_text(encoding="utf-8")
        names = (f"a/{prefix}{file}", f"b/{prefix}{file}")
        found += difflib.unified_diff(before.splitlines(True), after.splitlines(True), *names)
    return "".join(found)


def write(findings: Mapping[str, Finding], shown: Mapping[str, Shown], folder: Path) -> Iterator[str]:
    """Write the folders of findings whose packages are here. Yields a line for each finding: what was written, or why not."""
    for name, finding in findings.items():
        package = foreign.sources(package_of(name))
        report, text, layout = reports.load(name), scripts.source(name), LAYOUTS[package.name]
        try:
            changes = patch(name, package)
        except (ValueError, FileNotFoundError) as error:
            yield f"{name}: not written, {error}"
            continue
        test = layout.test(name)
        files = {"show.py": text.script(package), "stand_ins.py": text.stand_ins(), str(test): text.test(package)}
        files["issue.md"] = issue(finding, report, shown[name], package, has_patch=bool(changes))
        if changes:
            files["fix.patch"] = changes
        for file, content in files.items():
            place = folder / name / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
        yield f"{name}: {', '.join(sorted(files))}"


def issue(finding: Finding, report: Report, shown: Shown, package: Path, *, has_patch: bool) -> str:
    """A title and a body in the owner's template: harm first.

    Args:
        package: the folder of the sources that the patch is of.
    """
    layout = LAYOUTS[package.name]
    test = layout.test(finding.name)
    version, _, others = finding.seen_in.partition(", and ")
    sent = [f"- {line}" for line in report.sent_by] or ["- no engine that is known"]
    patched = f"`fix.patch` ends it, and shows that its lines are the cause. `{test}` fails before it and passes after it."
    described = [
        f"{_sentence(report.harm)}",
        "",
        finding.what,
        "",
        f"**Cause.** {_moved(finding.cause, version, package)}",
        "",
        f"**Lines** of {version}: {', '.join(f'`{line}`' for line in report.lines)}.{others and f' Also in {others}.'}",
        *_patched_lines(finding.name, package),
        f"**Since.** {_sentence(report.since)}",
        "",
        "**Who sends such a call.**",
        "",
        *sent,
        "",
        patched if has_patch else f"No change of a few lines is known. `{test}` fails.",
        *([f"`fix.patch` leaves {report.left}."] if report.left else []),
    ]
    reproduced = [
        "It needs torch and Triton. Where the package cannot be imported, as without a GPU, `stand_ins.py` loads its kernels",
        "alone. In this folder, with the package in SOURCES: `PYTHONPATH=SOURCES python show.py`. It prints",
        "",
        "```",
        shown.interpreted.rstrip("\n"),
        "```",
        "",
        _sentence(report.confirmed),
        "",
        f"The test: `PYTHONPATH=.:SOURCES python -m pytest -p stand_ins --rootdir=. -c {os.devnull} {test}`",
        "",
        f"**Run on.** {' '.join(run_on(report, shown))}",
    ]
    title, sections = layout.issue
    filled = {"bug": described, "reproduction": reproduced}
    lines = [f"# {title}{report.title}", ""]
    for heading, content in sections:
        lines += [f"### {heading}", "", *(filled.get(content) or [content]), ""]
    return "\n".join(lines)


def _moved(text: str, version: str, package: Path) -> str:
    """A text whose paths are those of the package's sources; lines that it names are those of the version seen."""

    def place(found: re.Match[str]) -> str:
        file, lines = Path(found[1]), found[2]
        there = repairs.placed(file, package.parent)
        return found[0] if there == file else f"{there} ({lines} of {version})" if lines else str(there)

    return re.sub(rf"\b({package.name}/[\w/]+\.py)(?::([\d-]+(?:(?:,| and) [\d-]+)*))?", place, text)


def _changed(name: str, package: Path) -> Mapping[Path, str]:
    return repairs.changed(chain(*repairs.of_names([name]).values()), package.parent)


def _patched_lines(name: str, package: Path) -> list[str]:
    """The places of a patch in sources of AITER's repository that are not in a wheel."""
    if not (package.parent / ".git").exists():
        return []
    ask, found = ["git", "-C", package.parent, "rev-parse", "--short=8", "HEAD"], []
    commit = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    for file, after in _changed(name, package).items():
        before = (package.parent / file).read_text(encoding="utf-8").splitlines()
        changes = difflib.SequenceMatcher(None, before, after.splitlines(), autojunk=False).get_opcodes()
        found += [f"`{file}:{_lines(first, last)}`" for kind, first, last, *_ in changes if kind in ("replace", "delete")]
        found += [f"after `{file}:{last}`" for kind, _, last, *_ in changes if kind == "insert"]
    return [f"**Lines that `fix.patch` changes** in the repository at {commit}: {', '.join(found)}."] if found else []


def _lines(first: int, last: int) -> str:
    """A range of lines as difflib counts them: from 0, without the last one."""
    return f"{last}" if first + 1 == last else f"{first + 1}-{last}"


def run_on(report: Report, shown: Shown) -> Iterator[str]:
    """Sentences that say on what the script ran."""
    if not report.launches:
        yield "A CPU. The script launches no kernel of the package."
        return
    yield "A CPU, by Triton's interpreter" + (", which was made to cut operands as the GPU does." if report.gpu else ".")
    if shown.compiled is not None:
        yield f"Compiled for {scripts.ARCHITECTURE}, on an emulator of its instructions."
    yield f"{shown.run_on}." if shown.run_on else "No GPU." if report.gpu is None else "The script itself was run on no GPU."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


class Checked(NamedTuple):
    """Exit codes of a script and of a test, before the patch and after it. None: there is no patch, or it does not apply."""

    script: tuple[int, int | None]
    test: tuple[int, int | None]

    @property
    def passed(self) -> bool:
        return self == Checked((SHOWS, DOES_NOT_SHOW), (1, 0))


def check(folder: Path) -> Checked:
    """Run the script and the test of a finding's folder on the package's source, and on a copy with the patch."""
    package = foreign.sources(package_of(folder.name))
    [test] = folder.glob("*/**/test_*.py")
    commands = (
        ["show.py"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "stand_ins", "--rootdir=.", "-c", os.devnull, test],
    )
    before = [_run(command, folder, package.parent) for command in commands]
    after: list[int | None] = [None, None]
    with tempfile.TemporaryDirectory() as scratch:
        prefix = LAYOUTS[package.name].prefix
        if (patched := folder / "fix.patch").is_file():
            files = [file.relative_to(package.name) for file in patched_files(patched, prefix)]
            repairs.copied(package, Path(scratch, prefix, package.name), files)
            apply = ["git", "apply", str(patched.absolute())]
            if subprocess.run(apply, cwd=scratch, env=os.environ | {"GIT_DIR": "none"}).returncode == 0:
                after = [_run(command, folder, Path(scratch, prefix)) for command in commands]
    return Checked((before[0], after[0]), (before[1], after[1]))


def patched_files(patched: Path, prefix: str) -> list[Path]:
    """The files of the package that a patch changes, relative to the package's parent."""
    lines = patched.read_text(encoding="utf-8").splitlines()
    return [Path(line.removeprefix(f"+++ b/{prefix}")) for line in lines if line.startswith("+++ ")]


def _run(command: Sequence[str | Path], folder: Path, sources: Path) -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.absolute()), str(sources.absolute())])}
    arguments = [os.path.relpath(each, folder) if isinstance(each, Path) else each for each in command]
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    ).returncode


def check_all(folder: Path) -> Iterator[tuple[str, Checked]]:
    """Check each finding's folder in a folder of `write`, or one of them. If a GPU runs them, the results say so from now on.

    Raises:
        InputError: there is no such folder.
    """
    each = sorted(script.parent for script in (*folder.glob("show.py"), *folder.glob("*/show.py")))
    if not each:
        raise InputError(f"FOLDER: got {folder}, which holds no show.py, expected a folder of `findings folders`")
    for one in each:
        found = check(one.absolute())
        if found.passed and torch.cuda.is_available():
            scripts.ran_on(one.absolute().name, f"{torch.cuda.get_device_name()}, by Triton {triton.__version__}")
        yield one.absolute().name, found

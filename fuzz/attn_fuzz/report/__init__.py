"""A failure and a run for people: a short table, pictures, a case file with a script beside it, and a page about the run."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import msgspec
from attn_fuzz import outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import FENCED, MALFORMED, Verdict
from rich.console import RenderableType

__all__ = ["again", "pasted", "save", "save_draft", "save_script", "script", "summary", "write"]


def summary(case: Case, verdict: Verdict | None) -> RenderableType:
    """A failure in a few lines: `attn_fuzz.report.overview`, which the call imports."""
    from attn_fuzz.report import overview

    return overview.summary(case, verdict)


def script(case: Case, verdict: Verdict) -> str:
    """A script that runs the case: `attn_fuzz.report.standalone`, which the call imports."""
    from attn_fuzz.report import standalone

    return standalone.script(case, verdict)


def save(case: Case, folder: Path, name: str, verdict: Verdict | None = None) -> Path:
    """Write NAME.json, and captured tensors beside it. Return its path.

    Nothing is written over. If another case or another script has the name, the next one is NAME-2. A file that holds this very
    case stays as it is.

    Args:
        verdict: the verdict on the case that `save_script` writes a script for.
    """
    case = _in(folder, case)
    paths = outputs.numbered(folder / f"{name}.json")
    if verdict is not None:
        text = script(case, verdict)
        paths = (path for path in paths if _is_free(path.with_suffix(".py"), text))
    return outputs.keep(paths, case_file.content(case))


def save_draft(case: Case, folder: Path, name: str, before: Path | None) -> Path:
    """`save` over the draft that was saved before, or else into a file that was not there. The caller may delete it."""
    case = _in(folder, case)
    if before is None:
        return next(path for path in outputs.numbered(folder / f"{name}.json") if outputs.create(path, case_file.content(case)))
    case_file.save(before, case)
    return before


def save_script(case: Case, verdict: Verdict, case_path: Path) -> Path:
    """Write the script of a case beside the case, as NAME.py. Return its path."""
    path = case_path.with_suffix(".py")
    outputs.write(path, script(case, verdict))
    return path


def write(case: Case, verdict: Verdict, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json, captured tensors beside it, and the script NAME.py. Return the paths of the case and of the script."""
    case_path = save(case, folder, name, verdict)
    return case_path, save_script(case, verdict, case_path)


def _in(folder: Path, case: Case) -> Case:
    """The case of a file in the folder, which is made: captured tensors lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if case.values.file is None:
        return case
    tensors = Path(case.values.file)
    beside = outputs.keep(outputs.numbered(folder / tensors.name), tensors.read_bytes())
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, file=str(beside)))


def _is_free(path: Path, text: str) -> bool:
    """True if a file can be written without a loss."""
    return not os.path.lexists(path) or outputs.holds(path, text)


def pasted(command: list[str]) -> str:
    """A command of `attn-parity` as a line for a new shell in this folder, where it may not be on PATH."""
    given = Path(sys.argv[0])
    is_named = given.name == "attn-parity" and given.parent != Path() and shutil.which("attn-parity") is None
    return shlex.join([str(given) if is_named else "attn-parity", *command[1:]])


def again(case: Case, path: Path, verdict: Verdict | None) -> list[str]:
    """The command that runs a case file again. It names the target if that is a module: replay imports only named modules."""
    named = ["--target", case.target] if ":" in case.target else []
    exact = verdict is not None and verdict.kind == "exact"
    fenced = verdict is not None and FENCED in verdict.events
    malformed = verdict is not None and any(event.startswith(MALFORMED) for event in verdict.events)
    options = ["--exact"] * exact + ["--fence"] * fenced + ["--malformed"] * malformed
    return ["attn-parity", "replay", str(path), *named, *options]

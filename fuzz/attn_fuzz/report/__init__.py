"""A failure and a run for people: a short table, pictures, a case file with a script beside it, and a page about the run."""

from pathlib import Path

from attn_fuzz import outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.report.overview import summary
from attn_fuzz.report.standalone import script
from attn_fuzz.verdict.verdict import Verdict

__all__ = ["again", "save", "save_script", "script", "summary", "write"]


def save(case: Case, folder: Path, name: str) -> Path:
    """Write NAME.json, and captured tensors beside it. Return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if case.values.file is not None:
        beside = folder / Path(case.values.file).name
        if not (beside.exists() and beside.samefile(case.values.file)):
            outputs.copy(Path(case.values.file), beside)
    case_file.save(path, case)
    return path


def save_script(case: Case, verdict: Verdict, case_path: Path) -> Path:
    """Write the script of a case beside the case, as NAME.py. Return its path."""
    path = case_path.with_suffix(".py")
    outputs.write(path, script(case, verdict))
    return path


def write(case: Case, verdict: Verdict, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json, captured tensors beside it, and the script NAME.py. Return the paths of the case and of the script."""
    case_path = save(case, folder, name)
    return case_path, save_script(case, verdict, case_path)


def again(case: Case, path: Path, verdict: Verdict | None) -> list[str]:
    """The command that runs a case file again. It names the target if that is a module: replay imports only named modules."""
    named = ["--target", case.target] if ":" in case.target else []
    return ["attn-parity", "replay", str(path), *named, *["--exact"] * (verdict is not None and verdict.kind == "exact")]

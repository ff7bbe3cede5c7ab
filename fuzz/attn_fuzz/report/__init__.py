"""A failure and a run for people: a short table, pictures, a case file with a script beside it, and a page about the run."""

import shutil
from pathlib import Path

from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.report.overview import summary
from attn_fuzz.report.standalone import script
from attn_fuzz.verdict.verdict import Verdict

__all__ = ["again", "script", "summary", "write"]


def write(case: Case, verdict: Verdict, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json and NAME.py, and captured tensors beside them; return the first two paths."""
    folder.mkdir(parents=True, exist_ok=True)
    case_path, script_path = folder / f"{name}.json", folder / f"{name}.py"
    case_file.save(case_path, case)
    if case.values.file is not None:
        beside = folder / Path(case.values.file).name
        if not (beside.exists() and beside.samefile(case.values.file)):
            shutil.copyfile(case.values.file, beside)
    script_path.write_text(script(case, verdict), encoding="utf-8")
    return case_path, script_path


def again(case: Case, path: Path) -> list[str]:
    """The command that runs a case file again. It names the target if that is a module: replay imports only named modules."""
    return ["attn-parity", "replay", str(path), *(["--target", case.target] if ":" in case.target else [])]

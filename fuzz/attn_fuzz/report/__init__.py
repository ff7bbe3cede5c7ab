"""A failure and a run for people: a short table, pictures, a case file with a script beside it, and a page about the run."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
from attn_fuzz import outputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.report.overview import summary
from attn_fuzz.report.standalone import script
from attn_fuzz.verdict.verdict import Verdict

__all__ = ["again", "save", "save_script", "script", "summary", "write"]


def save(case: Case, folder: Path, name: str, verdict: Verdict | None = None) -> Path:
    """Write NAME.json, and captured tensors beside it. Return its path.

    Nothing is written over. If another case or another script has the name, the next one is NAME-2. A file that holds this very
    case stays as it is.

    Args:
        verdict: of a case that `save_script` writes a script for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if case.values.file is not None:
        case = _with_tensors_in(folder, case)
    paths = _names(folder, name, ".json")
    if verdict is not None:
        text = script(case, verdict)
        paths = (path for path in paths if _is_free(path.with_suffix(".py"), text))
    return next(path for path in paths if case_file.save_once(path, case))


def save_script(case: Case, verdict: Verdict, case_path: Path) -> Path:
    """Write the script of a case beside the case, as NAME.py. Return its path."""
    path = case_path.with_suffix(".py")
    outputs.write(path, script(case, verdict))
    return path


def write(case: Case, verdict: Verdict, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json, captured tensors beside it, and the script NAME.py. Return the paths of the case and of the script."""
    case_path = save(case, folder, name, verdict)
    return case_path, save_script(case, verdict, case_path)


def _with_tensors_in(folder: Path, case: Case) -> Case:
    tensors = Path(case.values.file or "")
    data = tensors.read_bytes()
    file = next(path for path in _names(folder, tensors.stem, ".safetensors") if outputs.write_once(path, data))
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, file=str(file)))


def _names(folder: Path, name: str, suffix: str) -> Iterator[Path]:
    yield folder / f"{name}{suffix}"
    yield from (folder / f"{name}-{number}{suffix}" for number in itertools.count(2))


def _is_free(path: Path, text: str) -> bool:
    """Whether a file can be written without a loss."""
    return not path.exists() or path.read_text() == text


def again(case: Case, path: Path, verdict: Verdict | None) -> list[str]:
    """The command that runs a case file again. It names the target if that is a module: replay imports only named modules."""
    named = ["--target", case.target] if ":" in case.target else []
    return ["attn-parity", "replay", str(path), *named, *["--exact"] * (verdict is not None and verdict.kind == "exact")]

"""A corpus: a folder of case files. The shipped corpus, beside this module, holds the smallest failing case of each mutant."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from attn_fuzz.cases import case_file, contradictions
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.findings import finding
from attn_fuzz.targets.target import Support

SHIPPED = Path(__file__).parent
MAX_CASES = 10_000


def shipped() -> dict[str, Case]:
    """The cases that come with the fuzzer: the corpus, and the stored cases of known findings."""
    return load(SHIPPED) | load(finding.CASES)


def load(path: Path) -> dict[str, Case]:
    """The cases of a folder's *.json, or of one file, by file name.

    Raises:
        CaseError: the folder has none or more than MAX_CASES, or a file is no case.
    """
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not 0 < len(paths) <= MAX_CASES:
        raise CaseError(f"{path}: got {len(paths)} cases (*.json), expected 1 to {MAX_CASES}")
    return {path.stem: case_file.load(path) for path in paths}


def write(folder: Path, cases: Mapping[str, Case]) -> None:
    """Write each case as NAME.json into the folder; characters of NAME other than letters, digits and _.+- become "-"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in cases.items():
        case_file.save(folder / f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', name)}.json", case)


def admitted(cases: Mapping[str, Case], target: str, support: Support) -> dict[Case, str]:
    """The cases that a target supports, as cases of this target. Each case comes once, with its name.

    A head size that the target does not draw becomes the next larger size that it draws. A GPU's kernels are compiled for a few
    sizes, and the smallest failing case of another target often has a smaller one.
    """
    own: dict[Case, str] = {}
    for name, case in cases.items():
        head_size = min((size for size in support.head_sizes if size >= case.head_size), default=case.head_size)
        case = msgspec.structs.replace(case, target=target, head_size=head_size)
        if support.limit(case) is None and support.beyond(case) is None and _is_valid(case):
            own.setdefault(case, name)
    return own


def _is_valid(case: Case) -> bool:
    try:
        contradictions.check(case)
    except CaseError:
        return False
    return True

"""A corpus: a folder of case files. The shipped corpus, beside this module, holds smallest failing cases of mutants."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.corpus.adapting import adapted
from attn_fuzz.findings import finding
from attn_fuzz.targets.support import Support

SHIPPED = Path(__file__).parent
MAX_CASES = 10_000
MAX_REASONS = 3
"""The most reasons for leaving out cases that are printed."""


def shipped() -> dict[str, Case]:
    """The cases that come with the fuzzer: the corpus, and the stored cases of known findings."""
    return load(SHIPPED) | load(finding.CASES)


def chosen(option: str | None) -> dict[str, Case]:
    """The cases that an option `--corpus` asks for, each with its name for people: those that come with the fuzzer, those of a
    file or folder, or with "none" no cases.

    Raises:
        CaseError: as `load`.
    """
    if option == "none":
        return {}
    cases = shipped() if option is None else load(Path(option))
    return {f"corpus case {name}": case for name, case in cases.items()}


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


class Admitted(NamedTuple):
    """The past cases that a target runs, and the others.

    Attributes:
        cases: each case once, as a case of the target, with its name, and with the target that it was found on if that is
            another one.
        of_others: the number of them that were found on other targets.
        adapted: the number of them with other sizes or forms than in the file.
        left_out: by reason, the names of the cases that the target cannot run.
    """

    cases: dict[Case, str]
    of_others: int
    adapted: int
    left_out: dict[str, list[str]]

    @property
    def sentence(self) -> str:
        """The numbers of cases that are run, of other targets, adapted and left out, and the most frequent reasons.

        It is empty if all are the target's own, and run as they are.
        """
        if not self.of_others and not self.adapted and not self.left_out:
            return ""
        reasons = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        why = "; ".join(f"{len(names)} for {reason}" for reason, names in reasons[:MAX_REASONS])
        out = sum(map(len, self.left_out.values()))
        others = f", {out} left out: {why}{'; ...' * (len(reasons) > MAX_REASONS)}" if out else ""
        own = f"{self.of_others} of them found on other targets, {self.adapted} in sizes and forms of this target"
        return f"past cases: {len(self.cases)} run, {own}{others}"


def admitted(cases: Mapping[str, Case], target: str, support: Support) -> Admitted:
    """The cases that a target supports, as cases of this target, in sizes and forms that it draws (`corpus.adapting`)."""
    own: dict[Case, str] = {}
    of_others, num_adapted, left_out = 0, 0, defaultdict[str, list[str]](list)
    for name, case in cases.items():
        renamed = msgspec.structs.replace(case, target=target)
        fitting, reason = adapted(renamed, support)
        if fitting is None:
            left_out[reason].append(name)
        elif fitting not in own:
            is_other = case.target.partition("@")[0] != target.partition("@")[0]  # they may differ in modes
            own[fitting] = f"{name} (found on another target, {case.target})" if is_other else name
            of_others += is_other
            num_adapted += fitting != renamed
    return Admitted(own, of_others, num_adapted, dict(left_out))

"""`attn-parity bisect`: find the commit since which a case fails, in the repository of a kernel."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import click
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import InputError
from attn_fuzz.run import revision
from attn_fuzz.run.revision import Place, Replay, Result
from attn_fuzz.verdict.verdict import Verdict, VerdictKind, what_failed
from attn_parity.case_files import target_of
from attn_parity.commands.bisect import git
from attn_parity.commands.bisect.git import Bisection, Commit
from attn_parity.console import notes, results
from attn_parity.device import use_device
from attn_parity.files import check_writable, write_json
from attn_parity.options import case_seconds_option, device_option, json_option, record_of

MARKS = {"passes": "good", "fails": "bad", "cannot tell": "skip"}


class Tried(TypedDict):
    """A commit at which the case ran: the result that counts, and the verdict or why there is none."""

    hash: str
    subject: str
    result: Result
    words: str


class Bisect(TypedDict):
    """The result of `attn-parity bisect`. `candidates` are the commits of which one is the first bad one."""

    schema: Literal["attn-parity.bisect/1"]
    case: str
    target: str
    repository: str
    kind: VerdictKind
    message: str
    first_bad: Commit | None
    candidates: list[Commit]
    tried: list[Tried]


class EndError(InputError):
    """The good revision is not good, or the bad one is not bad."""


@dataclass(frozen=True)
class Options:
    file: Path
    target_name: str | None
    good: str
    bad: str
    folder: Path
    folders: tuple[str, ...]
    sanitize: bool
    case_seconds: float
    device: str
    json_file: Path | None


@click.command("bisect")
@click.argument("file", metavar="CASE", type=click.Path(path_type=Path))
@click.option("--target", "target_name", help="The case's target; needed if the case names it as module:attribute.")
@click.option("--good", required=True, metavar="REV", help="A revision at which the case passes, an ancestor of --bad.")
@click.option("--bad", required=True, metavar="REV", help="A revision at which the case fails.")
@click.option(
    "--repo",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default=True,
    help="The repository of the kernel, or a folder of its checkout, which stays as it is.",
)
@click.option(
    "--path",
    "folders",
    multiple=True,
    metavar="FOLDER",
    help="A folder of the repository to import from, such as src; default: its root. May be given more than once.",
)
@click.option("--sanitize/--no-sanitize", default=True, help="Check every address, where the target's kernels are Triton's.")
@case_seconds_option
@device_option
@json_option
@record_of(Options)
def command(options: Options) -> int:
    """Find the first commit at which a case fails as it does at --bad. Exit 1 if commits were skipped that may be it.

    `git bisect` moves a worktree of its own. At each commit the case runs in a fresh process that imports the target from the
    worktree. A commit at which the target does not import, or does not take the case, is skipped.
    """
    check_writable(options.json_file)
    case = case_file.load(options.file)
    name = target_of(case, options.file, options.target_name)
    if name != case.target:
        raise click.UsageError(f"--target: got {name}, expected {case.target}, which {options.file} is a case of")
    repository = git.root(options.folder)
    first, last = git.commit(repository, options.good, "--good"), git.commit(repository, options.bad, "--bad")
    if not git.is_ancestor(repository, first, last):
        raise click.UsageError(f"--good: {options.good} is no ancestor of --bad {options.bad}")
    folders = tuple(_relative(repository, each) for each in options.folders or (".",))
    device = use_device(options.device)
    count = git.between(repository, first, last)
    steps = math.ceil(math.log2(count)) if count > 1 else 0
    results.print(f"bisect {options.file} on {name}: {count} commits, about {steps + 2} runs")
    with git.worktree(repository, last) as path:
        place = Place(checkout=repository, worktree=path, folders=folders)
        search = _Search(case, name, place, device, options.case_seconds, options.sanitize)
        search.check_ends(first, last)
        bisection = Bisection(path, first, last)
        try:
            while bisection.at is not None:
                bisection.mark(MARKS[search.run(bisection.at)])
        except KeyboardInterrupt:
            notes.print("attn-parity: interrupted")
            _tell(bisection)
            return 130
        _tell(bisection)
        if options.json_file is not None:
            write_json(options.json_file, search.to_json(options.file, repository, bisection))
        return 0 if bisection.first_bad is not None else 1


def _relative(repository: Path, folder: str) -> Path:
    if Path(folder).is_absolute() or not (repository / folder).resolve().is_relative_to(repository):
        raise click.UsageError(f"--path: got {folder}, expected a folder of the repository, relative to its root")
    return Path(folder)


def _tell(bisection: Bisection) -> None:
    if bisection.first_bad is not None:
        results.print(f"first bad commit: {bisection.first_bad.words}")
        return
    results.print("the first bad commit is one of these:")
    for each in bisection.candidates:
        results.print(f"  {each.words}")


class _Search:
    """Runs the case at commits, and keeps the results.

    Attributes:
        failure: the verdict at the bad revision. A commit is bad if the case fails in the same way.
    """

    def __init__(self, case: Case, target: str, place: Place, device: str, case_seconds: float, sanitize: bool) -> None:
        self.case, self.target, self.place = case, target, place
        self.device, self.case_seconds, self.sanitize = device, case_seconds, sanitize
        self.tried: list[Tried] = []
        self.failure: Verdict | None = None

    def check_ends(self, good: Commit, bad: Commit) -> None:
        """Run the case at both ends.

        Raises:
            EndError: it does not fail at the bad one, or does not pass at the good one.
        """
        git.move(self.place.worktree, bad)
        found = self._replay(bad)
        if found.result != "fails":
            raise EndError(f"--bad: {bad.words}: expected that the case fails there{self._but(found)}")
        self.failure = found.verdict
        git.move(self.place.worktree, good)
        found = self._replay(good)
        if found.result != "passes":
            raise EndError(f"--good: {good.words}: expected that the case passes there{self._but(found)}")

    def run(self, commit: Commit) -> str:
        """The result at the commit that the worktree is at."""
        return self._replay(commit).result

    def _replay(self, commit: Commit) -> Replay:
        found = revision.replay(self.case, self.target, self.place, self.device, self.case_seconds, self.sanitize)
        is_other = self.failure and found.verdict and what_failed(found.verdict) != what_failed(self.failure)
        if found.result == "fails" and is_other:
            found = Replay(result="cannot tell", words=f"it fails in another way: {found.words}", verdict=found.verdict)
        self.tried.append(Tried(hash=commit.hash, subject=commit.subject, result=found.result, words=found.words))
        results.print(f"{MARKS[found.result]}: {commit.words}: {found.words}")
        return found

    def _but(self, found: Replay) -> str:
        """The result that was found instead, for an error."""
        elsewhere = "" if found.is_of_worktree else "; no imported module lies in the worktree: does --path name its folder?"
        return f", got {found.words}{elsewhere}"

    def to_json(self, file: Path, repository: Path, bisection: Bisection) -> Bisect:
        assert self.failure is not None
        return {
            "schema": "attn-parity.bisect/1",
            "case": str(file),
            "target": self.target,
            "repository": str(repository),
            "kind": self.failure.kind,
            "message": self.failure.message,
            "first_bad": bisection.first_bad,
            "candidates": bisection.candidates,
            "tried": self.tried,
        }

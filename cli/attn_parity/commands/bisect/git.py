"""Git for `attn-parity bisect`: `git bisect` moves a worktree of its own, and the user's checkout stays as it is."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attn_fuzz.errors import InputError
from attn_fuzz.text import one_line

_FIRST_BAD = " is the first bad commit"


@dataclass(frozen=True)
class Commit:
    """A commit: its hash and the first line of its message."""

    hash: str
    subject: str

    @property
    def words(self) -> str:
        return f"{self.hash[:12]} {self.subject}"


class GitError(InputError):
    """A command of git failed."""


def run(folder: Path, *arguments: str, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, without hooks of the repository and without variables that name another repository.

    Raises:
        GitError: git is not installed, or fails and may not.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-C", str(folder), *arguments]
    try:
        ended = subprocess.run(
            command, env={**kept, "LC_ALL": "C"}, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise GitError("git: it is not installed") from None
    if ended.returncode and not may_fail:
        raise GitError(f"git {arguments[0]}: {one_line(ended.stderr or ended.stdout, 300)}")
    return ended


def root(folder: Path) -> Path:
    """The root of the checkout that a folder is in.

    Raises:
        GitError: it is in none.
    """
    if not folder.is_dir():
        raise GitError(f"--repo: {folder} is no folder")
    ended = run(folder, "rev-parse", "--show-toplevel", may_fail=True)
    if ended.returncode:
        raise GitError(f"--repo: {folder} is in no checkout of a git repository")
    return Path(ended.stdout.rstrip("\n")).resolve()


def commit(repository: Path, revision: str, option: str) -> Commit:
    """The commit that a revision names.

    Args:
        option: the option that the revision comes from.

    Raises:
        GitError: it names none.
    """
    ended = run(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", may_fail=True)
    if ended.returncode:
        raise GitError(f"{option}: got {revision!r}, expected a commit of {repository}")
    return _commit(repository, ended.stdout.strip())


def _commit(repository: Path, name: str) -> Commit:
    return Commit(*run(repository, "show", "--no-patch", "--format=%H%n%s", name).stdout.rstrip("\n").split("\n", 1))


def is_ancestor(repository: Path, first: Commit, second: Commit) -> bool:
    """True if the second commit comes after the first one."""
    ended = run(repository, "merge-base", "--is-ancestor", first.hash, second.hash, may_fail=True)
    return first != second and ended.returncode == 0


def between(repository: Path, good: Commit, bad: Commit) -> int:
    """The number of commits that may be the first bad one."""
    return int(run(repository, "rev-list", "--count", f"{good.hash}..{bad.hash}").stdout)


@contextlib.contextmanager
def worktree(repository: Path, start: Commit) -> Iterator[Path]:
    """A worktree of the repository, at a commit. It is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="attn-parity-bisect-") as scratch:
        path = Path(scratch).resolve() / "worktree"
        run(repository, "worktree", "add", "--quiet", "--detach", str(path), start.hash)
        try:
            yield path
        finally:
            run(repository, "worktree", "remove", "--force", str(path), may_fail=True)
            run(repository, "worktree", "prune", may_fail=True)


def move(path: Path, to: Commit) -> None:
    """Move a worktree to a commit."""
    run(path, "checkout", "--quiet", "--force", "--detach", to.hash)
    _clean(path)


def _clean(path: Path) -> None:
    """Delete files that are not in the commit: compiled Python of another commit may look as new as its source."""
    run(path, "clean", "-ffdxq")


class Bisection:
    """A `git bisect` in a worktree, whose references are the worktree's own.

    Attributes:
        at: the commit that the worktree is at, and that is to be marked next; None when nothing is left to mark.
        first_bad: the first bad commit, once it is known.
    """

    def __init__(self, path: Path, good: Commit, bad: Commit) -> None:
        self.path = path
        self.at: Commit | None = None
        self.first_bad: Commit | None = None
        self._read(run(path, "bisect", "start", bad.hash, good.hash))

    def mark(self, word: str) -> None:
        """Mark the commit that the worktree is at as "good", "bad" or "skip", and move on."""
        self._read(run(self.path, "bisect", word, may_fail=True))

    @property
    def candidates(self) -> list[Commit]:
        """The commits of which one is the first bad one, the oldest first."""
        good = run(self.path, "for-each-ref", "--format=%(refname)", "refs/bisect/good-*").stdout.split()
        names = run(self.path, "rev-list", "--reverse", "refs/bisect/bad", "--not", *good).stdout.split()
        return [_commit(self.path, name) for name in names]

    def _read(self, ended: subprocess.CompletedProcess[str]) -> None:
        found = next((line for line in ended.stdout.splitlines() if line.endswith(_FIRST_BAD)), None)
        if found is not None:
            self.at, self.first_bad = None, _commit(self.path, found.removesuffix(_FIRST_BAD))
        elif "only 'skip'ped commits left" in ended.stdout + ended.stderr:
            self.at = None
        elif ended.returncode:
            raise GitError(f"git bisect: {one_line(ended.stderr or ended.stdout, 300)}")
        else:
            self.at = _commit(self.path, "HEAD")
            _clean(self.path)

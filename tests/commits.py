"""What CONTRIBUTING.md asks of commit messages: `python -m tests.commits` names each new commit that lacks something.

New are commits that `origin/main` has not, or `main` where there is no `origin/main`. Without a history, as in a shallow clone
or in a source distribution, nothing is asked.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.nightly import git, has_history

MAX_SUBJECT = 72
_PLACE = re.compile(r"[\w./@-]+(, [\w./@-]+)*: \S")


def lacking(subject: str, body: str, *, is_merge: bool) -> Iterator[str]:
    """What a message lacks. A merge needs no place, and its body says what ran."""
    if len(subject) > MAX_SUBJECT:
        yield f"{len(subject)} characters of its subject, expected at most {MAX_SUBJECT}"
    if not is_merge and not _PLACE.match(subject):
        yield "no place at the beginning of its subject"
    if not body.strip():
        yield "no body that says " + ("what ran" if is_merge else "why")


def new_commits(folder: Path) -> list[str]:
    """The output of `git log` for each new commit: its name, parents, subject and body, with a zero byte between them."""
    refs = ("refs/remotes/origin/main", "refs/heads/main")
    names = git(folder, "for-each-ref", "--format=%(refname)", *refs).split() if has_history(folder) else []
    if not names:
        return []
    main = max(names, key=lambda name: name.startswith("refs/remotes/"))
    log = git(folder, "log", "--format=%h%x00%p%x00%s%x00%b%x01", f"{main}..HEAD")
    return [*filter(None, map(str.strip, log.split("\x01")))]


def main(folder: Path) -> int:
    num_lacking = 0
    for commit in new_commits(folder):
        name, parents, subject, body = commit.split("\0")
        for each in lacking(subject, body, is_merge=" " in parents):
            print(f"{name} {subject}: {each}")
            num_lacking += 1
    return int(num_lacking > 0)


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))

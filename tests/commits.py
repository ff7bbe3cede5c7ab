"""What CONTRIBUTING.md asks of commit messages: `python -m tests.commits main..` names each commit that lacks something."""

import re
import subprocess
import sys
from collections.abc import Iterator

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


def main(arguments: list[str]) -> int:
    log = subprocess.check_output(["git", "log", "--format=%h%x00%p%x00%s%x00%b%x01", *arguments], text=True)
    num_lacking = 0
    for commit in filter(None, map(str.strip, log.split("\x01"))):
        name, parents, subject, body = commit.split("\0")
        for each in lacking(subject, body, is_merge=" " in parents):
            print(f"{name} {subject}: {each}")
            num_lacking += 1
    return int(num_lacking > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

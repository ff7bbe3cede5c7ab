"""Draws lines that use a rule, a layout or a setting, and writes for each a diff that removes it.

    python -m tests.removed_lines SEED COUNT

Docstrings, comments, imports, assertions and annotations are left out, and so are those of targets and
findings of other packages, which no test runs without these packages. A file without the line can be parsed.
"""

import ast
import difflib
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from attn_contract import RULES, Layout
from attn_contract.rules import PLAIN_FIELDS

ROOT = Path(__file__).parents[2]
FOLDERS = ("contract", "reference", "optimized", "fuzz")
OF_OTHERS = ("targets/packages", "findings/")
NAMES = re.compile(rf"\b({'|'.join((*RULES, *PLAIN_FIELDS, *Layout.__members__))})\b")


def lines(path: Path) -> Iterator[int]:
    """The lines of a file that may be drawn, from 0."""
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    words = {
        line
        for node in ast.walk(ast.parse("".join(text)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno - 1, node.end_lineno or 0)
    }
    for number, line in enumerate(text):
        code = line.partition("#")[0].strip()
        if number in words or not NAMES.search(code) or re.match(r"(from|import|def|class|@|assert)\b|\w+: [^=]+,?$", code):
            continue
        try:
            compile("".join(text[:number] + text[number + 1 :]), str(path), "exec")
        except SyntaxError:
            continue
        yield number


def diff(path: Path, number: int) -> str:
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    name = path.relative_to(ROOT).as_posix()
    return "".join(difflib.unified_diff(text, text[:number] + text[number + 1 :], f"a/{name}", f"b/{name}"))


def main(seed: int, count: int) -> None:
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    found = [(path, n) for path in paths if not any(one in path.as_posix() for one in OF_OTHERS) for n in lines(path)]
    print(f"{len(found)} lines of {len({*map(str, (path for path, _ in found))})} files use a rule, a layout or a setting")
    for number, (path, line) in enumerate(random.Random(seed).sample(found, count)):
        Path(__file__).with_name(f"{number:02}.diff").write_text(diff(path, line), encoding="utf-8")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

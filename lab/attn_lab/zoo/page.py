"""The page docs/generated/zoo.md, which is made from the JSON file beside it and the files of the bugs."""

import re
from collections.abc import Sequence

from attn_lab.pages import PAGES, table
from attn_lab.zoo.known_bugs import KnownBug
from attn_lab.zoo.results import REAL_BUG, Results, Row, found_by, summary

PAGE, DATA = PAGES / "zoo.md", PAGES / "zoo.json"
PREFACE = """\
# The zoo: known bugs, and how soon they are found

Each mutant puts a known bug back into a copy of our code in memory: a patch of the kernels, the cache write, the reduction of
split keys, the launch, the metadata or the backends (`lab/attn_lab/zoo/bugs/*.toml`, which say what triggers it, too). The
column `origin` names the issue or pull request with the bug; the mutant makes the same mistake in our code. Mutants named
`seed-` and `backend-` are the five reports that this project began with. No strategy knows of any mutant: all meet the same
random cases.

`python -m attn_lab zoo run --write` ran the mutants on {where}, with Hypothesis {hypothesis}, and wrote zoo.json beside this
page, which holds its numbers. `zoo page` writes the page of it.

- Examples: after how many the fuzzer found the bug, on seed {seeds}, of at most {at_most}.
- Found by: the kind of the verdict ([verdicts.md](../reference/verdicts.md)). The first check that finds something gives it:
  addresses are checked first, numbers after all other memory, and properties last. So other checks may find the same bug
  ([mutants.md](../reference/mutants.md#a-mutant-has-to-run)).

A mutant must compile, import and run. A refusal counts as a finding, and so does any other exception that the mutant's file
announces (`raises = "a part of its message"`), if the mutant runs other cases; every other exception is an error of the mutant.
"""


def text(results: Results, bugs: Sequence[KnownBug]) -> str:
    """A page, whole: what the JSON file beside it says, and the bugs' files, and nothing else."""
    rows = {row.name: row for row in results.mutants}
    residents = sorted((bug for bug in bugs if bug.name in rows), key=lambda bug: bug.kind)
    seeds = ", ".join(map(str, results.seeds))
    preface = PREFACE.format(where=results.device, hypothesis=results.hypothesis, seeds=seeds, at_most=results.at_most)
    lines = [*preface.splitlines(), "", summary([rows[bug.name] for bug in residents], residents) + ".", ""]
    columns = ("class", "bug", "origin", "what went wrong", "examples", "found by")
    firsts = {bug.kind: bug for bug in reversed(residents)}
    cells = ([bug.kind if firsts[bug.kind] is bug else "", *_cells(bug, rows[bug.name])] for bug in residents)
    lines += table(columns, cells, ("examples",))
    return "\n".join(lines) + "\n"


def _cells(bug: KnownBug, row: Row) -> list[str]:
    examples = "" if row.examples is None else f"{row.examples:g}"
    return [f"`{bug.name}`", _linked(bug.origin), bug.what, examples, found_by(row, bug)]


def _linked(origin: str) -> str:
    """The text with a link to its issue, whose owner is in the address alone."""
    return REAL_BUG.sub(_link, origin, count=1)


def _link(found: re.Match[str]) -> str:
    owner, _, issue = found[0].partition("/")
    return f"[{issue}](https://github.com/{owner}/{issue.replace('#', '/issues/')})"

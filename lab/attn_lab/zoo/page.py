"""The page docs/generated/zoo.md, which is made from the JSON files beside it and the files of the bugs."""

from collections.abc import Mapping, Sequence
from typing import Any

from attn_lab.pages import PAGES, table
from attn_lab.zoo import run
from attn_lab.zoo.known_bugs import KnownBug
from attn_lab.zoo.results import REAL_BUG, Results, Row, found_by, summary

PAGE = PAGES / "zoo.md"
PREFACE = """\
# The zoo: known bugs, and how soon they are found

Each mutant puts a known bug back into a copy of our code in memory: a patch of the kernels, the cache write, the reduction of
split keys, the launch, the metadata or the backends (`lab/attn_lab/zoo/bugs/*.toml`, which say what triggers it, too). The
column `origin` names the issue or pull request with the bug; the mutant makes the same mistake in our code. Mutants named
`seed-` and `backend-` are the five reports that this project began with. No strategy knows of any mutant: all meet the same
random cases.

`python -m attn_lab zoo run --seeds {count} --write` ran the mutants on {where}, with Hypothesis {hypothesis}, and wrote the
JSON file beside this page, which holds its numbers. `zoo page` writes the page of it.

- Examples and seconds: how long the fuzzer looked until it found the bug. They are medians over the seeds {seeds}, of at most
  {at_most} examples each. The seconds include the start of a process.
- Found by: the kind of the verdict ([verdicts.md](../reference/verdicts.md)). The first check that finds something gives it:
  addresses are checked first, numbers after all other memory, and properties last. So other checks may find the same bug
  ([mutants.md](../reference/mutants.md#what-each-check-finds)).
- Smallest case: the requests, query rows and keys of the case that the first seed's failure was shrunk to.

A mutant must compile, import and run. A refusal counts as a finding, and so does any other exception that the mutant's file
announces (`raises = "a part of its message"`), if the mutant runs other cases; every other exception is an error of the mutant.
"""
ALSO = """
**On {where}**: the mutants that change the source of a kernel{how}, with Hypothesis {hypothesis}, on seeds {seeds}, of at most
{at_most} examples each (`--target {target} --examples {at_most}`). The column says after how many examples each was found.
"""
_COMPILED = ", each on its own target, whose kernels are compiled and [emulated](../reference/emulator.md)"
Run = tuple[Results, Mapping[str, str]]
"""Results, and by the names of bugs that the run left out, why."""


def of_results(stored: Sequence[Results], bugs: list[KnownBug]) -> str:
    """The page of stored results, of each run with the bugs that its target leaves out."""
    return text([(results, run.on_target(bugs, results.target)[1]) for results in stored], bugs)


def text(runs: Sequence[Run], bugs: Sequence[KnownBug]) -> str:
    """A page, whole: what the JSON files beside it say, and the bugs' files, and nothing else.

    Args:
        runs: the first has most columns; further ones have a column each.
    """
    (first, _), *others = runs
    lines = PREFACE.format(count=len(first.seeds), where=_where(first), **_facts(first)).splitlines()
    rows = [{row.name: row for row in results.mutants} for results, _ in runs]
    residents = [bug for bug in bugs if bug.name in rows[0]]
    lines += ["", summary([rows[0][bug.name] for bug in residents], residents) + "."]
    for results, _ in others:
        how = _COMPILED if results.target.startswith("@") else ""
        lines += ALSO.format(where=_where(results), how=how, target=results.target, **_facts(results)).splitlines()
        lines += ["", summary(results.mutants, bugs) + "."]
    numbers = ("examples", "seconds", *(_where(results) for results, _ in others))
    columns = ("bug", "origin", "what went wrong", *numbers[:2], "found by", "smallest case", *numbers[2:])
    for kind in sorted({bug.kind for bug in residents}):
        lines += ["", f"## {kind.capitalize() if kind != 'int32' else kind}", ""]
        lines += table(columns, (_cells(bug, rows) for bug in residents if bug.kind == kind), numbers)
    for results, left_out in runs:
        if left_out:
            lines += ["", f"## Left out on {_where(results)}", "", *(f"* `{name}`: {why}" for name, why in left_out.items())]
    return "\n".join(lines) + "\n"


def _where(results: Results) -> str:
    target = results.target
    return f"{target.removeprefix('@')}, emulated" if target.startswith("@") else f"`{target}`" if target else results.device


def _facts(results: Results) -> dict[str, Any]:
    seeds = ", ".join(map(str, results.seeds))
    return {"seeds": seeds, "hypothesis": results.hypothesis, "at_most": results.at_most}


def _cells(bug: KnownBug, rows: Sequence[Mapping[str, Row]]) -> list[str]:
    row, *others = (of_run.get(bug.name) for of_run in rows)
    assert row is not None
    numbers = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
    size = ", ".join(map(str, row.size or ()))
    elsewhere = ["" if one is None else found_by(one, bug) if one.examples is None else f"{one.examples:g}" for one in others]
    return [f"`{bug.name}`", _linked(bug.origin), bug.what, *numbers, found_by(row, bug), size, *elsewhere]


def _linked(origin: str) -> str:
    return REAL_BUG.sub(lambda found: f"[{found[0]}](https://github.com/{found[0].replace('#', '/issues/')})", origin, count=1)

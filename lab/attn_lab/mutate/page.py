"""The pages of generated mutants, such as docs/generated/mutants.md: rates, and survivors by class."""

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import msgspec
from attn_lab.finders import PARTS_OF_FUZZER
from attn_lab.mutate.results import BROKEN, EQUIVALENT, NOT_RUN_BY_ANY, UNFINISHED, Results, Row
from attn_lab.pages import PAGES, table

PAGE = PAGES / "mutants.md"
_PARTS = PARTS_OF_FUZZER
FINDERS = {
    "judge": (*_PARTS["value"], *_PARTS["poison"], *_PARTS["stray writes"]),
    **{name: _PARTS[name] for name in ("property", "sanitizer", "exact")},
    "exception": (*_PARTS["exception"], *_PARTS["dead process"]),
    "refusal": _PARTS["no refusal"],
}
"""The kinds of verdicts by what finds a mutant in drawn calls. A user's own kernel gets all of these checks."""
_ON_OUTPUTS = (*FINDERS["judge"], *FINDERS["property"], *FINDERS["sanitizer"], *FINDERS["exact"])


KERNELS_OR_HOST: dict[str, Callable[[Row], bool]] = {
    "kernels and launches": lambda row: row.package in ("kernels", "launch"),
    "other host code": lambda row: row.package not in ("kernels", "launch"),
}


Judge = Callable[[Row], list[bool] | None]
"""Says of each seed if it found a mutant; None if that is not known."""

RATES: dict[str, Judge] = {
    "fuzzer": lambda row: [each is not None for each in row.examples] or None,
    "judge, property and sanitizer": lambda row: [each is not None and row.by in _ON_OUTPUTS for each in row.examples] or None,
    "tests": lambda row: None if row.tests is None else [row.tests],
    "fuzzer and tests": lambda row: (
        None if row.tests is None else [each is not None or row.tests for each in row.examples] or None
    ),
}


def rate(rows: Iterable[Row], judge: str) -> str:
    """The share of its mutants that a judge found, as a mean over the seeds; empty if it judged none."""
    judged = shares(rows, judge)
    return f"{100 * sum(judged) / len(judged):.0f} % of {len(judged)}" if judged else ""


def shares(rows: Iterable[Row], judge: str) -> list[float]:
    """The share of seeds that found a mutant, for each mutant that counts and that a judge judged."""
    return [sum(found) / len(found) for row in rows if row.counts and (found := RATES[judge](row)) is not None]


def summary(rows: Sequence[Row]) -> str:
    """All in one line."""
    reached = [row for row in rows if row.state != NOT_RUN_BY_ANY]
    parts = [f"{judge} {found}" for judge in RATES if (found := rate(rows, judge))]
    if found := rate(reached, "fuzzer"):
        parts.append(f"of those that a target runs fuzzer {found}")
    examples = [count for row in rows for count in row.examples if count is not None]
    if examples:
        parts.append(f"examples until found: median {median(examples):g}, most {max(examples)}")
    left_out = {state: sum(row.state == state for row in rows) for state in (BROKEN, EQUIVALENT, UNFINISHED)}
    parts += [f"{count} {state}" for state, count in left_out.items() if count]
    if always := sum(row.always for row in rows):
        parts.append(f"{always} of the found ones raise in every case")
    return "found: " + "; ".join(parts) if parts else "nothing was run"


PREFACE = """\
# Generated mutants

Operators (`attn_lab.mutate.operators`) make a small change at every place of the optimized side where they apply. Samples of
these mutants, which nobody chose, are run. All modules and operators have their share. [mutants.md](../reference/mutants.md)
says how.

Kernels and launches are what the fuzzer is for: their rate is that of judge, property and sanitizer, which a user's own kernel
gets as well. The rate of the other host code is that of the tests.

A rate counts the mutants that are found. A mutant is in no rate if it does not import or compile, if it is equivalent, or if
the run ended before the mutant had met all of its targets. Mutants without an end are mostly survivors: a mutant that is found
ends at once. A mutant that no target runs is in the rates, and survives. The lists leave out mutants that a test finds.
`equivalent.toml` says of each equivalent mutant why.
`python -m attn_lab mutate page --check` fails if this page is not made of the JSON files beside it, or if an operator does not
make one of their mutants any more.
"""
OF_SAMPLE = """
## {sample} mutants of seed {sample_seed}

`python -m attn_lab mutate run` ran them on {device}, with Hypothesis {hypothesis} and seed {seeds}. Each target that runs the
changed statement drew at most {examples} cases.
"""
UNENDED = """
The run ended before {unended} of the mutants had met all of their targets. If no seed found any of them, the rate would be
{least:.0f} %.
"""
SUITE = """
The column `tests` is of the project's own tests under {versions}. Without a mutant {passed} of them
pass, and {running} of these run a statement of the optimized side in their own process. The others count for nothing: {skipped}
are skipped, {failed} fail, and {others} did not end in time. A mutant meets the tests that run its statement, the cheap ones
first, until one fails that passes alone without the mutant.
"""
UNMET = """
{unmet} of the {count} mutants are in no rate of the tests: time was over before they had met a test, or before they had met all
of theirs, or they make another change by now than the one that the fuzzer met. Those whose tests were cut are mostly survivors,
because a mutant that is found ends at once. If none of the {unmet} were found, the tests' rate would be {least:.0f} %.
"""
GONE = """
{gone} of these mutants are left out: what they changed is not written like this any more. The code around some others has
changed since they ran.
"""


def text(samples: Iterable[Results]) -> str:
    """The whole page.

    Args:
        samples: results as `whole` makes them.
    """
    return "\n".join([*PREFACE.splitlines(), *(line for results in samples for line in _of_sample(results))]) + "\n"


def _of_sample(results: Results) -> list[str]:
    seeds = ", ".join(map(str, results.seeds))
    fields = {name: getattr(results, name) for name in ("sample", "sample_seed", "device", "hypothesis", "examples")}
    rows = results.mutants
    lines = OF_SAMPLE.format(**fields, seeds=seeds).splitlines()
    if gone := results.sample - len(rows):
        lines += GONE.format(gone=gone).splitlines()
    lines += [*_of_unfinished(rows), *_of_suite(results), "", summary(rows) + ".", ""]
    lines += [*_finders(rows), "", *_rates("operator", rows, lambda row: row.operator), ""]
    lines += _rates("package", rows, lambda row: row.package)
    for state in ("", NOT_RUN_BY_ANY, BROKEN, UNFINISHED):
        lines += _survivors(state, [row for row in rows if row.state == state and row.is_listed])
    return lines


def _of_unfinished(rows: Sequence[Row]) -> list[str]:
    unended, judged = sum(row.state == UNFINISHED for row in rows), shares(rows, "fuzzer")
    if not unended or not judged:
        return []
    return UNENDED.format(unended=unended, least=100 * sum(judged) / (len(judged) + unended)).splitlines()


def _of_suite(results: Results) -> list[str]:
    if results.suite is None:
        return []
    facts = msgspec.structs.asdict(results.suite)
    versions = " and ".join(", ".join(f"{name} {number}" for name, number in facts["versions"].items()).rsplit(", ", 1))
    lines = SUITE.format(**{**facts, "versions": versions}).splitlines()
    met = [row.tests for row in results.mutants if row.counts]
    if unmet := met.count(None):
        lines += UNMET.format(unmet=unmet, count=len(met), least=100 * met.count(True) / len(met)).splitlines()
    return lines


def _finders(rows: Sequence[Row]) -> list[str]:
    """A table of the checks that find mutants first, for kernels with their launches and for all other host code."""
    columns = ("code", "mutants", *FINDERS, "tests alone", "nobody")
    cells = []
    for code, is_counted in KERNELS_OR_HOST.items():
        counted = [row for row in rows if row.counts and is_counted(row)]
        by = [sum(row.by in kinds for row in counted) for kinds in FINDERS.values()]
        alone = sum(row.by is None and bool(row.tests) for row in counted)
        cells.append([code, len(counted), *by, alone, len(counted) - sum(by) - alone])
    return table(columns, cells, columns[1:])


def _rates(name: str, rows: Sequence[Row], key: Callable[[Row], str]) -> list[str]:
    judges = [judge for judge in RATES if rate(rows, judge)]
    groups = {group: [row for row in rows if key(row) == group] for group in sorted(set(map(key, rows)))} | {"all": rows}
    cells = ([group, len(members), *(rate(members, judge) for judge in judges)] for group, members in groups.items())
    return table((name, "mutants", *judges), cells, ("mutants", *judges))


def _survivors(state: str, rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    columns, cells = ("mutant", "change", "seeds that found it", "tests", "why"), []
    for row in rows:
        seeds = f"{sum(each is not None for each in row.examples)} of {len(row.examples)}" if row.examples else ""
        tests = {None: "", True: "found", False: "survived"}[row.tests]
        name, why = row.name.removeprefix("attn_optimized."), re.sub(r"^attn_optimized\S*: ", "", row.why)
        cells.append((f"`{name}`", f"`{row.change}`", seeds, tests, why))
    return ["", f"### {(state or 'Survived').capitalize()}", "", *table(columns, cells, columns[2:3])]

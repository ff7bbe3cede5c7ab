"""What became of the mutants: over seeds, by what caught them, in all, and as the page docs/generated/zoo.md."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import hypothesis
import msgspec
from attn_fuzz.run.engine import Progress
from attn_fuzz.zoo.mutants import Mutant, MutantError

replace = msgspec.structs.replace
SCHEMA = "attn-parity.zoo/2"
SURVIVED, NEEDS_GPU = "SURVIVED", "needs a GPU"
JUDGES = {
    "value": ("value", "bitwise", "lse", "rope"),
    "poison": ("nan", "unwritten"),
    "stray writes": ("cache", "guard", "input"),
    "property": ("property",),
    "sanitizer": ("sanitizer",),
    "refusal": ("raised",),
    "dead process": ("crashed", "hung"),
}
"""What can catch a mutant, and which kinds of verdicts are its."""
_REAL = re.compile(r"[\w.-]+/[\w.-]+#\d+")


class Row(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """One mutant.

    Attributes:
        name, origin, kind, what, trigger, target: the mutant's.
        found: after how many examples each seed found it, None where it survived; empty where it was not run.
        examples, seconds: the medians over the seeds, None unless all found it.
        by: the kind of the smallest failing case's verdict.
        minimal: whether nothing in that case can be lowered.
        case: that case.
    """

    name: str
    origin: str
    kind: str
    what: str
    trigger: str
    target: str
    found: tuple[int | None, ...] = ()
    examples: float | None = None
    seconds: float | None = None
    by: str | None = None
    minimal: bool = False
    case: dict[str, Any] | None = None

    @property
    def survived(self) -> bool:
        return None in self.found

    @property
    def size(self) -> tuple[int, int, int] | None:
        """Requests, query rows and keys of the case."""
        if self.case is None:
            return None
        requests = self.case.get("requests", [])
        return len(requests), sum(r["query_len"] for r in requests), sum(r["seq_len"] for r in requests)


class Results(msgspec.Struct, frozen=True, tag_field="schema", tag=SCHEMA):
    """A run of the zoo: where, with which Hypothesis and seeds, of how many examples at most, and each mutant by name."""

    device: str
    hypothesis: str
    seeds: tuple[int, ...]
    at_most: int
    mutants: tuple[Row, ...]


def row(mutant: Mutant, runs: Sequence[Progress]) -> Row:
    """A mutant with what its seeds came to; the case is the first one's that found it. No runs: it needs a GPU."""
    failures = [progress.failure for progress in runs]
    found = [failure for failure in failures if failure is not None]
    described = Row(mutant.name, mutant.origin, mutant.kind, mutant.what, mutant.trigger, mutant.target)
    described = replace(described, found=tuple(failure and failure.found_after for failure in failures))
    if found:
        first = found[0]
        case = msgspec.to_builtins(first.case)
        described = replace(described, by=first.verdict.kind, minimal=first.minimal, case=case)
    if found and len(found) == len(runs):
        examples = median(failure.found_after for failure in found)
        seconds = median(failure.found_seconds for failure in found)
        described = replace(described, examples=examples, seconds=round(seconds, 1))
    return described


def results(device: str, seeds: Sequence[int], at_most: int, rows: Sequence[Row]) -> Results:
    """A run that has just ended."""
    return Results(device, hypothesis.__version__, tuple(seeds), at_most, tuple(rows))


def loads(text: bytes, name: str) -> Results:
    """Read results back.

    Raises:
        MutantError: they are none, or of another schema.
    """
    try:
        return msgspec.json.decode(text, type=Results)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MutantError(f"{name}: {error}") from None


def by(row: Row) -> str:
    """What caught it, or that nothing did."""
    if not row.found:
        return NEEDS_GPU
    if not row.survived:
        return str(row.by)
    return SURVIVED if row.by is None else f"{SURVIVED} {row.found.count(None)} of {len(row.found)}"


def summary(rows: Sequence[Row]) -> str:
    """All in one line: how many were found, of which classes and real bugs, after how many examples, and by what."""
    run = [row for row in rows if row.found]
    caught = [row for row in run if not row.survived]
    origins = {number for row in caught if (number := real_bug(row.origin))}
    judges = Counter(next(judge for judge, kinds in JUDGES.items() if row.by in kinds) for row in caught)
    parts = [
        f"{len(caught)} of {len(run)} found",
        f"classes: {len({row.kind for row in caught})}",
        f"real bugs: {len(origins)}",
    ]
    if caught:
        examples = [row.examples for row in caught if row.examples is not None]
        parts += [f"median {median(examples):g} examples, most {max(examples):g}"]
        parts += ["by " + ", ".join(f"{judge} {judges[judge]}" for judge in JUDGES if judges[judge])]
    return "; ".join(parts)


def differences(results: Results, mutants: Sequence[Mutant]) -> list[str]:
    """What results say that is not so of mutants: one that is missing, too many, or described otherwise."""
    described = {mutant.name: row(mutant, []) for mutant in mutants}
    kept = {row.name: row for row in results.mutants}
    wrong = [f"{name}: a mutant without results" for name in described if name not in kept]
    wrong += [f"{name}: results without a mutant" for name in kept if name not in described]
    fields = ("origin", "kind", "what", "trigger", "target")
    for name in described.keys() & kept.keys():
        changed = [field for field in fields if getattr(described[name], field) != getattr(kept[name], field)]
        wrong += [f"{name}: the mutant has another {field}" for field in changed]
    return sorted(wrong)


def real_bug(origin: str) -> str | None:
    """The owner/repo#number that an origin names, if any."""
    match = _REAL.search(origin)
    return match[0] if match else None


PREFACE = """\
# The zoo: known bugs, and how soon they are found

Written by `attn-parity zoo --seeds {count} --write` on {device}, with Hypothesis {hypothesis}; the numbers are kept in
zoo.json. `attn-parity zoo --check` says whether this page is what they say, and whether they are of the mutants that there are.

Each mutant puts a bug back into a copy of our code in memory: a patch of the kernels, the cache write, the reduction of split
keys, the launch, the metadata or the backends (`fuzz/attn_fuzz/zoo/*.toml`). Its origin is the issue or pull request with the
bug; what is put back is the same mistake, made in our code. Those named `seed-` and `backend-` are the five reports that this
project began with. The strategies know of no mutant: all meet the same cases.

Examples and seconds until a mutant is found are medians over the seeds {seeds}, of at most {at_most} examples each; the seconds
include the start of a process. `by` is the kind of the verdict, as the README lists them. The smallest case, in requests, query
rows and keys, is what the first seed's failure was shrunk to, if it was.
"""


def text(results: Results) -> str:
    """docs/generated/zoo.md, whole: what is in docs/generated/zoo.json and nothing else."""
    preface = PREFACE.format(
        count=len(results.seeds),
        seeds=", ".join(map(str, results.seeds)),
        device=results.device,
        hypothesis=results.hypothesis,
        at_most=results.at_most,
    )
    lines = [*preface.splitlines(), "", summary(results.mutants) + "."]
    for kind in dict.fromkeys(sorted(row.kind for row in results.mutants)):
        lines += ["", f"## {kind.capitalize() if kind != 'int32' else kind}", ""]
        lines += [
            "| mutant | origin | what went wrong | trigger | examples | seconds | by | smallest case |",
            "| --- | --- | --- | --- | --: | --: | --- | --- |",
        ]
        lines += [_line(row) for row in results.mutants if row.kind == kind]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    numbers = ["" if number is None else f"{number:g}" for number in (row.examples, row.seconds)]
    size = ", ".join(map(str, row.size)) if row.size and row.minimal else ""
    cells = (f"`{row.name}`", _linked(row.origin), row.what, row.trigger, *numbers, by(row), size)
    return f"| {' | '.join(cells)} |"


def _linked(origin: str) -> str:
    return _REAL.sub(lambda found: f"[{found[0]}](https://github.com/{found[0].replace('#', '/issues/')})", origin, count=1)

"""Mutants of compiled code: a log of trials, the CSV file that is kept, and their part of docs/generated/mutants.md."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from attn_fuzz import inputs
from attn_lab import csv_file
from attn_lab.miscompile.operators import OPERATORS
from attn_lab.pages import PAGES, table

DATA = PAGES / "miscompiled.csv"
COLUMNS = ("kernel", "mutant", "found by", "change", "source")
REASONS = Path(__file__).with_name("survivors.toml")
"""The survivors that a person has read, by name: `class`, one of CLASSES, and `why`."""
CLASSES = {
    "equivalent": "no input shows it",
    "case": "nothing in the cases depends on it",
    "bound": "it changes results within the judge's bound",
    "hole": "the checks do not see it",
}
TOLD = ("bound", "hole")
"""Classes of survivors that the page tells one by one."""
MAX_WAVE_INSTRUCTIONS, MAX_INSTRUCTIONS = 150_000, 12_000
"""Executed wave instructions of a launch that is kept, and instructions of its kernel: larger ones take too long."""
PREFACE = """\

## Mutants of compiled code

`python -m attn_lab miscompile --write` ran them; [miscompiled.csv](miscompiled.csv) has a line for each, and of survivors what
they change. A mutant is one of {kernels} kernels, compiled with Triton {triton}, with one instruction changed, as a compiler's
bug could do it. {mutants} changes were drawn by seed among the instructions that the kernel's cases execute; kinds of changes
and kernels take turns. Each mutant runs a few small launches on the emulator, in two orders of waves and workgroups, and races
are looked for. If the launch leaves other bits than the kernel does, the fuzzer judges the whole case. A kernel is left out if
it has more than {longest:,} instructions, a launch if it executes more than {largest:,}, and a change that the emulator refuses
before it runs. The fuzzer runs hundreds of cases instead, of many layers. What it finds in them was not measured.

**{share} of the mutants are found**, by: {finders}.
"""


class Row(msgspec.Struct, frozen=True):
    """The result of a mutant: see `attn_lab.miscompile.trials.Trial`."""

    name: str
    by: str
    change: str = ""
    source: str = ""

    @property
    def parts(self) -> list[str]:
        """Architecture, kernel, line, kind and number."""
        return self.name.split(":")

    @property
    def kind(self) -> str:
        return self.parts[3]


class Reason(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """The reason why a mutant survives."""

    kind: str
    why: str

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            raise ValueError(f"class: got {self.kind!r}, expected one of {', '.join(CLASSES)}")


def logged(path: Path) -> list[Row]:
    """The rows of a log of trials, by their names. What no line break follows was not written whole."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = {row.name: row for row in (msgspec.json.decode(line, type=Row) for line in lines)}
    return sorted(rows.values(), key=lambda row: row.name)


def read() -> tuple[str, list[Row]]:
    """The version of Triton, and the rows of the page."""
    versions, records = csv_file.load(DATA, COLUMNS)
    return versions["Triton"], [Row(f"{kernel}:{mutant}", *others) for kernel, mutant, *others in map(dict.values, records)]


def save(rows: Sequence[Row], triton: str) -> None:
    """Write rows, one in each line. What a mutant that is found changes is left out."""
    lines = (
        [":".join(row.parts[:2]), ":".join(row.parts[2:]), row.by] + (["", ""] if row.by else [row.change, row.source])
        for row in rows
    )
    csv_file.save(DATA, COLUMNS, lines, {"Triton": triton})


def read_reasons() -> dict[str, Reason]:
    """
    Raises:
        InputError: a reason has a class that is none of CLASSES.
    """
    return inputs.read_toml_as(REASONS, dict[str, Reason])


def share(rows: Sequence[Row]) -> str:
    found = sum(bool(row.by) for row in rows)
    return f"{found}/{len(rows)}, {found / len(rows):.0%}" if rows else ""


def text(triton: str, rows: Sequence[Row], reasons: Mapping[str, Reason]) -> str:
    """The part of the page, mutants by kinds and then by names."""
    rows = sorted(rows, key=lambda row: (list(OPERATORS).index(row.kind), row.name))
    finders = ", ".join(f"{by} {count}" for by, count in Counter(row.by for row in rows if row.by).most_common())
    kernels = len({tuple(row.parts[:2]) for row in rows})
    facts = {"kernels": kernels, "mutants": len(rows), "share": share(rows), "finders": finders, "triton": triton}
    lines = PREFACE.format(longest=MAX_INSTRUCTIONS, largest=MAX_WAVE_INSTRUCTIONS, **facts).splitlines()
    lines += ["", *_by_kind(rows), ""]
    survivors = [row for row in rows if not row.by]
    known = [(row, reasons[row.name]) for row in survivors if row.name in reasons]
    lines += [_about(survivors, known, len(rows)), ""]
    classes = Counter(reason.kind for _, reason in known)
    counts = [(name, CLASSES[name], classes[name]) for name in CLASSES]
    lines += table(("class", "means", "with a reason"), counts, ("with a reason",))
    told = [(f"`{row.name}`", f"`{row.change}`", row.source, why.kind, why.why) for row, why in known if why.kind in TOLD]
    return "\n".join([*lines, "", *table(("mutant", "change", "of", "class", "why"), told)]) + "\n"


def _about(survivors: Sequence[Row], known: Sequence[tuple[Row, Reason]], mutants: int) -> str:
    if unread := len(survivors) - len(known):
        return f"{len(survivors)} survive. {len(known)} have a reason in survivors.toml; {unread} have not been read."
    visible = mutants - sum(reason.kind == "equivalent" for _, reason in known)
    found = mutants - len(survivors)
    where = "each with a reason in `lab/attn_lab/miscompile/survivors.toml`"
    of_visible = f"{found}/{visible}, {found / visible:.0%}"
    return f"{len(survivors)} survive, {where}. Of the mutants that are not equivalent {of_visible} are found."


def _by_kind(rows: Sequence[Row]) -> list[str]:
    architectures = list(dict.fromkeys(row.parts[0] for row in rows))
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in dict.fromkeys(row.kind for row in rows)}
    shares = (
        [kind, *(share([row for row in some if row.parts[0] == name]) for name in architectures), share(some)]
        for kind, some in {**kinds, "all": rows}.items()
    )
    return table(("kind", *architectures, "all"), shares, (*architectures, "all"))

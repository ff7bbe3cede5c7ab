"""Mutants of compiled code: their part of the page of emulation, made of its JSON and of survivors.toml."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from attn_fuzz import inputs
from attn_lab.written import table

from benchmarks.emulation.operators import OPERATORS

T = TypeVar("T", bound=msgspec.Struct)
REASONS = Path(__file__).with_name("survivors.toml")
"""By the names of survivors that a person has read: `class`, one of CLASSES, and `why`."""
CLASSES = {
    "equivalent": "no input shows it",
    "case": "nothing in the cases depends on it",
    "bound": "it changes results within the judge's bound",
    "hole": "the checks do not see it",
}

TOLD = ("bound", "hole")
"""Classes of survivors that the page tells one by one."""
LARGEST, LONGEST = 150_000, 12_000
"""Executed wave instructions of a launch that is kept, and instructions of its kernel: larger ones take too long."""
PREFACE = """\
## Mutants of compiled code

`python -m benchmarks emulation --write` ran them; emulation.json keeps each, and what survivors change.

A mutant is one of {kernels} kernels, compiled with Triton {triton}, with one instruction changed. {mutants} changes were
drawn by seed among the instructions that the kernel's cases execute; kinds of changes and kernels take turns. Each mutant runs
a few small launches on the emulator, in two orders of waves and workgroups, and races are looked for. If the launch leaves
other bits than the kernel does, the fuzzer judges the whole case. **{share} of the mutants are found.** A kernel is left out
if it has more than {longest:,} instructions, and a launch if it executes more than {largest:,}. A change that the emulator
refuses before it runs is not drawn. The fuzzer runs hundreds of cases instead, of many layers. What it finds in them was not
measured.
"""


class Row(msgspec.Struct, frozen=True):
    """What became of a mutant: see `benchmarks.emulation.trials.Trial`."""

    triton: str
    name: str
    change: str
    source: str
    by: str
    bits: bool

    @property
    def parts(self) -> list[str]:
        """Architecture, kernel, line, kind and number."""
        return self.name.split(":")


class Reason(msgspec.Struct, frozen=True, rename={"kind": "class"}):
    """Why a mutant survives."""

    kind: str
    why: str


def lines_of(rows: Iterable[msgspec.Struct]) -> str:
    """JSON with the fields of a Struct in each line."""
    lines = ",\n".join(msgspec.json.encode(msgspec.structs.astuple(row)).decode() for row in rows)
    return f"[\n{lines}\n]\n"


def of_lines(path: Path, kind: type[T]) -> list[T]:
    """The rows of a file of `lines_of`.

    Raises:
        InputError, msgspec.ValidationError: it is no such file.
    """
    cells = msgspec.convert(inputs.read_json(path), list[list[Any]])
    return msgspec.convert([dict(zip(kind.__struct_fields__, row, strict=True)) for row in cells], list[kind])


def logged(path: Path) -> list[Row]:
    """The rows of a log of trials, by kinds and then by names. What no line break follows was not written whole."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = {row.name: row for row in (msgspec.json.decode(line, type=Row) for line in lines)}
    kinds = list(OPERATORS)
    return sorted(rows.values(), key=lambda row: (kinds.index(row.parts[3]), row.name))


def read(path: Path) -> list[Row]:
    """The rows of a page's JSON."""
    return of_lines(path, Row)


def save(rows: Iterable[Row], path: Path) -> None:
    """Write rows, one in each line. What a mutant that is found changes is left out."""
    path.write_text(lines_of(row if not row.by else msgspec.structs.replace(row, change="", source="") for row in rows))


def read_reasons(path: Path = REASONS) -> dict[str, Reason]:
    return msgspec.convert(inputs.read_toml(path), dict[str, Reason])


def summary(rows: Sequence[Row]) -> str:
    found = sum(bool(row.by) for row in rows)
    return f"{found} of {len(rows)} mutants found" if rows else "no mutants"


def text(rows: Sequence[Row], reasons: Mapping[str, Reason]) -> str:
    """The page, whole.

    Raises:
        ValueError: a reason has a class that is none of CLASSES.
    """
    if wrong := [name for name, reason in reasons.items() if reason.kind not in CLASSES]:
        raise ValueError(f"{wrong[0]}: class {reasons[wrong[0]].kind!r}, and one of {', '.join(CLASSES)} is expected")
    kernels = len({tuple(row.parts[:2]) for row in rows})
    triton = ", ".join(sorted({row.triton for row in rows}))
    preface = PREFACE.format(
        kernels=kernels, mutants=len(rows), share=_share(rows), triton=triton, longest=LONGEST, largest=LARGEST
    )
    lines = [preface]
    lines += [*_by_kind(rows), "", *_by_finder(rows), ""]
    survivors = [row for row in rows if not row.by]
    known = [(row, reasons[row.name]) for row in survivors if row.name in reasons]
    lines += [_about(survivors, known, len(rows)), ""]
    classes = Counter(reason.kind for _, reason in known)
    lines += table(
        ("class", "means", "with a reason"), [(name, CLASSES[name], classes[name]) for name in CLASSES], ("with a reason",)
    )
    told = [(f"`{row.name}`", f"`{row.change}`", row.source, why.kind, why.why) for row, why in known if why.kind in TOLD]
    lines += ["", *table(("mutant", "change", "of", "class", "why"), told)]
    return "\n".join(lines) + "\n"


def _about(survivors: Sequence[Row], known: Sequence[tuple[Row, Reason]], mutants: int) -> str:
    if unread := len(survivors) - len(known):
        return f"{len(survivors)} survive. {len(known)} have a reason in survivors.toml; {unread} have not been read."
    visible = mutants - sum(reason.kind == "equivalent" for _, reason in known)
    found = mutants - len(survivors)
    share = f"{found}/{visible}, {found / visible:.0%}"
    where = "each with a reason in `benchmarks/emulation/survivors.toml`"
    return f"{len(survivors)} survive, {where}. Of the mutants that are not equivalent {share} are found."


def _by_kind(rows: Sequence[Row]) -> list[str]:
    architectures = list(dict.fromkeys(row.parts[0] for row in rows))
    kinds = {kind: [row for row in rows if row.parts[3] == kind] for kind in dict.fromkeys(row.parts[3] for row in rows)}
    shares = (
        [kind, *(_share([row for row in some if row.parts[0] == name]) for name in architectures), _share(some)]
        for kind, some in {**kinds, "all": rows}.items()
    )
    return table(("kind", *architectures, "all"), shares, (*architectures, "all"))


def _by_finder(rows: Sequence[Row]) -> list[str]:
    count = Counter(row.by for row in rows if row.by)
    return table(("by", "mutants"), count.most_common(), ("mutants",))


def _share(rows: Sequence[Row]) -> str:
    found = sum(bool(row.by) for row in rows)
    return f"{found}/{len(rows)}, {found / len(rows):.0%}" if rows else ""

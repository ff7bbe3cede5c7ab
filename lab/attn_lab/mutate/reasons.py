"""Reasons in words for generated mutants: why they change no result (`equivalent.toml`), or are not found (`not-found.toml`).

    [[mutant]]
    name = "attn_optimized.launch.tiles.reduce_tiles:constant:29"
    change = "4 -> 5"
    reason = "a tile of another size: the same sums"

The change is what the operator makes of the code today. A mutant is numbered among those of its function: a line that is added
gives the name to another change, and the reason would then be of that one.

A mutant that changes no result is not run. One that is not found is run, and survives, and its reason is told beside it.
Mutants whose bytecode is that of the module need no entry, because no sample holds them.
"""

from pathlib import Path

import msgspec
from attn_fuzz import inputs
from attn_fuzz.patches.mutant import MutantError
from attn_lab.mutate import generate

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
"""Generated mutants that change no result."""
NOT_FOUND = Path(__file__).with_name("not-found.toml")
"""Generated mutants that the fuzzer is known not to find on a CPU, with the cause."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    change: str
    reason: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mutants: list[_Entry] = msgspec.field(name="mutant", default_factory=list)


def load(path: Path) -> dict[str, str]:
    """The reasons by the names of the mutants.

    Raises:
        InputError: the file cannot be read, an entry has no reason, a mutant has two entries, no operator makes it, or its
            change is another one.
    """
    entries = inputs.read_toml_as(path, _File).mutants
    try:
        reasons = {entry.name: entry.reason for entry in entries}
        if len(reasons) < len(entries):
            raise MutantError("a mutant has two entries")
        if silent := [name for name, reason in reasons.items() if not reason.strip()]:
            raise MutantError(f"{silent[0]}: it has no reason")
        for entry, mutant in zip(entries, generate.by_name([*reasons]), strict=True):
            if mutant.change != entry.change:
                raise MutantError(f"{entry.name}: its change is {mutant.change!r} now, and not {entry.change!r}")
    except MutantError as error:
        raise MutantError(f"{path}: {error}") from None
    return reasons

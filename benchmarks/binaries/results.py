"""What was compiled, as the JSON file that keeps it: schema `attn-parity.binaries/1`."""

from pathlib import Path
from typing import Self

import msgspec
from attn_fuzz.binaries import page

SCHEMA = "attn-parity.binaries/1"
FEW_WORDS = 100
"""Characters of a reason."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A participant's launch in a case, on an architecture.

    Attributes:
        kernel: its name; empty where nothing is launched.
        num_warps, facts: of its binary, see `attn_optimized.compilation.Facts`.
        why: there is no binary, or what keeps it from being launched.
    """

    architecture: str
    case: str
    whose: str
    kernel: str = ""
    num_warps: int = 0
    facts: dict[str, float | None] | None = None
    why: str = ""

    def of(self, num_warps: int, facts: dict[str, float | None]) -> Self:
        """With what was compiled."""
        wanted, there = facts["lds_bytes"] or 0, facts["lds_limit"] or 0
        why = f"{wanted / 1024:.3g} KiB of LDS, of {there / 1024:.3g}" if wanted > there else ""
        return msgspec.structs.replace(self, num_warps=num_warps, facts=facts, why=why)

    def without(self, error: str) -> Self:
        """With the last of the words that a compiler has for what it does not compile."""
        kind, _, rest = error.partition(":")
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        return msgspec.structs.replace(self, why=f"{kind}: {lines[-1]}"[:FEW_WORDS] if lines else kind[:FEW_WORDS])

    @property
    def cells(self) -> tuple[str, ...]:
        """What COLUMNS say of it."""
        if self.facts is None:
            nothing = ("",) * (len(page.COLUMNS) - 2)
            return (self.case, self.whose, ": ".join(filter(None, (self.kernel.removesuffix("_kernel"), self.why))), *nothing)
        _, kernel, *others = page.cells(page.Row(self.architecture, self.case, self.kernel, self.num_warps, self.facts))
        return (self.case, self.whose, ": ".join(filter(None, (kernel, self.why))), *others)


COLUMNS = ("case", "whose", *page.COLUMNS[1:])
NUMBERS = page.COLUMNS[2:]


class Results(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag=SCHEMA):
    """All of it, and the versions of Triton and of the peers that were there."""

    versions: dict[str, str]
    rows: tuple[Row, ...]


def read(path: Path) -> Results:
    """
    Raises:
        ValueError: it is no such file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: {error}") from error

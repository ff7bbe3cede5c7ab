"""All theorems, by family."""

from attn_proofs.theorem import Theorem
from attn_proofs.theorems import (
    addresses,
    beside,
    inside,
    keys,
    mask,
    programs,
    rules,
    select_units,
    selection,
    specialized,
    splits,
    tiles,
    widths,
    writer,
)

FAMILIES = (
    *(mask, rules, tiles, keys, selection, select_units, programs, splits, addresses, beside, inside),
    *(writer, specialized, widths),
)
THEOREMS: tuple[Theorem, ...] = tuple(theorem for family in FAMILIES for theorem in family.THEOREMS)

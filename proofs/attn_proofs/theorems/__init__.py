"""All theorems, by family."""

from attn_proofs.theorem import Theorem
from attn_proofs.theorems import addresses, mask, programs, splits, tiles, writer

THEOREMS: tuple[Theorem, ...] = (*mask.THEOREMS, *tiles.THEOREMS, *programs.THEOREMS, *addresses.THEOREMS, *splits.THEOREMS, *writer.THEOREMS)

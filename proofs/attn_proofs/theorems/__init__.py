"""All theorems, by family."""

from attn_proofs.theorem import Theorem
from attn_proofs.theorems import mask, programs, tiles

THEOREMS: tuple[Theorem, ...] = (*mask.THEOREMS, *tiles.THEOREMS, *programs.THEOREMS)

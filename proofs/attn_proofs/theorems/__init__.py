"""All theorems, by family."""

from attn_proofs.theorem import Theorem
from attn_proofs.theorems import mask

THEOREMS: tuple[Theorem, ...] = (*mask.THEOREMS,)

"""The mistakes that an output can be explained by: `VARIANTS`, one table, the likelier ones of a kind first."""

from attn_fuzz.explain.variants import keys, logits, memory, results, visibility
from attn_fuzz.explain.variants.variant import Variant

VARIANTS: tuple[Variant, ...] = (
    *visibility.VARIANTS,
    *logits.VARIANTS,
    *memory.VARIANTS,
    *keys.VARIANTS,
    *results.VARIANTS,
)

"""The mistakes that an output can be explained by: `MISTAKES`, one table, the likelier ones of a kind first."""

from attn_fuzz.mistakes import keys, logits, memory, results, visibility
from attn_fuzz.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = (
    *visibility.MISTAKES,
    *logits.MISTAKES,
    *memory.MISTAKES,
    *keys.MISTAKES,
    *results.MISTAKES,
)

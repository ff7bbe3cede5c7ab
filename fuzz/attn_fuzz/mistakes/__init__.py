"""The mistakes that a kernel may make: `MISTAKES`, one table, the likelier ones of a kind first."""

from attn_fuzz.mistakes import keys, logits, memory, results, rules, visibility
from attn_fuzz.mistakes.mistake import Mistake

_WRITTEN: tuple[Mistake, ...] = (
    *visibility.MISTAKES,
    *logits.MISTAKES,
    *memory.MISTAKES,
    *keys.MISTAKES,
    *results.MISTAKES,
)
MISTAKES: tuple[Mistake, ...] = (*_WRITTEN, *rules.losses(_WRITTEN))

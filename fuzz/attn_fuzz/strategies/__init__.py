"""Hypothesis strategies: what a case may be. They draw structure and one seed, never elements.

    rules       which rules of masks, logits and storage there are, and how many at once
    layers      heads, sizes, scale, those rules' numbers, layout and dtype of the cache: fixed for a model
    batches     requests, their lengths, causal flags and ranges
    caches      allocation, other views of it, and block tables
    cases       the four together, what the step does to the cache, rows without an owner, and the values

Simple things come first in every choice, so that shrinking ends at them.
"""

from attn_fuzz.strategies.cases import cases, families

__all__ = ["cases", "families"]

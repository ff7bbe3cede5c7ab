"""Hypothesis strategies: what a case may be. They draw structure and one seed, never elements.

    layers      heads, sizes, scale, mask, sinks: fixed for a model
    batches     requests, their lengths and causal flags, rows that belong to nobody
    caches      layout, allocation and block tables
    cases       the three together, and the values

Simple things come first in every choice, so that shrinking ends at them.
"""

from attn_fuzz.strategies.cases import cases

__all__ = ["cases"]

"""Attention over ranks that share the keys of each request (decode context parallelism), for any layout of the cache.

`local_step` says what a rank attends to in a step, and `attend_over_ranks` attends, exchanges and merges.
"""

from attn_optimized.context_parallel.agreement import RanksError
from attn_optimized.context_parallel.attention import Exchange, RankOutput, attend_over_ranks
from attn_optimized.context_parallel.dealing import IMPLEMENTED_RULES, Dealing, LocalStep, local_layer, local_step
from attn_optimized.context_parallel.weights import weighted_part

__all__ = [
    "IMPLEMENTED_RULES",
    "Dealing",
    "Exchange",
    "LocalStep",
    "RankOutput",
    "RanksError",
    "attend_over_ranks",
    "local_layer",
    "local_step",
    "weighted_part",
]

"""The steps of prompts, and of chunks of prompts, in which the warp specialized kernel is the faster one.

Both kernels were timed in 1,061 drawn steps of 128 and 256 dims over pages of 64 and 128 rows (H200, Triton 3.6). The limits
are from half of the steps; docs/guide/speed.md has the figures of all.
"""

from typing import NamedTuple

from attn_optimized.launch.workload import Workload

PROMPT_QUERIES = 128
"""The queries of a tile of the warp specialized kernel, which has one head."""
_MIN_WAVES = 0.5
"""The fewest queries and heads, as a share of those that give each multiprocessor a full tile; it holds one program."""
_MAX_KEYS = 16
"""The most keys of a request, as a multiple of its queries and of the waves of full tiles. A tile's keys are not split, and a
program over more keys than the others share ends last."""


class PromptTiles(NamedTuple):
    """The tiles of a head size.

    Attributes:
        block_n: the keys of a tile. Pages hold whole tiles.
        most_empty_rows: the rows of tiles of requests that decode, at most, as a multiple of the step's tokens. Such a request
            takes a whole tile of each head.
        least_keys: the keys of a request, at least, as a multiple of its queries.
    """

    block_n: int
    most_empty_rows: float
    least_keys: float


PROMPT_TILES = {128: PromptTiles(128, 0.1, 1.5), 256: PromptTiles(64, 1, 1)}
"""By head size. Prompts of 128 dims are as fast in the attention kernel, unless they follow a context."""


def has_full_tiles(workload: Workload, architecture: str, compute_units: int) -> bool:
    """True for prompts and chunks of prompts that fill a GPU, among which a few requests may decode.

    The host knows neither how many requests decode, nor over how many keys. It assumes as many as there is room for if the
    other requests have as many queries as the longest one.
    """
    tiles = PROMPT_TILES.get(workload.head_size)
    if tiles is None or workload.batch_invariant or architecture != "sm90" or workload.max_query_len < PROMPT_QUERIES:
        return False
    tokens, queries, keys = workload.num_tokens, workload.max_query_len, workload.max_seq_len
    waves = tokens * workload.num_heads / (PROMPT_QUERIES * compute_units)
    most_decodes = workload.num_requests - -(-tokens // queries)
    return (
        waves >= _MIN_WAVES
        and PROMPT_QUERIES * most_decodes <= tiles.most_empty_rows * tokens
        and tiles.least_keys * queries <= keys <= _MAX_KEYS * queries * waves
    )

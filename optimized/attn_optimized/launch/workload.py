"""The properties of a call of attention that the host knows, and the bounds that follow from them."""

from dataclasses import dataclass
from typing import Self

import torch
from attn_contract import Batch, Layer

from attn_optimized.launch.rules import has_bias, has_other_masks, most_keys
from attn_optimized.launch.table import LatentPhase, Phase

MIN_DOT = 16
"""The shortest side of a tl.dot."""
DECODE_TILE_ROWS = 64
"""The most rows (pairs of query and head of a group) of a request that decodes or speculates."""
MAX_GROUP = 64
"""The most query heads of a group: the largest tile of gfx1100's table has 64 rows. A group of a latent cache is as large as a
tile, which has at most 128 rows in the tables.

The kernel divides a row by its group by a multiplication with 16 bits. That is right for groups of up to 256 heads.
"""
SHORT_ROWS_PER_UNIT = 800
"""A batch with fewer rows than this for each compute unit is short. On an H200, small tiles are 1.25 times as fast as large
ones with 560 rows, and no faster with 1000."""
MAX_SPECULATED = 16
"""The most tokens of a request with drafts: see MAX_GROUPS."""
MAX_GROUPS = 8
"""The most groups of the query heads of a request of at most MAX_SPECULATED tokens that has one tile of DECODE_TILE_ROWS rows
for each group. The request's keys are then split by its length, as those of a decode. All groups read the same keys, from the
device's cache. On an H200, 17 drawn speculations of 65 to 576 rows are 1.12 times as fast."""
MAX_GROUPED_DIMS = 128
"""The widest heads that MAX_GROUPS is for. Tiles of wider heads hold fewer keys: two drawn speculations of 192 dims were 0.71
and 0.84 times as fast (H200)."""
FEW_LATENT_ROWS = 16
"""The most rows (pairs of query and head) of a request over a latent cache whose tile has few rows."""
SHORT_WINDOW_KEYS = 256
"""The most keys of a short window: a tile of queries that sees no more keys ends soon after its start."""
MIN_REQUESTS_OF_MIXED_BATCH = 8
MIXED_LENGTH_RATIO = 4
"""A batch is mixed if it has MIN_REQUESTS_OF_MIXED_BATCH requests, and its longest query exceeds this multiple of the
average."""
ROUNDED_KEYS = 64
"""Lengths are rounded up to a multiple of this, so that not every step of a decode is planned anew."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The input of a plan beside the GPU: sizes, and upper bounds of lengths. The names are those of Layer and Batch.

    Args:
        itemsize: the bytes of a number of q in dots.
        quantized: True if the cache's elements have one byte.
        is_latent: True if V is the first dims of K.
        is_paged: True if K and V are blocks of a cache.
        is_x_packed: True if the dims of a row are not adjacent in a page of the cache.
        has_scaled_rows: True if rows of a latent cache hold the scales of their dims.
        num_tokens, num_requests: the batch's numbers of tokens and requests, with padding.
        max_seq_len: an upper bound of the keys of a request, possibly loose, rounded up to ROUNDED_KEYS.
        window_keys: the most keys that one query sees through its window, in its chunk or by its selection; None: there is no
            such bound.
        has_selection: True if each query selects its own keys: a tile then has one query.
        has_other_masks: True if a rule besides causality and the window may change which keys a query sees.
        has_bias: True if something is added to logits.
        has_slopes: True if something is added in every call of the layer: ALiBi.
        loads_bias: True if the addend is loaded: qq_bias.
        batch_invariant: True if a request's output must not depend on the rest of the batch.
    """

    itemsize: int
    quantized: bool
    head_size: int
    num_heads: int
    num_kv_heads: int
    num_tokens: int
    num_requests: int
    max_query_len: int
    max_seq_len: int
    head_size_v: int | None = None
    is_latent: bool = False
    is_paged: bool = True
    is_x_packed: bool = False
    has_scaled_rows: bool = False
    window_keys: int | None = None
    has_selection: bool = False
    has_other_masks: bool = False
    has_bias: bool = False
    has_slopes: bool = False
    loads_bias: bool = False
    batch_invariant: bool = False

    @classmethod
    def of(cls, q: torch.Tensor, layer: Layer, batch: Batch, *, batch_invariant: bool = False) -> Self:
        return cls(
            itemsize=itemsize_of_dots(q),
            quantized=layer.kv_cache_dtype is not None,
            head_size=layer.head_size,
            head_size_v=layer.head_size_v,
            is_latent=layer.layout is not None and layer.layout.has_latent_value,
            is_paged=layer.layout is not None,
            is_x_packed=layer.layout is not None and layer.layout.is_x_packed,
            has_scaled_rows=layer.layout is not None and layer.layout.latent_format is not None,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            num_tokens=batch.num_actual_tokens,
            num_requests=batch.num_requests,
            max_query_len=batch.max_query_len,
            max_seq_len=rounded(layer.num_keys(batch.max_seq_len)),
            window_keys=most_keys(layer, batch),
            has_selection=layer.selection_unit is not None,
            has_other_masks=has_other_masks(layer, batch),
            has_bias=has_bias(layer, batch),
            has_slopes=layer.alibi_slopes is not None,
            loads_bias=batch.qq_bias is not None,
            batch_invariant=batch_invariant,
        )

    @property
    def v_head_size(self) -> int:
        """The width of V."""
        return self.head_size_v or self.head_size

    @property
    def heads_per_kv_head(self) -> int:
        """The number of query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def most_queries(self) -> int:
        """The most queries of a request that a tile can have."""
        return min(self.max_query_len, 1) if self.has_selection else self.max_query_len

    @property
    def most_heads(self) -> int:
        """The most query heads of a group of a cache that is not latent."""
        is_narrow = max(self.head_size, self.v_head_size) <= MAX_GROUPED_DIMS
        if self.batch_invariant or not is_narrow or not 0 < self.most_queries <= MAX_SPECULATED:
            return MAX_GROUP
        fitting = DECODE_TILE_ROWS // self.most_queries
        return fitting if fitting * MAX_GROUPS >= self.heads_per_kv_head else MAX_GROUP

    @property
    def rows(self) -> int:
        """The most rows (pairs of query and head of a group) of a request that a tile can have."""
        return self.most_queries * group_of(self.heads_per_kv_head, self.most_heads)

    @property
    def has_few_rows(self) -> bool:
        """True if each request decodes or has drafts; False for a batch-invariant call, whose phase does not depend on rows."""
        return not self.batch_invariant and self.rows <= DECODE_TILE_ROWS

    @property
    def has_short_window(self) -> bool:
        """True if queries see few keys even in long sequences."""
        return self.window_keys is not None and self.window_keys <= SHORT_WINDOW_KEYS


def phase_of(workload: Workload, compute_units: int) -> Phase | LatentPhase:
    """The phase of most of a batch, by which its tiles are chosen; see `table.Entry`. One phase for all calls of a layer if
    batch_invariant."""
    if workload.is_latent:
        has_few_rows = workload.most_queries * workload.num_heads <= FEW_LATENT_ROWS
        if has_few_rows and not workload.batch_invariant:
            return "latent_scaled_decode" if workload.has_scaled_rows else "latent_decode"
        return "latent_scaled" if workload.has_scaled_rows else "latent"
    if workload.batch_invariant:
        return "rules" if workload.has_slopes else "prefill"
    if workload.has_few_rows:
        return "decode" if workload.rows <= MIN_DOT else "wide_decode"
    has_many_requests = workload.num_requests >= MIN_REQUESTS_OF_MIXED_BATCH
    if has_many_requests and workload.num_tokens * MIXED_LENGTH_RATIO < workload.max_query_len * workload.num_requests:
        return "mixed"
    if workload.has_other_masks or workload.has_bias:
        return "rules"
    if workload.has_short_window:
        return "window"
    is_short = workload.num_tokens * workload.num_heads < SHORT_ROWS_PER_UNIT * compute_units
    return "short" if is_short else "prefill"


def itemsize_of_dots(q: torch.Tensor) -> int:
    """The bytes of a number of q in dots: float8 becomes float16 when it is loaded."""
    return max(q.element_size(), torch.float16.itemsize)


def group_of(heads: int, most: int) -> int:
    """The size of equal groups, of at most `most` heads, of which the fewest hold all heads. The last may have fewer heads."""
    return -(-heads // -(-heads // most))


def rounded(max_seq_len: int) -> int:
    """The next multiple of ROUNDED_KEYS."""
    return -(-max_seq_len // ROUNDED_KEYS) * ROUNDED_KEYS

"""Choosing keys: the terms of the layer that selects what sparse attention attends to.

A model that attends to few of its keys scores all of them first, with a small layer of its own: the indexer (DeepSeek-V3.2,
arXiv:2512.02556). `write_index_cache` stores index keys, `index_logits` scores units of tokens, and `select` names the best
ones, which are `Batch.selected` of the attention layer after it. `attn_reference.indexer` defines what the three compute.
Models differ in the terms of `Indexer`:

    model                        selection_unit  key_unit  score     top_k  first, last units
    DeepSeek-V3.2, GLM-5         1               1         SUM_RELU  2048   0, 0
    GLM-5.3-Flash's pools        4               4         SUM_RELU   512   0, 0
    Qwen4's groups               4               4         SUM_RELU   512   0, 0   all weights are 1 / sqrt(head_size)
    Step5's regions              8               8         SUM_RELU   512   0, 0   one selection for each group of index heads
    DeepSeek-V4's entries        4               4         SUM_RELU   512   0, 0
    MiniMax-M3's blocks          128             1         MAX         16   by config; one selection for each index head

Norms, rotations, pooling and Hadamard transforms of q and k come before and are no terms here. Nor is the factor by which q was
quantized, which engines fold into the weights. Where attention, too, has one key for the tokens of a unit
(DeepSeek-V4's entries of 4 tokens), `Layer.key_unit` says so, and its selection_unit counts these keys: 1.

Left out are keys in mxfp4, and candidates that a layer passes on to later ones (V4.1). Ranks that share the keys of a request
merge what they select; the merged selection is judged as any other.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch

from attn_contract.arguments import check_dense_last, check_int, check_tensor, check_type, named, shown
from attn_contract.errors import ContractError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES
from attn_contract.layouts import BYTES_OF_SCALE

TILE = 16
"""The number of keys of a tile of TILED, and the number of bytes of each key in it."""
MIN_MAGNITUDE = 1e-4
"""The least magnitude from which a scale is made: engines take `max(largest magnitude of the row, 1e-4)`."""


class IndexScore(StrEnum):
    """The function from a key's products with the index queries of one selection to the key's logit."""

    SUM_RELU = "sum_relu"
    """`sum_h weights[h] * max(q_h . k, 0)`: the lightning indexer (arXiv:2512.02556, equation 1). Weights may be negative."""
    MAX = "max"
    """`max_h q_h . k`. There are no weights (MiniMax-M3)."""


class IndexLayout(StrEnum):
    """The places of numbers in an index cache. The shapes of FLAT and TILED do not show them.

    The members say where element d of the key in slot s of block b lies, from the first element of the cache, with blocks of
    BS slots and D = head_size:
    """

    PLAIN = "PLAIN"
    """[NB, BS, D] of a float dtype or float8, without scales, of any strides but for dense rows."""
    FLAT = "FLAT"
    """[NB, BS, D + 4] bytes. Byte `b*page + s*D + d`; the scale is a float32 at byte `b*page + BS*D + 4*s` (DeepGEMM)."""
    TILED = "TILED"
    """[NB, BS, D + 4] bytes. Byte `b*page + (s//16)*16*D + (d//16)*256 + (s%16)*16 + d%16`, and scales as in FLAT: tiles of
    16 keys and 16 bytes of each, which a matrix instruction of AMD's reads at once (vLLM's SHUFFLE, AITER's preshuffle)."""

    @property
    def has_scales(self) -> bool:
        """True if each key has a float32 scale, after the keys of its block."""
        return self is not IndexLayout.PLAIN


class ScaleFormat(StrEnum):
    """The numbers that a scale may be. Both are stored as float32."""

    FLOAT32 = "float32"
    """Any positive number."""
    UE8M0 = "ue8m0"
    """The next power of two that is not smaller (vLLM's and SGLang's `scale_fmt`)."""


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """The index layer of a model.

    Args:
        num_heads: Hi, the number of index queries of a token.
        head_size: D, the width of index queries and keys.
        top_k: the number of units that a query selects; all units with a logit if these are not more.
        num_selections: HS, the number of groups of neighbouring heads, each with a selection of its own: 1, or one per KV head.
        selection_unit: the number of tokens of a unit, as in `Layer`.
        key_unit: the number of tokens that share an index key: 1 or selection_unit. A shared key exists once all its tokens do.
        score: the way in which a key's logit is made of products.
        first_units, last_units: the numbers of first and last units, among those with a logit, that are always selected. They
            count among the top_k.
        layout: the layout of the index cache.
        cache_dtype: torch.float8_e4m3fn or torch.float8_e4m3fnuz; FLAT and TILED have one. None: PLAIN keys of k's dtype.
        scale_format: the format of scales that are written. Only FLAT and TILED have scales.
        largest: the magnitude as which a row's largest number is stored: 0 < largest. None: the largest of cache_dtype. vLLM
            takes 224 for float8_e4m3fnuz, whose largest number is 240.

    Raises:
        ContractError: a field has another type, is out of range or contradicts another one.
    """

    num_heads: int
    head_size: int
    top_k: int
    num_selections: int = 1
    selection_unit: int = 1
    key_unit: int = 1
    score: IndexScore = IndexScore.SUM_RELU
    first_units: int = 0
    last_units: int = 0
    layout: IndexLayout = IndexLayout.PLAIN
    cache_dtype: torch.dtype | None = None
    scale_format: ScaleFormat = ScaleFormat.FLOAT32
    largest: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_size", "top_k", "num_selections", "selection_unit", "key_unit"):
            check_int(name, getattr(self, name), minimum=1)
        for name in ("first_units", "last_units"):
            check_int(name, getattr(self, name), minimum=0)
        for name, kind in (("score", IndexScore), ("layout", IndexLayout), ("scale_format", ScaleFormat)):
            check_type(name, getattr(self, name), kind, f"one of {kind.__name__}: {', '.join(kind)}")
        if self.cache_dtype is not None and self.cache_dtype not in FLOAT8_DTYPES:
            expected = f"None, {' or '.join(map(named, FLOAT8_DTYPES))}"
            raise ContractError("cache_dtype", named(shown(self.cache_dtype)), expected)
        scaled, most = self.layout.has_scales, self.top_k - self.first_units
        groups = f"a multiple of num_selections ({self.num_selections}), so that heads form groups"
        key_units = f"1, or selection_unit ({self.selection_unit}): a key of a token, or of a whole unit"
        without = f"keys in {self.layout} have no scale"
        for name, is_wrong, expected in (
            ("num_heads", self.num_heads % self.num_selections, groups),
            ("key_unit", self.key_unit not in (1, self.selection_unit), key_units),
            ("last_units", self.last_units > most, f"at most {most}: top_k ({self.top_k}) without first_units"),
            ("cache_dtype", scaled and self.cache_dtype is None, f"a float8 dtype: keys in {self.layout} have scales"),
            ("scale_format", self.scale_format is not ScaleFormat.FLOAT32 and not scaled, f"float32: {without}"),
            ("head_size", self.layout is IndexLayout.TILED and self.head_size % TILE, f"a multiple of {TILE} in {self.layout}"),
            ("largest", self.largest is not None and not scaled, f"None: {without}"),
        ):
            if is_wrong:
                raise ContractError(name, getattr(self, name), expected)
        if self.largest is not None and self.cache_dtype is not None:
            most = torch.finfo(self.cache_dtype).max
            if not isinstance(self.largest, int | float) or not 0 < self.largest <= most:
                raise ContractError("largest", shown(self.largest), f"None, or a number above 0 and at most {most:g}")

    @property
    def has_open_unit(self) -> bool:
        """True if the tokens of a unit share a key. The unit that a query stands in may then have no key yet."""
        return self.key_unit > 1

    @property
    def selected_width(self) -> int:
        """The number of entries in a row of `select`'s result."""
        return self.top_k + self.has_open_unit

    @property
    def row_size(self) -> int:
        """The number of elements of a slot in the shape of the cache."""
        return self.head_size + BYTES_OF_SCALE * self.layout.has_scales

    def num_units(self, max_seq_len: int) -> int:
        """The number of columns of logits for requests of at most `max_seq_len` keys."""
        return -(-max_seq_len // self.selection_unit)

    def view_of(self, index_cache: torch.Tensor) -> "IndexCacheView":
        """The addresses of a cache's elements.

        Raises:
            ContractError: the cache has another shape or dtype, or strides that its layout cannot have.
        """
        check_tensor("index_cache", index_cache)
        shape, strides, row = tuple(index_cache.shape), tuple(index_cache.stride()), self.row_size
        if len(shape) != 3 or shape[2] != row or not shape[1]:
            expected = f"shape (NB, BS, {row}), BS at least 1" + (": keys and a float32 each" * self.layout.has_scales)
            raise ContractError("index_cache", f"shape {shape}", expected)
        dtypes = (torch.uint8,) if self.layout.has_scales else (self.cache_dtype,) if self.cache_dtype else FLOAT_DTYPES
        if index_cache.dtype not in dtypes:
            raise ContractError("index_cache", index_cache.dtype, f"{' or '.join(map(named, dtypes))} in {self.layout}")
        check_dense_last("index_cache", index_cache)
        if self.layout.has_scales:
            self._check_pages(shape, strides, int(index_cache.storage_offset()))
        return IndexCacheView(self.layout, *shape[:2], self.head_size, *strides[:2])

    def _check_pages(self, shape: tuple[int, ...], strides: tuple[int, ...], first: int) -> None:
        blocks, block_size, row = shape
        if block_size > 1 and strides[1] != row:
            raise ContractError("index_cache", f"stride {strides[1]} of slots", f"{row}: pages of {self.layout} are dense")
        if blocks > 1 and strides[0] < block_size * row:
            raise ContractError("index_cache", f"stride {strides[0]} of blocks", f"at least {block_size * row}: a page each")
        if any(offset % BYTES_OF_SCALE for offset in (first, strides[0] * (blocks > 1), block_size * self.head_size)):
            raise ContractError("index_cache", f"pages at {first}, strides {strides}", "float32 scales at multiples of 4 bytes")
        if self.layout is IndexLayout.TILED and block_size % TILE:
            raise ContractError("index_cache", f"{block_size} slots in a block", f"a multiple of {TILE} in {self.layout}")


@dataclass(frozen=True)
class IndexCacheView:
    """The places of an index cache's elements, from the cache's first element on. The arguments are sizes and strides."""

    layout: IndexLayout
    num_blocks: int
    block_size: int
    head_size: int
    block_stride: int
    slot_stride: int

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size

    def element(self, block: torch.Tensor, slot: torch.Tensor, dim: torch.Tensor) -> torch.Tensor:
        """The index of an element; the arguments are int64, and broadcast."""
        page = block * self.block_stride
        if self.layout is IndexLayout.PLAIN:
            return page + slot * self.slot_stride + dim
        if self.layout is IndexLayout.FLAT:
            return page + slot * self.head_size + dim
        tile = slot // TILE * TILE * self.head_size + dim // TILE * TILE * TILE
        return page + tile + slot % TILE * TILE + dim % TILE

    def scale(self, block: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """The index of the first byte of a key's scale."""
        return block * self.block_stride + self.block_size * self.head_size + slot * BYTES_OF_SCALE

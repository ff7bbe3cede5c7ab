"""The layouts of a KV cache by name: the order of a view's dimensions, and the sizes that each layout requires."""

from enum import StrEnum

import torch

from attn_contract.errors import ContractError
from attn_contract.latent_format import LatentFormat

K, V = 0, 1
"""Indices of keys and values in the dimension `kv`."""
BYTES_OF_SCALE = 4
"""The bytes of a float32 scale in a row of CONTENT_PACKED_SCALED."""


class Layout(StrEnum):
    """The order of the dimensions of one layer's view of a KV cache.

    NB blocks of BS slots, HK KV heads of size D, x elements in 16 bytes. `attn_contract.kv_cache_view` has the formulas.
    """

    BLOCKS_FIRST_NHD = "BLOCKS_FIRST_NHD"
    """[NB, 2, BS, HK, D]: AITER's unified attention, vLLM's Triton attention (vLLM #43660)."""
    BLOCKS_FIRST_HND = "BLOCKS_FIRST_HND"
    """[NB, 2, HK, BS, D]"""
    KV_FIRST_NHD = "KV_FIRST_NHD"
    """[2, NB, BS, HK, D]: FlashAttention's; a K plane, then a V plane."""
    KV_FIRST_HND = "KV_FIRST_HND"
    """[2, NB, HK, BS, D]"""
    X_PACKED = "X_PACKED"
    """[2, NB, page] with page = HK*D*BS: each page of K is a dense [HK, D/x, BS, x], each of V a dense [HK, D, BS]. vLLM's
    ROCM_ATTN, AITER's paged_attention_rocm."""
    SHUFFLED = "SHUFFLED"
    """[2, NB, page]: K as in X_PACKED, each page of V a dense [HK, BS/x, D, x]. AITER's assembly paged attention."""
    CONTENT_PACKED = "CONTENT_PACKED"
    """[NB, HK, BS, D + Dv]: K, then V, in each row. One layer of vLLM 0.33's [L, B, H, N, C], whose six physical orders are six
    sets of strides: see PhysicalOrder. No other layout stores V apart that is of another width than K: Dv is a layer's
    head_size_v, and D without one (MiMo-V2 has 192 and 128)."""
    CONTENT_PACKED_SCALED = "CONTENT_PACKED_SCALED"
    """[NB, HK, BS, 2*(D + 4)] of one-byte elements: K, its float32 scale, V and its scale in each row."""
    LATENT = "LATENT"
    """[NB, BS, D]: the latent vectors of MLA (DeepSeek-V2, arXiv:2405.04434), one KV head. A row is K, and the row's first
    `head_size_v` elements are V: no element is stored for V alone."""
    LATENT_SCALED = "LATENT_SCALED"
    """[NB, BS, row] of one-byte elements: a latent vector in float8, its scales, one float32 for each 128 dims, and the rotated
    dims of K in bfloat16. With 512 and 64 dims a row has 512 + 4*4 + 64*2 = 656 bytes: DeepSeek-V3.2's cache (vLLM's
    `fp8_ds_mla`). q is bfloat16."""
    LATENT_E8M0 = "LATENT_E8M0"
    """[NB, BS, row] of one-byte elements: a vector in float8, and its scales, one ue8m0 byte for each 32 dims. All dims are K,
    and all are V: head_size_v is head_size, a multiple of 32, and no dim is kept in another type. With 512 dims a row has
    512 + 16 = 528 bytes: DeepSeek-V4.1's cache. q is bfloat16, which holds what a float8 times a power of two is."""
    LATENT_E8M0_PLANES = "LATENT_E8M0_PLANES"
    """[NB, page] of one-byte elements: in each page the data of all slots, and then the scales of all slots. The data of a slot
    is all dims but the last 64 in float8, and those 64 in bfloat16. Its scales are one ue8m0 byte for each 64 dims in float8,
    and a byte of padding, which is written as 0. All dims are K, and all are V: head_size_v is head_size, a multiple of 64 from
    128 on. Pages are padded, so the next page begins a multiple of a slot's data after it. With 512 dims a slot has 448 + 64*2
    bytes of data and 7 + 1 of scales: the 584 bytes a token of DeepSeek-V4's cache (vLLM's, whose pages are multiples of 576
    bytes). q is bfloat16."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the view's dimensions, outermost first."""
        return _DIMS[self]

    @property
    def is_x_packed(self) -> bool:
        """True if pages are dense and packed in units of x elements, so that the view has no dimension for slots or heads."""
        return self in (Layout.X_PACKED, Layout.SHUFFLED)

    @property
    def has_dense_pages(self) -> bool:
        """True if the view has no dimension for slots: places in a page do not depend on a stride."""
        return "page" in self.dims

    @property
    def latent_format(self) -> LatentFormat | None:
        """The format of a slot of a latent cache with scales; None of any other cache."""
        return LATENT_FORMATS.get(self)

    @property
    def has_inline_scales(self) -> bool:
        """True if the scales of K and of V lie in their rows, or after the rows of a page."""
        return self is Layout.CONTENT_PACKED_SCALED or self in LATENT_FORMATS

    @property
    def stride_alignment(self) -> int:
        """The elements of which a view's strides are multiples: numbers wider than a byte lie on multiples of their width."""
        if self.latent_format is not None:
            return self.latent_format.alignment
        return BYTES_OF_SCALE if self is Layout.CONTENT_PACKED_SCALED else 1

    def block_alignment(self, head_size: int, head_size_v: int | None) -> int:
        """The elements of which the stride of blocks is a multiple: if scales lie apart, the elements of a slot's data."""
        if self.latent_format is None or not self.latent_format.scales_apart:
            return self.stride_alignment
        return self.latent_format.data_size(head_size, head_size_v)

    @property
    def takes_two_widths(self) -> bool:
        """True if V, which is stored after K, may be narrower or wider than K."""
        return self is Layout.CONTENT_PACKED

    @property
    def has_latent_value(self) -> bool:
        """True if V is the first elements of K's row. The layout then has one KV head, and a layer names the width of V."""
        return self is Layout.LATENT or self in LATENT_FORMATS

    def packing_multiples(self, itemsize: int) -> tuple[int, int]:
        """The numbers of which head_size and block_size must be multiples, for elements of `itemsize` bytes.

        X_PACKED and SHUFFLED cut heads and blocks into units of 16 bytes. Inline scales are float32 after each row of bytes.
        """
        if self.is_x_packed:
            return 16 // itemsize, 16 // itemsize
        return (4, 1) if self is Layout.CONTENT_PACKED_SCALED else (1, 1)

    def row_sizes(self, head_size: int, head_size_v: int | None = None) -> tuple[int, int]:
        """The numbers of elements of one slot's K of one head, and of its V: see `row_size`."""
        row_size = self.row_size(head_size, head_size_v)
        return row_size, head_size_v or head_size if self.takes_two_widths else row_size

    def row_size(self, head_size: int, head_size_v: int | None = None) -> int:
        """The number of elements of one slot's K of one head. An inline scale is four one-byte elements after the row.

        In a latent layout it is the row of K with its scales. V is the beginning of that row.
        """
        if self.latent_format is not None:
            return self.latent_format.row_size(head_size, head_size_v)
        return head_size + BYTES_OF_SCALE if self.has_inline_scales else head_size

    def check_widths(self, head_size: int, head_size_v: int | None) -> None:
        """Raise ContractError for widths of K and V that rows of this layout cannot have."""
        if head_size_v is not None and not (self.has_latent_value or self.takes_two_widths):
            raise ContractError("head_size_v", head_size_v, f"None: layout {self} holds K and V of one width")
        if self.latent_format is not None:
            self._check_latent_widths(self.latent_format, head_size, head_size_v)

    def has_widths(self, head_size: int, head_size_v: int | None) -> bool:
        """True if rows of this layout can have these widths of K and V."""
        try:
            self.check_widths(head_size, head_size_v)
        except ContractError:
            return False
        return True

    def _check_latent_widths(self, form: LatentFormat, head_size: int, head_size_v: int | None) -> None:
        if form.kept_dims is None:
            if head_size_v is None or head_size_v % form.scale_dims or not 0 < head_size_v <= head_size:
                expected = f"a multiple of {form.scale_dims} in layout {self}, at most head_size ({head_size})"
                raise ContractError("head_size_v", head_size_v, expected)
        else:
            if head_size % form.scale_dims:
                raise ContractError("head_size", head_size, f"a multiple of {form.scale_dims} in layout {self}")
            if head_size <= form.kept_dims:
                expected = f"more than {form.kept_dims} in layout {self}: so many dims are bfloat16"
                raise ContractError("head_size", head_size, expected)
            if head_size_v != head_size:
                raise ContractError("head_size_v", head_size_v, f"head_size ({head_size}) in layout {self}: all of K is V")
        size = form.data_size(head_size, head_size_v) if form.scales_apart else form.row_size(head_size, head_size_v)
        if size % form.alignment:
            expected = f"one whose rows have a multiple of {form.alignment} bytes in layout {self}, and not {size}"
            raise ContractError("head_size", head_size, expected)

    def check_sizes(self, head_size: int, block_size: int, itemsize: int) -> None:
        """Raise ContractError for a head or block size that is not such a multiple: see `packing_multiples`."""
        multiples = self.packing_multiples(itemsize)
        for name, size, multiple in zip(("head_size", "block_size"), (head_size, block_size), multiples, strict=True):
            if size % multiple:
                raise ContractError(name, size, f"a multiple of {multiple} ({multiple * itemsize} bytes) in layout {self}")


class PhysicalOrder(StrEnum):
    """The order in memory, outermost first, of a cache that vLLM 0.33 allocates for several layers.

    The letters are vLLM's: L layers, B blocks, H KV heads, N slots, C the content of a row.
    """

    LBHNC = "LBHNC"
    LBNHC = "LBNHC"
    LHBNC = "LHBNC"
    BLHNC = "BLHNC"
    BLNHC = "BLNHC"
    BHLNC = "BHLNC"

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the allocation's dimensions, outermost first."""
        return tuple(_DIM_OF_LETTER[letter] for letter in self)


LATENT_FORMATS = {
    Layout.LATENT_SCALED: LatentFormat(scale_dims=128, scale_dtype=torch.float32, kept_dims=None),
    Layout.LATENT_E8M0: LatentFormat(scale_dims=32, scale_dtype=torch.float8_e8m0fnu),
    Layout.LATENT_E8M0_PLANES: LatentFormat(
        scale_dims=64, scale_dtype=torch.float8_e8m0fnu, kept_dims=64, scales_apart=True, padding=1
    ),
}
"""The latent caches with scales. All code about them is derived from these records."""

*_LATENT, _LAST_LATENT = (layout for layout in Layout if layout.has_latent_value)
A_LATENT_LAYOUT = f"{', '.join(_LATENT)} or {_LAST_LATENT}"

_DIMS = {
    Layout.BLOCKS_FIRST_NHD: ("block", "kv", "slot", "head", "dim"),
    Layout.BLOCKS_FIRST_HND: ("block", "kv", "head", "slot", "dim"),
    Layout.KV_FIRST_NHD: ("kv", "block", "slot", "head", "dim"),
    Layout.KV_FIRST_HND: ("kv", "block", "head", "slot", "dim"),
    Layout.X_PACKED: ("kv", "block", "page"),
    Layout.SHUFFLED: ("kv", "block", "page"),
    Layout.CONTENT_PACKED: ("block", "head", "slot", "content"),
    Layout.CONTENT_PACKED_SCALED: ("block", "head", "slot", "content"),
    Layout.LATENT: ("block", "slot", "dim"),
    **{layout: ("block", "page") if form.scales_apart else ("block", "slot", "row") for layout, form in LATENT_FORMATS.items()},
}

_DIM_OF_LETTER = {"L": "layer", "B": "block", "H": "head", "N": "slot", "C": "content"}

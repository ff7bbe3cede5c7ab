"""Regions of the fields of KVCacheView."""

from attn_contract import KVCacheView
from attn_fuzz.cases.regions.layer import LAYER
from attn_fuzz.cases.regions.region import Region, not_drawn, of_view


def _has_several_scales(view: KVCacheView) -> bool:
    return view.layout.has_latent_scales and view.layout.quantized_size(view.head_size_v or 0) > view.layout.dims_of_scale


def _has_both(view: KVCacheView) -> bool:
    """Whether a block has several slots and several heads, so that one of the two lies inside the other."""
    return view.block_size > 1 and view.num_kv_heads > 1


def _is_odd(view: KVCacheView) -> bool:
    """Whether all rows begin at odd addresses, so that no two dims may be loaded at once."""
    strides = (view.kv_stride, view.block_stride, view.slot_stride, view.head_stride)
    return view.itemsize == 1 and view.offset % 2 == 1 and not any(stride % 2 for stride in strides)


VIEW: dict[str, tuple[Region, ...]] = {
    "layout": LAYER["layout"][:-1],
    "num_blocks": (
        Region("1", of_view(lambda view: view.num_blocks == 1)),
        Region("2", of_view(lambda view: view.num_blocks == 2)),
        Region("ids beyond 16 bits", of_view(lambda view: view.num_blocks > 1 << 15)),
        not_drawn("0", "an empty cache holds no key; tests/contract has its borders"),
    ),
    "block_size": (
        Region("1", of_view(lambda view: view.block_size == 1)),
        Region("a power of two", of_view(lambda view: view.block_size.bit_count() == 1)),
        Region("no power of two", of_view(lambda view: view.block_size.bit_count() > 1)),
        Region("above 128", of_view(lambda view: view.block_size > 128)),
    ),
    "num_kv_heads": (
        Region("1", of_view(lambda view: view.num_kv_heads == 1)),
        Region("2", of_view(lambda view: view.num_kv_heads == 2)),
        Region("4 or more", of_view(lambda view: view.num_kv_heads >= 4)),
    ),
    "head_size": (Region("any of Layer.head_size", of_view(lambda view: True)),),
    "head_size_v": (
        Region("none", of_view(lambda view: view.head_size_v is None)),
        Region("of a latent row", of_view(lambda view: view.layout.has_latent_value and view.head_size_v is not None)),
        Region("of a row of two widths", of_view(lambda view: view.layout.takes_two_widths and view.head_size_v is not None)),
        Region("of a row with several scales", of_view(_has_several_scales)),
    ),
    "itemsize": tuple(Region(str(size), of_view(lambda view, size=size: view.itemsize == size)) for size in (1, 2, 4)),
    "kv_stride": (
        Region("V beside K in a block", of_view(lambda view: view.num_blocks > 1 and view.kv_stride < view.block_stride)),
        Region("planes", of_view(lambda view: view.num_blocks > 1 and view.kv_stride > view.block_stride)),
        Region("0: V is the beginning of K's row", of_view(lambda view: view.kv_stride == 0)),
        not_drawn("beyond 31 bits", "a target's own: the rows of `triton@far` lie so far apart"),
    ),
    "block_stride": (
        Region("dense", of_view(lambda view: view.block_stride % (view.block_size * view.num_kv_heads * view.row_size) == 0)),
        Region("padded", lambda case, step: case.cache is not None and case.cache.padding),
        Region("other layers between blocks", lambda case, step: case.cache is not None and case.cache.num_layers > 1),
    ),
    "slot_stride": (
        Region("heads inside a slot", of_view(lambda view: _has_both(view) and view.slot_stride > view.head_stride)),
        Region("rows with a gap", lambda case, step: case.cache is not None and case.cache.slot_padding),
        Region("without a meaning", of_view(lambda view: view.slot_stride == 0)),
    ),
    "head_stride": (
        Region("slots inside a head", of_view(lambda view: _has_both(view) and view.head_stride > view.slot_stride)),
        Region("blocks or layers between heads", of_view(lambda view: view.head_stride > view.block_stride > 0)),
    ),
    "offset": (
        Region("not 0", of_view(lambda view: view.offset > 0)),
        Region("an odd byte, beside even strides", of_view(_is_odd)),
        not_drawn("0", "guards surround every allocation; the tests of backends have caches of their own"),
    ),
}

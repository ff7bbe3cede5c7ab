"""Where the elements of a KV cache and its scales lie, as the kernels take it."""

from typing import NamedTuple

import torch
from attn_contract import Layer, Layout

from attn_optimized.kernels.load import DIMS_PER_PLANE_SCALE, DIMS_PER_SCALE


class KVCacheStrides(NamedTuple):
    """Elements from K to V, and from one block, slot and KV head to the next; and what lies inside a page.

    interior           inside a page
    rows               each slot of a head is a dense row of dims
    x_packed, shuffled as kernels/kv_layout.py says; the slot stride is not used
    latent             rows, whose first dims are V, too
    latent_scaled      rows of V, its scales, and K's other dims in another type: `parts_of_scaled_rows`
    latent_e8m0        rows of V and its scales: `scales_of_e8m0_rows`
    latent_e8m0_planes rows of V, whose last dims are of another type, and behind all rows the scales: `parts_of_e8m0_planes`
    """

    kv: int
    block: int
    slot: int
    head: int
    num_blocks: int
    block_size: int
    interior: str


def kv_cache_strides(kv_cache: torch.Tensor, layer: Layer) -> KVCacheStrides:
    """Read the strides off a cache whose dimensions stand in the order of the layer's layout."""
    shape, stride = kv_cache.shape, kv_cache.stride()
    match layer.layout:
        case Layout.BLOCKS_FIRST_NHD:
            block, kv, slot, head = 0, 1, 2, 3
        case Layout.BLOCKS_FIRST_HND:
            block, kv, head, slot = 0, 1, 2, 3
        case Layout.KV_FIRST_NHD:
            kv, block, slot, head = 0, 1, 2, 3
        case Layout.KV_FIRST_HND:
            kv, block, head, slot = 0, 1, 2, 3
        case Layout.CONTENT_PACKED:
            return KVCacheStrides(layer.head_size, stride[0], stride[2], stride[1], shape[0], shape[2], "rows")
        case Layout.CONTENT_PACKED_SCALED:
            half = shape[3] // 2
            return KVCacheStrides(half, stride[0], stride[2], stride[1], shape[0], shape[2], "rows")
        case Layout.LATENT:
            return KVCacheStrides(0, stride[0], stride[1], 0, shape[0], shape[1], "latent")
        case Layout.LATENT_SCALED:
            return KVCacheStrides(0, stride[0], stride[1], 0, shape[0], shape[1], "latent_scaled")
        case Layout.LATENT_E8M0:
            return KVCacheStrides(0, stride[0], stride[1], 0, shape[0], shape[1], "latent_e8m0")
        case Layout.LATENT_E8M0_PLANES:
            row, scales = sizes_of_e8m0_planes(layer)
            return KVCacheStrides(0, stride[0], row, 0, shape[0], shape[1] // (row + scales), "latent_e8m0_planes")
        case Layout.X_PACKED | Layout.SHUFFLED:
            head_elements = shape[2] // layer.num_kv_heads
            block_size = head_elements // layer.head_size
            return KVCacheStrides(stride[0], stride[1], 0, head_elements, shape[1], block_size, layer.layout.lower())
        case _:
            raise AssertionError(layer.layout)
    return KVCacheStrides(stride[kv], stride[block], stride[slot], stride[head], shape[block], shape[slot], "rows")


def without_idle_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with strides that count in whole units of up to 16 elements in its dimensions of one element.

    No index moves by such a stride, which may be any number: it becomes 0 if it is no multiple of 16. An odd stride of the only
    KV head or block would have a kernel load single elements.
    """
    if 1 not in tensor.shape:
        return tensor
    steps = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return tensor if all(size > 1 or step % 16 == 0 for size, step in steps) else _with_aligned_strides(tensor)


def token_scales(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The scales of K and of V, one for each token and head: [NB, BS, HK] float32, any strides; None if there are none."""
    if layer.k_scale_cache is not None and layer.v_scale_cache is not None:
        return layer.k_scale_cache, layer.v_scale_cache
    if layer.layout is not Layout.CONTENT_PACKED_SCALED:
        return None
    # [NB, HK, BS, content]: a float32 scale stands behind each row of K and of V. Tensor.view wants strides that are multiples
    # of 4 bytes, even the stride of a dimension of size 1, which may be anything
    rows = _with_aligned_strides(kv_cache)
    k_scale, v_scale = (
        rows[..., end : end + 4].view(torch.float32).squeeze(-1).transpose(1, 2)
        for end in (layer.head_size, 2 * layer.head_size + 4)
    )
    return k_scale, v_scale


def offset_of_scales(kv_cache: torch.Tensor, layer: Layer) -> int:
    """Elements before the view of a cache whose rows hold scales, which must be aligned; 0 of any other cache."""
    return int(kv_cache.storage_offset()) if layer.layout is not None and layer.layout.has_inline_scales else 0


def parts_of_scaled_rows(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales [NB, BS, Lkv / 128], float32, and the rotated dims [NB, BS, R], bfloat16, of a LATENT_SCALED cache."""
    num_scales = layer.value_size // DIMS_PER_SCALE.value
    behind_scales = layer.value_size + 4 * num_scales
    rows = _with_aligned_strides(kv_cache)
    return rows[..., layer.value_size : behind_scales].view(torch.float32), rows[..., behind_scales:].view(torch.bfloat16)


def scales_of_e8m0_rows(kv_cache: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The scales [NB, BS, D / 32] of a LATENT_E8M0 cache: ue8m0 bytes, uint8."""
    return kv_cache.view(torch.uint8)[..., layer.head_size :]


def sizes_of_e8m0_planes(layer: Layer) -> tuple[int, int]:
    """Bytes of a slot's row and of its scales in LATENT_E8M0_PLANES: each group of dims has a scale, or a byte of padding.

    The last group is 2 bytes a dim, the others 1.
    """
    return layer.head_size + DIMS_PER_PLANE_SCALE.value, layer.head_size // DIMS_PER_PLANE_SCALE.value


def parts_of_e8m0_planes(kv_cache: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales [NB, BS, D / 64], ue8m0 bytes and one of padding, and the last 64 dims [NB, BS, 64], bfloat16, of a
    LATENT_E8M0_PLANES cache [NB, page]."""
    row, scales = sizes_of_e8m0_planes(layer)
    block_size = kv_cache.shape[1] // (row + scales)
    pages = _with_aligned_strides(kv_cache)
    rows, behind = pages[:, : block_size * row], pages[:, block_size * row :]
    first_kept = (layer.head_size - DIMS_PER_PLANE_SCALE.value) // 2
    kept = rows.view(torch.bfloat16).unflatten(1, (block_size, row // 2))[..., first_kept:]
    return behind.view(torch.uint8).unflatten(1, (block_size, scales)), kept


def _with_aligned_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a stride of 0 in dimensions of size 1: theirs may be no multiple of what a view in a wider type needs."""
    strides = [step if size > 1 else 0 for size, step in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)]
    return tensor.as_strided(tensor.shape, (*strides, 1))


class ScaleStrides(NamedTuple):
    """Elements from the scale of one block, slot and KV head to the next; in a scaled latent row, from one of its scales."""

    block: int
    slot: int
    head: int

    def named(self, prefix: str) -> dict[str, int]:
        """As a kernel's numbers: `{prefix}_block`, `{prefix}_slot` and `{prefix}_head`."""
        return {f"{prefix}_{name}": stride for name, stride in self._asdict().items()}


def scale_strides(scale: torch.Tensor | None) -> ScaleStrides:
    """Of scales for each token and head, [NB, BS, HK], or of what all blocks and slots share: one scale, or one per KV head."""
    if scale is not None and scale.dim() == 3:
        return ScaleStrides(*scale.stride())
    return ScaleStrides(0, 0, 0 if scale is None or scale.numel() == 1 else 1)

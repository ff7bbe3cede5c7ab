"""Strides of a KV cache and its scales, as the kernels take them."""

from typing import NamedTuple

import torch
from attn_contract import Layer, Layout


class KVCacheStrides(NamedTuple):
    """The elements from K to V and from one block, slot and KV head to the next, and the order inside a page.

    interior           inside a page
    rows               each slot of a head is a dense row of dims
    x_packed, shuffled as kernels/kv_layout.py says; the slot stride is not used
    latent             rows, whose first dims are V, too
    latent_scaled      rows of V's dims, their scales, and dims in another type, or the scales after all rows: `LatentRow`
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
        case Layout.X_PACKED | Layout.SHUFFLED:
            head_elements = shape[2] // layer.num_kv_heads
            block_size = head_elements // layer.head_size
            return KVCacheStrides(stride[0], stride[1], 0, head_elements, shape[1], block_size, layer.layout.lower())
        case _:
            return _scaled_latent_strides(kv_cache, layer)
    return KVCacheStrides(stride[kv], stride[block], stride[slot], stride[head], shape[block], shape[slot], "rows")


def _scaled_latent_strides(kv_cache: torch.Tensor, layer: Layer) -> KVCacheStrides:
    row, shape, stride = LatentRow.of(layer), kv_cache.shape, kv_cache.stride()
    assert row is not None, layer.layout
    if row.scales_apart:
        block_size = shape[1] // (row.data_size + row.scales_size)
        return KVCacheStrides(0, stride[0], row.data_size, 0, shape[0], block_size, "latent_scaled")
    return KVCacheStrides(0, stride[0], stride[1], 0, shape[0], shape[1], "latent_scaled")


def without_idle_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with a stride of 0 or a multiple of 16 in its dimensions of one element.

    No index moves by such a stride, so it may be any number: it becomes 0 if it is no multiple of 16. With an odd stride of the
    only KV head or block, a kernel would load single elements.
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
    # [NB, HK, BS, content]: a float32 scale stands after each row of K and of V. Tensor.view wants strides that are multiples
    # of 4 bytes, even the stride of a dimension of size 1, which may be anything
    rows = _with_aligned_strides(kv_cache)
    k_scale, v_scale = (
        rows[..., end : end + 4].view(torch.float32).squeeze(-1).transpose(1, 2)
        for end in (layer.head_size, 2 * layer.head_size + 4)
    )
    return k_scale, v_scale


def offset_of_scales(kv_cache: torch.Tensor, layer: Layer) -> int:
    """The elements before the view of a cache whose rows hold scales, which must be aligned; 0 for any other cache."""
    return int(kv_cache.storage_offset()) if layer.layout is not None and layer.layout.has_inline_scales else 0


class LatentRow(NamedTuple):
    """A slot of a latent cache whose dims have scales: dims, and bytes; see `attn_contract.latent_format`.

    `quantized` dims are in float8, each `scale_dims` with a scale, and `kept` dims after them in bfloat16.
    """

    quantized: int
    kept: int
    scale_dims: int
    scale_dtype: torch.dtype
    padding: int
    scales_apart: bool

    @classmethod
    def of(cls, layer: Layer) -> "LatentRow | None":
        """The row of a latent layout with scales; None for any other cache."""
        form = None if layer.layout is None else layer.layout.latent_format
        if form is None:
            return None
        kept = layer.head_size - layer.v_head_size if form.kept_dims is None else form.kept_dims
        quantized = layer.head_size - kept
        scale_dtype = torch.float32 if form.scale_dtype == torch.float32 else torch.uint8
        return cls(quantized, kept, form.scale_dims, scale_dtype, form.padding, form.scales_apart)

    @property
    def num_scales(self) -> int:
        """The number of scales of a slot."""
        return self.quantized // self.scale_dims

    @property
    def data_size(self) -> int:
        """The bytes of a slot without its scales."""
        return self.quantized + 2 * self.kept

    @property
    def scales_size(self) -> int:
        """The bytes of a slot's scales and of the padding after them."""
        return self.num_scales * self.scale_dtype.itemsize + self.padding

    def parts(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scales of a cache, and its kept dims.

        Returns:
            [NB, BS, scales and padding] float32, or uint8 if they are ue8m0; [NB, BS, kept] bfloat16, or None without any.
        """
        cache = _with_aligned_strides(kv_cache)
        if self.scales_apart:
            block_size = cache.shape[1] // (self.data_size + self.scales_size)
            rows, scales = cache.tensor_split([block_size * self.data_size], dim=1)
            rows, scales = rows.unflatten(1, (block_size, -1)), scales.unflatten(1, (block_size, -1))
            kept = rows[..., self.quantized :]
        else:
            scales, kept = cache[..., self.quantized :].tensor_split([self.scales_size], dim=2)
        return scales.view(self.scale_dtype), kept.view(torch.bfloat16) if self.kept else None


def _with_aligned_strides(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a stride of 0 in dimensions of size 1, because a view in a wider type needs strides that are
    multiples."""
    strides = [step if size > 1 else 0 for size, step in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)]
    return tensor.as_strided(tensor.shape, (*strides, 1))


class ScaleStrides(NamedTuple):
    """The elements from the scale of one block, slot and KV head to the next; in a latent row from its first scale."""

    block: int
    slot: int
    head: int

    def named(self, prefix: str) -> dict[str, int]:
        """The strides by the names that kernels have for them: `{prefix}_block`, `{prefix}_slot` and `{prefix}_head`."""
        return {f"{prefix}_{name}": stride for name, stride in self._asdict().items()}


def scale_strides(scale: torch.Tensor | None) -> ScaleStrides:
    """Strides of scales: per token and head, [NB, BS, HK], or of one scale, or one per KV head, for all blocks and slots."""
    if scale is not None and scale.dim() == 3:
        return ScaleStrides(*scale.stride())
    return ScaleStrides(0, 0, 0 if scale is None or scale.numel() == 1 else 1)

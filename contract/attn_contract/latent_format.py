"""The format of a slot of a latent cache whose dims have scales of their own."""

from dataclasses import dataclass

import torch

E8M0_BIAS, E8M0_NAN = 127, 255
"""A ue8m0 byte b is the scale 2**(b - 127), and the byte 255 is NaN: E8M0 of OCP Microscaling Formats (MX) 1.0."""
BYTES_OF_KEPT = 2
"""The bytes of a dim that is stored in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class LatentFormat:
    """A format of one-byte elements: dims of K in float8, their scales, and dims of K that are kept in bfloat16.

    A slot's row holds its codes, its scales and its kept dims, in this order. If `scales_apart`, a row holds its codes and its
    kept dims, and the scales of all slots follow all rows of a page. Sizes and offsets are in bytes.

    Args:
        scale_dims: the number of neighbouring dims that share a scale.
        scale_dtype: the dtype of a scale: torch.float32, or torch.float8_e8m0fnu, the byte of a power of two (ue8m0).
        kept_dims: the number of last dims of K that are kept in bfloat16, without a scale: 0 or scale_dims; all dims of K are
            V. None: the dims after V are kept.
        scales_apart: True if scales lie after the rows of a page; pages then begin at multiples of a row.
        padding: the number of bytes after the scales of a slot, which are written as 0.
    """

    scale_dims: int
    scale_dtype: torch.dtype
    kept_dims: int | None = 0
    scales_apart: bool = False
    padding: int = 0

    def __post_init__(self) -> None:
        if self.kept_dims not in (None, 0, self.scale_dims):
            raise ValueError(f"kept_dims: got {self.kept_dims}, expected None, 0 or scale_dims ({self.scale_dims})")

    @property
    def alignment(self) -> int:
        """The alignment of rows, offsets and strides: a number wider than a byte lies on multiples of its own width."""
        return max(self.scale_dtype.itemsize, 1 if self.kept_dims == 0 else BYTES_OF_KEPT)

    def quantized_size(self, head_size: int, head_size_v: int | None) -> int:
        """The number of leading dims of K that are stored in float8. Without head_size_v all dims of K are V."""
        return (head_size_v or head_size) if self.kept_dims is None else head_size - self.kept_dims

    def scales_size(self, head_size: int, head_size_v: int | None) -> int:
        """The bytes of a slot's scales and of the padding after them."""
        return self.quantized_size(head_size, head_size_v) // self.scale_dims * self.scale_dtype.itemsize + self.padding

    def data_size(self, head_size: int, head_size_v: int | None) -> int:
        """The bytes of a slot's codes and kept dims."""
        quantized = self.quantized_size(head_size, head_size_v)
        return quantized + BYTES_OF_KEPT * (head_size - quantized)

    def row_size(self, head_size: int, head_size_v: int | None) -> int:
        """The bytes of a slot."""
        return self.data_size(head_size, head_size_v) + self.scales_size(head_size, head_size_v)

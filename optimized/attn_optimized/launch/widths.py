"""Widths of the rows of q, K and V, and of the tiles that hold them."""

from dataclasses import dataclass
from typing import Self

from attn_contract import UnsupportedError

from attn_optimized.launch.workload import MIN_DOT, Workload

MAX_HEAD_SIZE = 512
MIN_CUT = 64
"""The narrowest first part of V, and of a K as wide as V. On an H200, prefills and chunks of 80, 96, 144, 160, 192 and 320 dims
are 1.03 to 1.52 times as fast in two parts; those of 40 and 48 dims 0.95 to 1.04 times; those of 72 dims, with a padded second
part, 0.92 and 1.18 times."""
MAX_LATENT_SIZE, MAX_REST_SIZE = 512, 128
"""The widest V of a latent cache, and the most dims of K after V."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Fields of the attention kernel's Kind.

    Args:
        head_size: the number of dims of q and K.
        first_size: the number of these dims in the first of two dots; all of them if there is one dot.
        v_head_size: the number of dims of V and of the output.
        first_v_head_size: the number of these dims in the first of two sums of values; all of them if there is one sum.
        block_d, block_rest: the first dims of K and the other ones, padded to powers of two; block_rest is 0 with one dot.
        block_v, block_v_rest: the same for the first dims of V and the other ones.
    """

    head_size: int
    first_size: int
    v_head_size: int
    first_v_head_size: int
    block_d: int
    block_rest: int
    block_v: int
    block_v_rest: int

    @property
    def row_block(self) -> int:
        """The width of a row of K in a tile, with padding."""
        return self.block_d + self.block_rest

    @property
    def value_row_block(self) -> int:
        """The width of a row of V in a tile, with padding."""
        return self.block_v + self.block_v_rest

    @classmethod
    def of(cls, workload: Workload) -> Self:
        """The widths of a call's tiles. A row of K has two dots if it is longer than V, or if padding it to a power of two
        wastes much.

        Rows stay whole in requests of few rows, which wait for memory, and in a packed page, where the dims of a row are not
        adjacent, unless K and V have different widths. On an H200, decodes of 96 and 192 dims are 0.89 and 0.95 times as fast
        in two parts.

        Raises:
            UnsupportedError: a row is wider than a tile.
        """
        _check(workload)
        head_size, v_head_size = workload.head_size, workload.v_head_size
        first_size, first_v_head_size = head_size, v_head_size
        if workload.is_latent:
            first_size = v_head_size
        elif not (workload.has_few_rows or workload.is_x_packed):
            first_size, first_v_head_size = _exact_first_size(head_size), _exact_first_size(v_head_size)
        if v_head_size != head_size and not workload.is_latent:
            first_size = _narrow_first_size(head_size)
        return cls(
            head_size=head_size,
            first_size=first_size,
            v_head_size=v_head_size,
            first_v_head_size=first_v_head_size,
            block_d=padded(first_size),
            block_rest=padded(head_size - first_size) if first_size < head_size else 0,
            block_v=padded(first_v_head_size),
            block_v_rest=padded(v_head_size - first_v_head_size) if first_v_head_size < v_head_size else 0,
        )


def padded(size: int) -> int:
    """The side of a tile that holds this number of dims: a power of two that a dot takes."""
    return max(MIN_DOT, power_of_2(size))


def power_of_2(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def _narrow_first_size(head_size: int) -> int:
    """The dims of the first dot: the largest power of two within dims, if this needs less padding than one dot would."""
    largest = 1 << (head_size.bit_length() - 1)
    if largest < MIN_DOT or largest == head_size or largest + padded(head_size - largest) >= padded(head_size):
        return head_size
    return largest


def _exact_first_size(size: int) -> int:
    """The dims of the first of two unpadded parts; all dims if no two fit, or if the first is narrower than MIN_CUT."""
    largest = 1 << (size.bit_length() - 1)
    rest = size - largest
    return largest if largest >= MIN_CUT and rest >= MIN_DOT and rest.bit_count() == 1 else size


def _check(workload: Workload) -> None:
    head_size, v_head_size = workload.head_size, workload.v_head_size
    if workload.is_latent:
        sizes = {f"a latent V of {v_head_size} dims": (v_head_size, MAX_LATENT_SIZE)}
        sizes[f"{head_size - v_head_size} dims of K after a latent V"] = (head_size - v_head_size, MAX_REST_SIZE)
    else:
        sizes = {
            f"head size {head_size}": (head_size, MAX_HEAD_SIZE),
            f"head size {v_head_size} of V": (v_head_size, MAX_HEAD_SIZE),
        }
    for feature, (size, most) in sizes.items():
        if size > most:
            raise UnsupportedError("attn_optimized", feature, f"a tile holds whole heads of at most {most}", "attn_reference")

"""Widths of the rows of q, K and V, and of the tiles that hold them."""

from dataclasses import dataclass
from typing import Self

from attn_contract import UnsupportedError

from attn_optimized.launch.workload import MIN_DOT, Workload

MAX_HEAD_SIZE = 512
LEAST_CUT = 64
"""The narrowest first part of V, and of K that is as wide. On an H200, prefills and chunks of 80, 96, 144, 160, 192 and 320
dims are 1.03 to 1.52 times as fast in two parts; of 40 and 48 dims 0.95 to 1.04 times; of 72, with a padded rest, 0.92 and 1.18
times."""
MAX_LATENT_SIZE, MAX_REST_SIZE = 512, 128
"""The widest V of a latent cache, and the most dims of K behind it."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Fields of the attention kernel's Kind.

    Args:
        head_size: dims of q and K.
        first_size: those of them that the first of two dots takes; all of them if there is one dot.
        v_head_size: dims of V and of the output.
        first_v_head_size: those of them that the first of two sums of values has; all of them if there is one.
        block_d, block_rest, block_v, block_v_rest: the first dims of K, its others, and V's, padded to powers of two. The
            others are 0 if there is one dot.
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
        """A row of K in a tile, padding included."""
        return self.block_d + self.block_rest

    @property
    def value_row_block(self) -> int:
        """Likewise of V."""
        return self.block_v + self.block_v_rest

    @classmethod
    def of(cls, workload: Workload) -> Self:
        """The widths of a call's tiles. Two dots take a row that is V's and more, or that one power of two holds badly.

        Requests of few rows wait for bytes, and a packed page has no dims that follow each other: their rows are whole, but for
        K of another width than V. On an H200, decodes of 96 and 192 dims in two parts are 0.89 and 0.95 times as fast.

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
    """The side of a tile that holds so many dims: a power of two that a dot takes."""
    return max(MIN_DOT, power_of_2(size))


def power_of_2(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def _narrow_first_size(head_size: int) -> int:
    """Dims of the first dot: the largest power of two of dims, if the rest is then padded less than the whole would be."""
    largest = 1 << (head_size.bit_length() - 1)
    if largest < MIN_DOT or largest == head_size or largest + padded(head_size - largest) >= padded(head_size):
        return head_size
    return largest


def _exact_first_size(size: int) -> int:
    """Dims of the first of two parts that are not padded; all dims if there are none, or it were narrower than LEAST_CUT."""
    largest = 1 << (size.bit_length() - 1)
    rest = size - largest
    return largest if largest >= LEAST_CUT and rest >= MIN_DOT and rest.bit_count() == 1 else size


def _check(workload: Workload) -> None:
    head_size, v_head_size = workload.head_size, workload.v_head_size
    if workload.is_latent:
        sizes = {f"a latent V of {v_head_size} dims": (v_head_size, MAX_LATENT_SIZE)}
        sizes[f"{head_size - v_head_size} dims of K behind a latent V"] = (head_size - v_head_size, MAX_REST_SIZE)
    else:
        sizes = {
            f"head size {head_size}": (head_size, MAX_HEAD_SIZE),
            f"head size {v_head_size} of V": (v_head_size, MAX_HEAD_SIZE),
        }
    for feature, (size, most) in sizes.items():
        if size > most:
            raise UnsupportedError("attn_optimized", feature, f"a tile holds whole heads of at most {most}", "attn_reference")

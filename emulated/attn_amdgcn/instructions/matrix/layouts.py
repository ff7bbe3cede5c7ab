"""The element of a matrix that a lane holds: a formula for each family of instructions.

An operand of A is described by (lane, element) -> (block, row, k), where `element` counts the elements that a lane holds,
from the lowest bits of its first register on. B has the same layout with columns instead of rows. D and C are described by
(lane, element) -> (block, row, column). Some instructions multiply several blocks, independent small matrices, at once.

Sources: the formulas that `matrix_calculator.py --detail-instruction` of AMD's public Matrix Instruction Calculator prints
for CDNA2, CDNA3, RDNA3 and RDNA4; "Matrix Arithmetic Instructions" in AMD's Instinct MI300 ISA; "Wave Matrix Multiply
Accumulate" in the RDNA3 and the RDNA4 ISA. gfx950 and gfx1250 are described below where they differ.
"""

from collections.abc import Callable

import numpy as np

Places = tuple[np.ndarray, np.ndarray, np.ndarray]
Layout = Callable[[np.ndarray, np.ndarray], Places]


def mfma_input(rows: int, blocks: int, per_lane: int) -> Layout:
    """A of MFMA: neighbouring lanes hold rows, then blocks, then groups of k.

    A lane with 32 elements of 8 bits (gfx950's f8f6f4) holds two runs of 16 k: see `mfma_input_of_32_bytes`.
    """

    def layout(lane: np.ndarray, element: np.ndarray) -> Places:
        return lane // rows % blocks, lane % rows, per_lane * (lane // (rows * blocks)) + element

    return layout


def mfma_input_of_32_bytes(rows: int) -> Layout:
    """A of v_mfma_..._f8f6f4 with 8-bit elements: k goes through all lanes with 16 elements each, and then a second time.

    It matters where A and B have formats of different widths, and for scales, which count k. Formats of 4 and 6 bits have
    32 k in a row (`mfma_input`). Source: "Matrix Arithmetic Instructions" in AMD's Instinct CDNA4 ISA.
    """

    def layout(lane: np.ndarray, element: np.ndarray) -> Places:
        return 0 * lane, lane % rows, 16 * (lane // rows + 64 // rows * (element // 16)) + element % 16

    return layout


def mfma_output(rows: int, columns: int) -> Layout:
    """D of MFMA with 32 bits: a lane holds 4 rows of its column; the lanes, then the registers, go on to the next 4 rows."""

    def layout(lane: np.ndarray, element: np.ndarray) -> Places:
        four = lane // columns + 64 // columns * (element // 4)
        return four // (rows // 4), 4 * (four % (rows // 4)) + element % 4, lane % columns

    return layout


def mfma_output_f64(columns: int, blocks: int) -> Layout:
    """D of MFMA with 64 bits: the lanes, then the pairs of registers, go on to the next row."""
    group = columns * blocks

    def layout(lane: np.ndarray, element: np.ndarray) -> Places:
        return lane // columns % blocks, 64 // group * element + lane // group, lane % columns

    return layout


def gfx11_input(lane: np.ndarray, element: np.ndarray) -> Places:
    """A of gfx11's WMMA: a lane holds a whole row. Lanes 16 to 31 hold what lanes 0 to 15 hold."""
    return 0 * lane, lane % 16, element


def gfx11_output(lane: np.ndarray, element: np.ndarray) -> Places:
    """D of gfx11's WMMA: lanes 0 to 15 hold the even rows, lanes 16 to 31 the odd ones."""
    return 0 * lane, 2 * element + lane // 16, lane % 16


def gfx12_input(run: int) -> Layout:
    """A of gfx12's WMMA: runs of k go to lanes 0 to 15 and to lanes 16 to 31 in turn.

    A and B have the same runs, so their length changes only the order of a sum, except where the halves of a register have
    signs of their own; the lowest bit of k is the half in any case. gfx1250: the layouts of A and B that Triton's
    `wmmaDotOperandToLinearLayout` gives for its version 3.
    """

    def layout(lane: np.ndarray, element: np.ndarray) -> Places:
        return 0 * lane, lane % 16, run * (2 * (element // run) + lane // 16) + element % run

    return layout


def gfx12_output(lane: np.ndarray, element: np.ndarray) -> Places:
    """D of gfx12's WMMA, gfx1250 included: lanes 0 to 15 hold rows 0 to 7, lanes 16 to 31 rows 8 to 15."""
    return 0 * lane, 8 * (lane // 16) + element, lane % 16


def input_table(
    layout: Layout, lanes: int, per_lane: int, shape: tuple[int, int, int], source: np.ndarray | None = None
) -> np.ndarray:
    """[blocks, rows, k]: which of a wave's elements is there, counted as lane * per_lane + element.

    Args:
        layout: the layout of A; for B it says columns where it says rows.
        lanes: the number of lanes of a wave that are read.
        per_lane: elements of a lane.
        shape: blocks, rows and k.
        source: [lanes], the lane whose registers a lane's part is taken from (`blgp`).
    """
    lane, element = np.divmod(np.arange(lanes * per_lane), per_lane)
    table = np.full(shape, -1)
    table[layout(lane, element)] = (lane if source is None else source[lane]) * per_lane + element
    assert table.min() >= 0, "the layout leaves out an element"
    return table


def output_table(
    layout: Layout, lanes: int, per_lane: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The places of D's elements.

    Args:
        shape: blocks, rows and columns.

    Returns:
        [rows], the order in which the product needs its rows, and [per_lane * lanes], which of the product's elements is in
        each place, or None if rows in this order put each element into its place.
    """
    element, lane = np.divmod(np.arange(per_lane * lanes), lanes)
    block, row, column = layout(lane, element)
    places = (block * shape[1] + row) * shape[2] + column
    assert np.array_equal(np.sort(places), np.arange(places.size)), "the layout leaves out an element"
    order = row[(column == 0) & (block == 0)]
    rank = np.argsort(order)
    places = (block * shape[1] + rank[row]) * shape[2] + column
    return order, None if np.array_equal(places, np.arange(places.size)) else places


BLGP = {
    1: lambda lane: lane % 32,
    2: lambda lane: lane % 32 + 32,
    3: lambda lane: (lane + 16) % 64,
    4: lambda lane: lane % 16,
    5: lambda lane: lane % 16 + 16,
    6: lambda lane: lane % 16 + 32,
    7: lambda lane: lane % 16 + 48,
}
"""The lane from which B is read in a lane's stead, by the modifier `blgp`. Source: MI300 ISA, "BLGP"."""


def broadcast_blocks(table: np.ndarray, cbsz: int, abid: int) -> np.ndarray:
    """A's table where block `abid` of each 2**cbsz blocks stands for all of them. Source: MI300 ISA, "CBSZ"."""
    block = np.arange(len(table))
    return table[(block >> cbsz << cbsz) + abid]

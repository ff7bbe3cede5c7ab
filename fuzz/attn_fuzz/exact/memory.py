"""Which elements lie in memory: those that kernels have stored, and the elements that the floats of other memory are.

A kernel's store writes the number (its order, rounded to the memory's dtype) into the memory itself, and the element into a
shadow of the allocation. A load finds the element in the shadow if the memory still holds the bits that were stored. Else
something other than a kernel has written it, and the float there is the element.

One allocation may be viewed as several tensors. So shadows go by addresses. An allocation in which kernels store floats of two
widths is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from attn_fuzz.exact.elements import Elements, joined, logarithm_of, of_floats
from attn_fuzz.exact.refusal import NotCarriedError

_PARTS = ("value", "exponent")


@dataclass
class Shadow:
    """The elements that kernels have stored in one allocation, by the index of their float in it.

    Args:
        address: of the allocation.
        elements: floats that fit into it.
        itemsize: bytes of each float.
    """

    address: int
    elements: int
    itemsize: int
    bits: np.ndarray = field(init=False)
    written: np.ndarray = field(init=False)
    order: np.ndarray = field(init=False)
    parts: dict[str, np.ndarray] = field(init=False)
    lacks: str = ""

    def __post_init__(self) -> None:
        self.bits = np.zeros(self.elements, f"uint{8 * self.itemsize}")
        self.written = np.zeros(self.elements, np.bool_)
        self.order = np.zeros(self.elements)
        self.parts = {name: np.zeros(self.elements, np.uint64) for name in (*_PARTS, "factor", "number")}
        self.parts |= {f"has {name}": np.zeros(self.elements, np.bool_) for name in _PARTS}

    def put(self, places: np.ndarray, block: Elements, bits: np.ndarray) -> None:
        """Keep the elements [n] of a block that were stored as these bits."""
        self.written[places] = True
        self.bits[places] = bits
        self.order[places] = block.order
        for name in _PARTS:
            part = getattr(block, name)
            self.parts[f"has {name}"][places] = part is not None
            if part is not None:
                self.parts[name][places] = part
        self.parts["factor"][places], self.parts["number"][places] = logarithm_of(block)
        self.lacks = self.lacks or block.lacks

    def get(self, places: np.ndarray) -> Elements:
        """The elements [n] that were stored."""
        value, exponent = (
            self.parts[name][places] if self.parts[f"has {name}"][places].all() else None for name in _PARTS
        )
        factor = self.parts["factor"][places]
        logarithm = (factor, self.parts["number"][places]) if factor.any() else None
        return Elements(self.order[places], value, exponent, logarithm, self.lacks)


class Memory:
    """The elements in the memory of one call."""

    def __init__(self) -> None:
        self._allocations: dict[int, int] = {}
        self._shadows: dict[int, Shadow] = {}

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note the allocations of a launch's arguments."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._allocations[storage.data_ptr()] = storage.nbytes()

    def shadow_of(self, tensor: torch.Tensor) -> Shadow | None:
        """The shadow of a tensor's allocation; None if no kernel has stored floats there."""
        return self._shadows.get(tensor.untyped_storage().data_ptr())

    def loaded(self, addresses: np.ndarray, bits: np.ndarray, numbers: np.ndarray) -> Elements:
        """The elements at addresses [n].

        Args:
            bits: [n], what memory holds there.
            numbers: [n] float64, the floats that these bits are.
        """
        found = of_floats(numbers)
        for shadow in self._shadows.values():
            inside, places = self._places(shadow, addresses, bits.itemsize)
            if not inside.any():
                continue
            kept = np.zeros(len(addresses), np.bool_)
            kept[inside] = shadow.written[places] & (shadow.bits[places] == bits[inside])
            if kept.any():
                found = _merged(kept, shadow.get(places[kept[inside]]), found)
        return found

    def store(self, addresses: np.ndarray, block: Elements, bits: np.ndarray) -> None:
        """Note that memory at addresses [n] holds the elements of a block [n], as bits [n]."""
        if not len(addresses):
            return
        shadow = self._shadow_at(int(addresses[0]), bits.itemsize)
        inside, places = self._places(shadow, addresses, bits.itemsize)
        if not inside.all():
            raise NotCarriedError("a store to two allocations at once")
        shadow.put(places, block, bits)

    def _places(self, shadow: Shadow, addresses: np.ndarray, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
        """Which addresses lie in a shadow's allocation, and the indices of their floats."""
        offset = addresses - np.uint64(shadow.address)
        inside = offset < np.uint64(shadow.elements * shadow.itemsize)
        if inside.any() and itemsize != shadow.itemsize:
            raise NotCarriedError(f"floats of {itemsize} bytes in memory where floats of {shadow.itemsize} bytes were stored")
        return inside, (offset[inside] // np.uint64(shadow.itemsize)).astype(np.int64)

    def _shadow_at(self, address: int, itemsize: int) -> Shadow:
        for base, nbytes in self._allocations.items():
            if base <= address < base + nbytes:
                if base not in self._shadows:
                    self._shadows[base] = Shadow(base, nbytes // itemsize, itemsize)
                return self._shadows[base]
        raise NotCarriedError("a store to memory that is no argument of the launch")


def _merged(takes: np.ndarray, some: Elements, others: Elements) -> Elements:
    """`others` [n], with `some` [takes.sum()] where `takes`."""

    def place(parts: list[np.ndarray]) -> np.ndarray:
        found = parts[1].copy()
        found[takes] = parts[0]
        return found

    return some if takes.all() else joined([some, others], place)

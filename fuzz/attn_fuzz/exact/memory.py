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
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError

_PARTS = ("value", "exponent")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        value, exponent = (self.parts[name][places] if self.parts[f"has {name}"][places].all() else None for name in _PARTS)
        factor = self.parts["factor"][places]
        logarithm = (factor, self.parts["number"][places]) if factor.any() else None
        return Elements(self.order[places], value, exponent, logarithm, self.lacks)


class Memory:
    """The elements in the memory of one call.

    Args:
        quantities: of the call.
    """

    def __init__(self, quantities: Quantities) -> None:
        self._quantities = quantities
        self._allocations: dict[int, int] = {}
        self._shadows: dict[int, Shadow] = {}
        self._computed: dict[int, tuple[torch.Tensor, str]] = {}

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note the allocations of a launch's arguments."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._allocations[storage.data_ptr()] = storage.nbytes()

    def shadow_of(self, tensor: torch.Tensor) -> Shadow | None:
        """The shadow of a tensor's allocation; None if no kernel has stored floats there."""
        return self._shadows.get(tensor.untyped_storage().data_ptr())

    def holds_elements(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds elements that a kernel has stored."""
        shadow = self.shadow_of(tensor)
        if shadow is None or not tensor.numel() or tensor.element_size() != shadow.itemsize:
            return shadow is not None and tensor.numel() > 0
        return bool(shadow.written[places_of(tensor)].any())

    def compute(self, tensor: torch.Tensor, operation: str) -> None:
        """Note that an operation of torch has computed the floats of a tensor."""
        self._computed[tensor.untyped_storage().data_ptr()] = tensor, operation

    def inherit(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Note that a tensor is a copy of another one, in which no kernel has stored."""
        if (made := self._computed.get(source.untyped_storage().data_ptr())) is not None:
            self.compute(target, made[1])

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Note that a tensor is a copy of another one of the same shape, in which a kernel has stored."""
        self.know([target])
        of_source, of_target = (bits_of(each).ravel() for each in (source, target))
        numbers = source.double().numpy().ravel()
        self.store(_addresses(target), self.loaded(_addresses(source), of_source, numbers), of_target)

    def loaded(self, addresses: np.ndarray, bits: np.ndarray, numbers: np.ndarray) -> Elements:
        """The elements at addresses [n].

        Args:
            bits: [n], what memory holds there.
            numbers: [n] float64, the floats that these bits are.
        """
        found = of_floats(numbers) if not self._computed else self._host_floats(addresses, numbers)
        for shadow in self._shadows.values():
            inside, places = self._places(shadow, addresses, bits.itemsize)
            if not inside.any():
                continue
            kept = np.zeros(len(addresses), np.bool_)
            kept[inside] = shadow.written[places] & (shadow.bits[places] == bits[inside])
            if kept.any():
                found = _merged(kept, shadow.get(places[kept[inside]]), found)
        return found

    def _host_floats(self, addresses: np.ndarray, numbers: np.ndarray) -> Elements:
        """The elements that floats are, where the host may have computed them."""
        for tensor, operation in self._computed.values():
            storage = tensor.untyped_storage()
            inside = addresses - np.uint64(storage.data_ptr()) < np.uint64(storage.nbytes())
            if not inside.any():
                continue
            different = np.unique(numbers[inside])
            if len(different) == 1 and inside.all():
                return self._quantities.element(float(different[0])).broadcast(numbers.shape)
            raise NotCarriedError(f"floats that torch's {operation} has computed")
        return of_floats(numbers)

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


def places_of(tensor: torch.Tensor) -> np.ndarray:
    """The index of each element of a tensor in its allocation, of the tensor's shape."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.arange(count).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).numpy()


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The bits of each element of a tensor, of its shape."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # pyright: ignore[reportArgumentType]
    return whole.view(_INTEGERS[tensor.element_size()]).numpy().view(f"uint{8 * tensor.element_size()}")[places_of(tensor)]


def _addresses(tensor: torch.Tensor) -> np.ndarray:
    """[elements]"""
    places = places_of(tensor).ravel().astype(np.uint64)
    return places * np.uint64(tensor.element_size()) + np.uint64(tensor.untyped_storage().data_ptr())


def _merged(takes: np.ndarray, some: Elements, others: Elements) -> Elements:
    """`others` [n], with `some` [takes.sum()] where `takes`."""

    def place(parts: list[np.ndarray]) -> np.ndarray:
        found = parts[1].copy()
        found[takes] = parts[0]
        return found

    return some if takes.all() else joined([some, others], place)

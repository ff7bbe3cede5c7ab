"""The elements in memory: those that kernels and torch have stored, and the elements that other floats stand for.

A kernel's store writes the number (its order, rounded to the memory's dtype) into the memory itself. The element joins the
stored elements of the allocation, and so does an element that torch computes. A load finds the element there if the memory
still holds the bits that were stored. If it holds other bits, something else has written them, and the float is the element, if
the call was given this memory or torch has filled it. The floats of any other memory are numbers of the host: how they were
computed is not known, and they are read as `attn_fuzz.exact.quantities` reads a number.

One allocation may be viewed as several tensors. So stored elements go by addresses. An allocation in which floats of two widths
are stored is refused.
"""

import bisect
from collections.abc import Iterable

import numpy as np
import torch
from attn_fuzz.exact.elements import Elements, as_floats, assembled, of_floats
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.exact.stored_elements import StoredElements

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Memory:
    """The elements in the memory of one call.

    Args:
        quantities: the quantities of the call.
    """

    def __init__(self, quantities: Quantities) -> None:
        self._quantities = quantities
        self._bases: list[int] = []
        self._allocations: dict[int, int] = {}
        self._known: set[int] = set()
        self._stored: dict[int, StoredElements] = {}
        self._clouded: dict[int, str] = {}

    def note(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note the allocations of tensors. Stores need them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            base = storage.data_ptr()
            if base and base not in self._allocations:
                bisect.insort(self._bases, base)
                self._allocations[base] = storage.nbytes()

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note allocations whose floats stand for themselves: inputs of the call, and tensors that torch fills."""
        tensors = list(tensors)
        self.note(tensors)
        self._known |= {_base(each) for each in tensors}

    def expect(self, outputs: Iterable[torch.Tensor]) -> None:
        """Note outputs of the call, into which elements must be stored before they are compared."""
        for output in outputs:
            self.know([output])
            if output.numel():
                self._of_allocation(_base(output), output.element_size())

    def stored_in(self, tensor: torch.Tensor) -> StoredElements | None:
        """The stored elements of a tensor's allocation; None if no floats were stored there."""
        return self._stored.get(_base(tensor))

    def holds_elements(self, tensor: torch.Tensor) -> bool:
        """True if a tensor holds elements that were stored."""
        stored = self.stored_in(tensor)
        if stored is None or not tensor.numel() or tensor.element_size() != stored.itemsize:
            return stored is not None and tensor.numel() > 0
        return bool(stored.written(places_of(tensor)).any())

    def cloud(self, tensor: torch.Tensor, why: str) -> None:
        """Note that an allocation holds integers that were made of computed numbers. Floats that are read there are refused."""
        self.note([tensor])
        self._clouded.setdefault(_base(tensor), why)

    def cloud_of(self, tensor: torch.Tensor) -> str:
        """Says of which computed numbers a tensor's integers were made; empty if of none."""
        return self._clouded.get(_base(tensor), "")

    def is_itself(self, tensor: torch.Tensor) -> bool:
        """True if all floats in a tensor's allocation stand for themselves, and none has a stored element."""
        base = _base(tensor)
        return base in self._known and base not in self._stored and base not in self._clouded

    def elements(self, tensor: torch.Tensor) -> Elements:
        """The elements of a tensor of floats, of its shape."""
        return self.elements_at(tensor, np.arange(tensor.numel())).reshape(tuple(tensor.shape))

    def elements_at(self, tensor: torch.Tensor, index: np.ndarray) -> Elements:
        """The elements [n] of those floats of a tensor whose places [n] are given, counted through all of its dims."""
        numbers = tensor.detach().double().numpy().ravel()[index]
        if self.is_itself(tensor):
            return of_floats(numbers)
        if cloud := self.cloud_of(tensor):
            return Elements(numbers, lacks=cloud)
        return self.loaded(_addresses(tensor)[index], bits_of(tensor).ravel()[index], numbers)

    def stored_at(self, tensor: torch.Tensor, index: np.ndarray) -> tuple[Elements, np.ndarray]:
        """The elements [n] whose bits a tensor holds, and a bool [n], True where it holds any."""
        bits, stored = bits_of(tensor).ravel()[index], self.stored_in(tensor)
        if stored is None:
            return of_floats(np.zeros(len(index))), np.zeros(len(index), np.bool_)
        addresses = _addresses(tensor)[index]
        held = stored.holds(self._places(stored, addresses, bits.itemsize), bits)
        return self.loaded(addresses, bits, np.zeros(len(index))), held

    def put(self, tensor: torch.Tensor, block: Elements, computed: np.ndarray | None = None) -> None:
        """Note that torch has stored elements in a tensor. Floats that stand for themselves need no stored element.

        Args:
            computed: True where the tensor holds the bits of elements; None: it holds floats, each with an element.
        """
        self.know([tensor])
        if computed is None:
            shape = tuple(tensor.shape)
            block = block.reshape(shape) if block.size == tensor.numel() else block.broadcast(shape)
            is_plain = as_floats(block) is not None and np.array_equal(block.order, tensor.double().numpy(), equal_nan=True)
            computed = np.full(shape, not is_plain or self.stored_in(tensor) is not None)
        if computed.any():
            self.store(_addresses(tensor)[computed.ravel()], block[computed], bits_of(tensor)[computed])

    def loaded(self, addresses: np.ndarray, bits: np.ndarray, numbers: np.ndarray) -> Elements:
        """The elements at addresses [n].

        Args:
            bits: [n], the bits in memory there.
            numbers: [n] float64, the floats with these bits.
        """
        if not len(addresses):
            return of_floats(numbers)
        found, known = np.zeros(len(addresses), np.bool_), np.zeros(len(addresses), np.bool_)
        parts = []
        for base in self._between(int(addresses.min()), int(addresses.max())):
            inside = addresses - np.uint64(base) < np.uint64(self._allocations[base])
            known |= inside & (base in self._known)
            stored = self._stored.get(base)
            if stored is None or not inside.any():
                continue
            places = self._places(stored, addresses[inside], bits.itemsize)
            held = stored.holds(places, bits[inside])
            here = np.flatnonzero(inside)[held]
            found[here] = True
            parts.append((here, stored.get(places[held])))
        for read, are_they in ((of_floats, known & ~found), (self._quantities.elements, ~known & ~found)):
            here = np.flatnonzero(are_they)
            parts.append((here, read(numbers[here])))
        return assembled(len(addresses), [(here, block) for here, block in parts if len(here)])

    def store(self, addresses: np.ndarray, block: Elements, bits: np.ndarray) -> None:
        """Note that memory at addresses [n] holds the elements of a block [n], stored as bits [n]."""
        if not len(addresses):
            return
        first = int(addresses[0])
        base = next(iter(self._between(first, first)), None)
        if base is None or first >= base + self._allocations[base]:
            raise NotCarriedError("a store to memory that is no argument of the launch")
        if not (addresses - np.uint64(base) < np.uint64(self._allocations[base])).all():
            raise NotCarriedError("a store to two allocations at once")
        stored = self._of_allocation(base, bits.itemsize)
        stored.put(self._places(stored, addresses, bits.itemsize), block, bits)

    def _between(self, least: int, most: int) -> list[int]:
        """The allocations that may hold addresses from `least` to `most`."""
        begin = bisect.bisect_right(self._bases, least) - 1
        return self._bases[max(0, begin) : bisect.bisect_right(self._bases, most)]

    def _places(self, stored: StoredElements, addresses: np.ndarray, itemsize: int) -> np.ndarray:
        """The indices of floats in an allocation."""
        if itemsize != stored.itemsize:
            raise NotCarriedError(f"floats of {itemsize} bytes in memory where floats of {stored.itemsize} bytes were stored")
        return ((addresses - np.uint64(stored.address)) // np.uint64(stored.itemsize)).astype(np.int64)

    def _of_allocation(self, base: int, itemsize: int) -> StoredElements:
        if base not in self._stored:
            self._stored[base] = StoredElements(base, self._allocations[base] // itemsize, itemsize)
        return self._stored[base]


def places_of(tensor: torch.Tensor) -> np.ndarray:
    """The index of each element of a tensor in its allocation, of the tensor's shape."""
    places = np.full((1,) * tensor.dim(), tensor.storage_offset(), np.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = np.arange(size, dtype=np.int64) * stride
        places = places + steps.reshape([-1 if axis == dim else 1 for axis in range(tensor.dim())])
    return places


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The bits of each element of a tensor, of its shape."""
    itemsize = tensor.element_size()
    return tensor.detach().contiguous().view(INTEGERS[itemsize]).numpy().view(f"uint{8 * itemsize}")


def _base(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _addresses(tensor: torch.Tensor) -> np.ndarray:
    """[elements]"""
    places = places_of(tensor).ravel().astype(np.uint64)
    return places * np.uint64(tensor.element_size()) + np.uint64(_base(tensor))

"""The elements that were stored in one allocation, by the index of their float in it.

An allocation may be far larger than what is stored in it: the target `triton@far` spreads rows over 2^32 of them. So elements
are kept by pages, and a page that nothing was stored in takes no memory.
"""

import numpy as np
from attn_fuzz.exact.elements import Elements, logarithm_of

_PAGE = 1 << 12
_PARTS = ("value", "exponent")


class StoredElements:
    """The elements of one allocation.

    Args:
        address: the address of the allocation.
        elements: floats that fit into it.
        itemsize: bytes of each float.
    """

    def __init__(self, address: int, elements: int, itemsize: int) -> None:
        self.address, self.elements, self.itemsize = address, elements, itemsize
        self.lacks = ""
        self._page = min(_PAGE, max(1, elements))
        self._pages = np.zeros(-(-elements // self._page), np.int32)  # 0: nothing was stored there
        self._used = 1
        self._bits = np.zeros(self._page, f"uint{8 * itemsize}")
        self._written = np.zeros(self._page, np.bool_)
        self._order = np.zeros(self._page)
        self._parts = {name: np.zeros(self._page, np.uint64) for name in (*_PARTS, "factor", "number")}
        self._parts |= {f"has {name}": np.zeros(self._page, np.bool_) for name in _PARTS}

    def put(self, places: np.ndarray, block: Elements, bits: np.ndarray) -> None:
        """Keep the elements [n] of a block that were stored as these bits."""
        self._add_pages(places)
        at = self._at(places)
        self._written[at] = True
        self._bits[at] = bits
        self._order[at] = block.order
        for name in _PARTS:
            part = getattr(block, name)
            self._parts[f"has {name}"][at] = part is not None
            if part is not None:
                self._parts[name][at] = part
        self._parts["factor"][at], self._parts["number"][at] = logarithm_of(block)
        self.lacks = self.lacks or block.lacks

    def get(self, places: np.ndarray) -> Elements:
        """The elements [n] that were stored."""
        at = self._at(places)
        value, exponent = (self._parts[name][at] if self._parts[f"has {name}"][at].all() else None for name in _PARTS)
        factor = self._parts["factor"][at]
        logarithm = (factor, self._parts["number"][at]) if factor.any() else None
        return Elements(self._order[at], value, exponent, logarithm, self.lacks)

    def written(self, places: np.ndarray) -> np.ndarray:
        """True for each place in which something was stored."""
        return self._written[self._at(places)]

    def holds(self, places: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """True for each of these places in which memory still holds the stored bits."""
        at = self._at(places)
        return self._written[at] & (self._bits[at] == bits)

    def _at(self, places: np.ndarray) -> np.ndarray:
        return self._pages[places // self._page].astype(np.int64) * self._page + places % self._page

    def _add_pages(self, places: np.ndarray) -> None:
        pages = np.unique(places // self._page)
        missing = pages[self._pages[pages] == 0]
        if not len(missing):
            return
        self._pages[missing] = np.arange(self._used, self._used + len(missing))
        self._used += len(missing)
        size = self._used * self._page
        self._bits, self._written, self._order = (_grown(each, size) for each in (self._bits, self._written, self._order))
        self._parts = {name: _grown(part, size) for name, part in self._parts.items()}


def _grown(part: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([part, np.zeros(max(size, 2 * len(part)) - len(part), part.dtype)]) if size > len(part) else part

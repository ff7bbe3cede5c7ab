"""Finds the place to which torch moves each float: it runs the operator itself on the indices of the floats.

Each float that an operator may move gets a number, and so does each number of Python that it may fill in. The operator runs on
these numbers in place of the floats, and its result names the float that lies at each place.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_DATA = frozenset({"self", "src", "source", "tensor", "tensors", "values", "value", "other", "out"})
"""The names of arguments that are moved. Others are indices, masks and sizes."""


class Movement:
    """One run of an operator that moves floats.

    Attributes:
        places: the number of the float at each place of the result.
    """

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._sources: list[tuple[int, torch.Tensor | float]] = [(0, 0.0)]  # `tril` and `zero_` fill in 0
        self._count = 1
        names = [argument.name for argument in func._schema.arguments]
        numbered = [self._numbered(name, value) for name, value in zip(names, args, strict=False)]
        others = {name: self._numbered(name, value) for name, value in kwargs.items()}
        self.places: np.ndarray = func(*numbered, **others).numpy()

    def parts(self) -> Iterator[tuple[np.ndarray, torch.Tensor | float, np.ndarray]]:
        """Each tensor or number that floats come from, with their places in the flat result and those in the tensor."""
        places = self.places.ravel()
        ends = [first for first, _ in self._sources[1:]] + [self._count]
        for (first, source), end in zip(self._sources, ends, strict=True):
            here = np.flatnonzero((first <= places) & (places < end))
            if len(here):
                yield here, source, places[here] - first

    def _numbered(self, name: str, value: Any) -> Any:
        if name not in _DATA:
            return value
        if isinstance(value, list | tuple):
            return [self._numbered(name, each) for each in value]
        if not isinstance(value, torch.Tensor | int | float):
            return value
        first, size = self._count, value.numel() if isinstance(value, torch.Tensor) else 1
        self._sources.append((first, value))
        self._count += size
        return torch.arange(first, first + size).view(value.shape) if isinstance(value, torch.Tensor) else first

"""Memory that a target allocates uninitialized, with a note of each byte that was written.

A target may keep such memory for its next call. There, bytes that torch has written still count as written: a constant may be
made once. Bytes that only kernels have written do not: they are those of another call.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from attn_fuzz.interpreted.eager import EagerMode, returned
from attn_fuzz.interpreted.new_memory import ALLOCATE
from torch.multiprocessing.reductions import StorageWeakRef

_MOVE_NO_BYTE = {"aten::set_", "aten::resize_", "aten::as_strided_", "aten::transpose_", "aten::t_", "aten::squeeze_"}


@dataclass
class _Allocation:
    """Uninitialized memory.

    Attributes:
        storage: keeps the memory, so that no other allocation gets its address.
        written: [bytes] bool, True if anything has written the byte.
        by_torch: [bytes] bool, True if torch has written the byte; None if torch has written none.
    """

    storage: torch.UntypedStorage
    written: torch.Tensor
    by_torch: torch.Tensor | None = None


class Unwritten(EagerMode):
    """A mode that notes the memory that torch allocates uninitialized, and the bytes of it that torch writes."""

    def __init__(self) -> None:
        super().__init__()
        self._allocated: dict[int, _Allocation] = {}

    def __enter__(self) -> "Unwritten":
        for reference, by_torch in _kept:
            if not reference.expired():
                storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
                written = torch.zeros(storage.nbytes(), dtype=torch.bool) if by_torch is None else by_torch.clone()
                self._allocated[storage.data_ptr()] = _Allocation(storage, written, by_torch)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        kept = [(StorageWeakRef(each.storage), each.by_torch) for each in self._allocated.values()]
        self._allocated.clear()
        _kept[:] = [(reference, by_torch) for reference, by_torch in kept if not reference.expired()]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ALLOCATE:
            storage = result.untyped_storage()
            if address := storage.data_ptr():  # a tensor on the meta device has a size, and no memory
                self._allocated[address] = _Allocation(storage, torch.zeros(storage.nbytes(), dtype=torch.bool))
        elif func._schema.is_mutable and func._schema.name not in _MOVE_NO_BYTE:
            for tensor in _written_by(func._schema, args, kwargs or {}):
                if (found := self._allocated.get(tensor.untyped_storage().data_ptr())) is not None:
                    if found.by_torch is None:
                        found.by_torch = torch.zeros_like(found.written)
                    for of_bytes in (found.written, found.by_torch):
                        _of_elements(of_bytes, tensor).fill_(True)
        return returned(result)

    def written(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """[*shape, bytes of an element] bool, a view: whether each byte of a tensor was written.

        None: the tensor's memory was not allocated uninitialized while such a mode was on.
        """
        found = self._allocated.get(tensor.untyped_storage().data_ptr())
        return None if found is None else _of_elements(found.written, tensor)


_kept: list[tuple[StorageWeakRef, torch.Tensor | None]] = []
"""Memory of the last call that may still be in use, with the bytes that torch has written."""


def _of_elements(of_bytes: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The notes about a storage's bytes, by the elements of a tensor: [*shape, bytes of an element]."""
    size = tensor.element_size()
    strides = [step * size for step in tensor.stride()]
    return of_bytes.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)


def _written_by(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[torch.Tensor]:
    """The tensors that an operation writes. Copying memory onto itself, as the interpreter does after a launch, writes none."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    if schema.name == "aten::copy_" and given["self"].data_ptr() == given["src"].data_ptr():
        return ()
    written = (given.get(each.name) for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write)
    return chain.from_iterable([value] if isinstance(value, torch.Tensor) else value or () for value in written)

"""Memory that a call allocates uninitialized, and which of its bytes have been written."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from attn_fuzz.interpreted.eager import EagerMode

_ALLOCATE = {
    *("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::empty_permuted"),
    *("aten::new_empty", "aten::new_empty_strided"),
}
_MOVE_NO_BYTE = {"aten::set_", "aten::resize_", "aten::as_strided_", "aten::transpose_", "aten::t_", "aten::squeeze_"}


class Unwritten(EagerMode):
    """While this mode is on, it notes what torch allocates uninitialized, and what torch writes of it.

    The mode keeps these allocations, so that no other allocation gets the address of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allocated: dict[int, tuple[torch.UntypedStorage, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in _ALLOCATE:
            storage = result.untyped_storage()
            if address := storage.data_ptr():  # a tensor on the meta device has a size, and no memory
                self._allocated[address] = storage, torch.zeros(storage.nbytes(), dtype=torch.bool)
        elif func._schema.is_mutable and func._schema.name not in _MOVE_NO_BYTE:
            for tensor in _written_by(func._schema, args, kwargs or {}):
                if (written := self.written(tensor)) is not None:
                    written.fill_(True)
        return result

    def written(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """[*shape, bytes of an element] bool, a view: whether each byte of a tensor was written.

        None: the tensor's memory was not allocated uninitialized while the mode was on.
        """
        storage, size = tensor.untyped_storage(), tensor.element_size()
        if storage.data_ptr() not in self._allocated:
            return None
        of_bytes = self._allocated[storage.data_ptr()][1]
        strides = [step * size for step in tensor.stride()]
        return of_bytes.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)


def _written_by(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[torch.Tensor]:
    """The tensors that an operation writes. Copying memory onto itself, as the interpreter does after a launch, writes none."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    if schema.name == "aten::copy_" and given["self"].data_ptr() == given["src"].data_ptr():
        return ()
    written = (given.get(each.name) for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write)
    return chain.from_iterable([value] if isinstance(value, torch.Tensor) else value or () for value in written)

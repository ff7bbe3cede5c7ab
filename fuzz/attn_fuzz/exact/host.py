"""What the host does with floats beside launching kernels: torch's operations while a call is followed.

An operation that moves floats takes their elements along. An operation that computes floats, or rounds them, breaks the chain:
if it reads what a kernel has stored, the call is refused by the operation's name. What it makes of other floats may be read by
a kernel only if it is one number, which is then read as a product of named quantities (`attn_fuzz.exact.quantities`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from attn_fuzz.exact.memory import Memory
from attn_fuzz.exact.refusal import NotCarriedError
from torch.utils._python_dispatch import TorchDispatchMode

_COPIES = {"aten::copy_", "aten::clone", "aten::_to_copy"}
_MAKES_NO_FLOAT = {
    *("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::empty_permuted", "aten::new_empty"),
    *("aten::new_empty_strided", "aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::ones", "aten::ones_like"),
    *("aten::new_ones", "aten::full", "aten::full_like", "aten::new_full", "aten::fill_", "aten::zero_", "aten::resize_"),
    *("aten::set_", "aten::cat", "aten::stack", "aten::index_select", "aten::index", "aten::repeat", "aten::neg", "aten::abs"),
    *("aten::scalar_tensor", "aten::lift_fresh", "aten::gather", "aten::where", "aten::arange", "aten::detach"),
}
"""Operations whose floats are constants, or floats of their arguments, of either sign."""


class Host(TorchDispatchMode):
    """While this mode is on, it tells a call's memory what torch does with floats.

    The mode keeps all memory that is allocated, so that no other tensor gets the address of a tensor that is gone.

    Attributes:
        launches: whether a launch is running. The interpreter uses torch, too, and torch then computes nothing for the host.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self.launches = False
        self._kept: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.launches:
            return result
        name, given = func._schema.name, list(_tensors((args, kwargs or {})))
        made = [each for each in _tensors(result) if each.is_floating_point() and each.numel()]
        self._kept += [each.untyped_storage() for each in made]
        if not made or func.is_view or name == "aten::set_":
            if name == "aten::_local_scalar_dense" and self._memory.holds_elements(given[0]):
                raise NotCarriedError("torch's item() of what a kernel has stored")
            return result
        read = [each for each in given if self._memory.holds_elements(each)]
        if name in _COPIES:
            source, target = given[1 if name == "aten::copy_" else 0], made[0]
            if source.data_ptr() != target.data_ptr():
                self._copied(name, source, target, bool(read))
        elif reads := [each for each in read if not _is_output(each, made)]:
            raise NotCarriedError(f"torch's {name} of what a kernel has stored ({tuple(reads[0].shape)})")
        elif name not in _MAKES_NO_FLOAT and any(each.is_floating_point() for each in given):
            for each in made:
                self._memory.compute(each, name)
        return result

    def _copied(self, name: str, source: torch.Tensor, target: torch.Tensor, has_elements: bool) -> None:
        if has_elements:
            self._memory.copy(source.expand(target.shape), target)
        elif _rounds(source.dtype, target.dtype):
            self._memory.compute(target, f"{name} from {source.dtype} to {target.dtype}")
        else:
            self._memory.inherit(source, target)


def _is_output(tensor: torch.Tensor, made: list[torch.Tensor]) -> bool:
    return any(tensor is each for each in made)


def _rounds(source: torch.dtype, target: torch.dtype) -> bool:
    return source.is_floating_point and torch.promote_types(source, target) != target if source != target else False


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)

"""Floats on the host, beside launches of kernels: torch's operators while a call is followed.

An operator that moves floats takes their elements along. An operator that computes floats is carried if
`attn_fuzz.exact.operators` has it. The results of any other operator on computed numbers have no element: they may only decide
a maximum, and the reason names the operator. Integers that were made of computed numbers have no element either. Comparisons
are torch's own.
"""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from attn_fuzz.exact import elements
from attn_fuzz.exact.elements import Elements, as_floats, assembled
from attn_fuzz.exact.memory import Memory
from attn_fuzz.exact.movement import Movement
from attn_fuzz.exact.operators import CARRIED, DECIDES, FRESH, MOVES, UNKNOWN
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.interpreted.eager import EagerMode

_NUMBERS = frozenset({"self", "other", "alpha", "beta", "value", "min", "max", "exponent"})
"""The names of arguments that are numbers to compute with, if they are no tensors."""
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Host(EagerMode):
    """A mode that reports torch's operations on floats to a call's memory.

    The mode keeps all memory that is allocated, so that no other tensor gets the address of a tensor that is gone.

    Attributes:
        launches: True if a launch is running. The interpreter uses torch, too, and torch then computes nothing for the host.
    """

    def __init__(self, memory: Memory, quantities: Quantities) -> None:
        super().__init__()
        self._memory, self._quantities = memory, quantities
        self.launches = False
        self._kept: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.launches:
            return self._run(func, args, kwargs)
        if func.namespace != "aten":  # registered by Python code, which uses torch
            with self:
                return func.redispatch(_CPU, *args, **kwargs)
        if func._can_decompose():  # inside such code, torch does not decompose its composite operators by itself
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if func.is_view or name in UNKNOWN or _is_of_sizes_alone(args, kwargs):
            return self._run(func, args, kwargs)
        if name in FRESH:
            return self._fresh(func, args, kwargs)
        arguments = _by_name(func, args, kwargs)
        with np.errstate(all="ignore"):
            if name in MOVES and not arguments.get("accumulate") and not arguments.get("reduce"):
                return self._moved(name, func, args, kwargs)
            return self._computed(name, func, args, kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        self._kept += [each.untyped_storage() for each in _tensors(result)]
        return result

    def _fresh(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator whose results are plain floats: no element differs from its bits."""
        result = self._run(func, args, kwargs)
        self._memory.know(_tensors(result))
        return result

    def _moved(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that moves numbers, and move their elements."""
        given = list(_tensors((args, kwargs)))
        floats = given[0].is_floating_point() if name == "copy" else any(each.is_floating_point() for each in given)
        if name == "copy" and not floats and given[1].is_floating_point():
            self._cloud(name, [given[0]], self._read({"self": given[1]}))
            return self._run(func, args, kwargs)
        if all(map(self._is_itself, given)) and not (name == "copy" and _converts(given[1], given[0])):
            numbers = [self._quantities.element(each) for each in (*args, *kwargs.values()) if isinstance(each, float)]
            if not floats or _is_plain(numbers):
                return self._fresh(func, args, kwargs)
        block, computed = self._moved_elements(Movement(func, args, kwargs), floats)
        result = self._run(func, args, kwargs)
        self._memory.put(result, block, None if floats else computed)
        if cloud := next(filter(None, map(self._memory.cloud_of, given)), ""):
            self._memory.cloud(result, cloud)
        return result

    def _moved_elements(self, movement: Movement, floats: bool) -> tuple[Elements, np.ndarray]:
        """The elements that are moved, and a bool for each place, True where bits of elements are moved, both of the result's
        shape.

        Args:
            floats: True if floats are moved; False: the bits of floats.
        """
        shape, computed = movement.places.shape, np.zeros(movement.places.size, np.bool_)
        parts = [(np.arange(0), elements.of_floats(np.zeros(0)))]
        for here, source, index in movement.parts():
            block, computed[here] = self._elements_at(source, index, floats)
            parts.append((here, block))
        return assembled(computed.size, parts).reshape(shape), computed.reshape(shape)

    def _computed(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that computes, and compute with elements."""
        arguments = _by_name(func, args, kwargs)
        given = list(_tensors(arguments))
        read = self._read(arguments) if any(map(self._matters, given)) else None
        if name == "_local_scalar_dense" and not _is_plain((read or {}).values()):
            raise NotCarriedError("torch's item() of a computed number")
        result = self._run(func, args, kwargs)
        made = [each for each in _tensors([result, _written(func, arguments)]) if each.numel() and each.dtype != torch.bool]
        if read is None and any(each.is_floating_point() for each in made):
            read = self._read(arguments)
        if read is not None:
            floats = [each for each in made if each.is_floating_point()]
            for tensor in floats[:1]:
                self._memory.put(tensor, self._carried(name, read, result, tensor))
            for tensor in floats[1:]:
                self._memory.put(tensor, Elements(tensor.double().numpy(), lacks=f"torch's {name}"))
            if name not in DECIDES and (name not in CARRIED or not floats):
                self._cloud(name, [each for each in made if not each.is_floating_point()], read)
        return result

    def _carried(self, name: str, read: dict[str, Any], result: Any, tensor: torch.Tensor) -> Elements:
        """The elements of an operator's first result."""
        numbers = tensor.detach().double().numpy()
        if name in CARRIED:
            try:
                return CARRIED[name](SimpleNamespace(**read, result=result))
            except NotCarriedError as error:
                return Elements(numbers, lacks=str(error))
        if _is_plain(read.values()):
            found = self._quantities.elements(numbers.ravel()).reshape(numbers.shape)
            if not found.lacks:
                return found
        return Elements(numbers, lacks=f"what torch's {name} has computed")

    def _cloud(self, name: str, integers: list[torch.Tensor], read: dict[str, Any]) -> None:
        if not _is_plain(read.values()):
            for tensor in integers:
                self._memory.cloud(tensor, f"integers that torch's {name} has made of computed numbers")

    def _matters(self, tensor: torch.Tensor) -> bool:
        """True if a tensor holds floats, or integers made of computed numbers."""
        return tensor.is_floating_point() or not self._is_itself(tensor)

    def _is_itself(self, tensor: torch.Tensor) -> bool:
        if tensor.is_floating_point():
            return self._memory.is_itself(tensor)
        return not self._memory.holds_elements(tensor) and not self._memory.cloud_of(tensor)

    def _elements_at(self, source: torch.Tensor | float, index: np.ndarray, floats: bool) -> tuple[Elements, np.ndarray]:
        """The elements [n] that an operator moves from places [n], and a bool [n], True where bits of elements are moved."""
        none = np.zeros(len(index), np.bool_)
        if not isinstance(source, torch.Tensor):
            return self._quantities.element(float(source)).broadcast((len(index),)), none
        if not floats:
            return self._memory.stored_at(source, index)
        if source.is_floating_point():
            return self._memory.elements_at(source, index), none
        return self._numbers(source).reshape(-1)[index], none

    def _numbers(self, tensor: torch.Tensor) -> Elements:
        """The elements of a tensor's numbers, of its shape."""
        if tensor.is_floating_point():
            return self._memory.elements(tensor)
        found = elements.of_integers(tensor.detach().numpy())
        if self._is_itself(tensor):
            return found
        return Elements(found.order, lacks=self._memory.cloud_of(tensor) or "the bits of computed numbers")

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of an operator with elements in place of tensors and of numbers to compute with."""

        def of(name: str, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return self._numbers(value)
            if isinstance(value, list | tuple) and value and all(isinstance(each, torch.Tensor) for each in value):
                return [self._numbers(each) for each in value]
            if name in _NUMBERS and isinstance(value, int | float):
                return self._quantities.element(float(value)).reshape(())
            return value

        return {name: of(name, value) for name, value in arguments.items()}


def _by_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operator's arguments by the names of its schema, defaults included."""
    schema = func._schema.arguments
    names = [argument.name for argument in schema]
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _written(func: Any, arguments: dict[str, Any]) -> list[Any]:
    """Arguments that an operator without a result writes into."""
    written = [each for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    return [] if func._schema.returns else [arguments[each.name] for each in written]


def _is_of_sizes_alone(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True if an operator's result is on the meta device, where tensors hold nothing."""
    return str(kwargs.get("device")) == "meta" or any(each.is_meta for each in _tensors((args, kwargs)))


def _is_plain(read: Iterable[Any]) -> bool:
    """True if nothing that an operator reads was computed."""
    blocks = [each for value in read for each in (value if isinstance(value, list) else [value])]
    return all(as_floats(each) is not None for each in blocks if isinstance(each, Elements))


def _converts(source: torch.Tensor, target: torch.Tensor) -> bool:
    """True if a copy may round, or makes floats of integers."""
    if source.is_floating_point() != target.is_floating_point():
        return True
    return source.dtype != target.dtype and torch.promote_types(source.dtype, target.dtype) != target.dtype


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)

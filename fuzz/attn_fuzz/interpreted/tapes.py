"""Tapes of operations of Triton's language: lists of the builder's methods that they call, to be called at once.

An operation goes through hundreds of lines of Python that look at the types of its operands. Then it calls a few methods of
the builder, which compute. Operands of the same types and the same constants lead to the same methods. So the methods are
noted when an operation first meets its operands' types, and called at once from then on.

An operation runs without a tape where a tape could miss something: if an operand is neither a tensor nor a plain value, or if a
block is made without the builder.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_TAPES = 1 << 14
"""The number of an operation's tapes at which all are forgotten: kernels may have any number of constants."""
_FOLDED = ("create_make_range", "create_splat", "create_expand_dims")
"""Methods that make a constant of constants, beside those named `get_...`."""
_PLAIN = (int, bool, str, type(None))
in_use = True
"""True if this process uses tapes. Exact mode does not, because its constants belong to a call."""


class _Step(NamedTuple):
    """A method of the builder, and its operands. `places` are those of blocks: their positions and the blocks' numbers."""

    method: str
    operands: tuple[Any, ...]
    places: tuple[tuple[int, int], ...]
    named: dict[str, Any]


class _Tape(NamedTuple):
    """The steps of an operation, and its result, made of the tensors that it is given and of all blocks by number."""

    steps: list[_Step]
    result: Callable[[list[Any], list[Any]], Any]

    def play(self, builder: Any, tensors: list[Any]) -> Any:
        blocks = [tensor.handle for tensor in tensors]
        for method, constants, places, named in self.steps:
            operands = [*constants]
            for position, number in places:
                operands[position] = blocks[number]
            blocks.append(getattr(builder, method)(*operands, **named))
        return self.result(tensors, blocks)


class _UnknownError(Exception):
    """A tape could not tell what an operation does."""


def taped(function: Callable[..., Any], interpreter: Any) -> Callable[..., Any]:
    """An operation of the language as a kernel calls it, of Triton's module `triton.runtime.interpreter`."""
    semantic, tensor = interpreter.interpreter_semantic, interpreter.tl.tensor
    tapes: dict[Any, _Tape | None] = {}

    def operation(*operands: Any, **named: Any) -> Any:
        asking = named.get("_semantic")
        if not in_use or asking is not None:
            named["_semantic"] = asking or semantic
            return function(*operands, **named)
        tensors: list[Any] = []
        try:
            kinds: list[Any] = []
            for operand in operands:
                if type(operand) is tensor:
                    tensors.append(operand)
                    kinds.append(operand.type.name)
                else:
                    kinds.append(_kind(operand, tensors, interpreter.tl))
            for name, operand in named.items():
                kinds += name, _kind(operand, tensors, interpreter.tl)
            key = tuple(kinds)
        except _UnknownError:
            return function(*operands, **named, _semantic=semantic)
        if key in tapes:
            tape = tapes[key]
            if tape is None:
                return function(*operands, **named, _semantic=semantic)
            return tape.play(semantic.builder, tensors)
        if len({id(each.handle) for each in tensors}) < len(tensors):  # steps would take one of two operands for the other
            return function(*operands, **named, _semantic=semantic)
        if len(tapes) == MAX_TAPES:
            tapes.clear()
        recorder = _Recorder(interpreter, tensors)
        result = function(*operands, **named, _semantic=type(semantic)(recorder))
        tapes[key] = recorder.tape(result)
        return result

    return operation


def _kind(operand: Any, tensors: list[Any], tl: Any) -> Any:
    """The kind of an operand for an operation: the type of a tensor, or the constant. Tensors are added to the list.

    Raises:
        _UnknownError: it is something else.
    """
    kind = type(operand)
    if kind is tl.tensor:
        tensors.append(operand)
        return operand.type.name
    if kind in _PLAIN:
        return kind, operand
    if kind is float:
        return kind, operand.hex()  # 0.0 is not -0.0
    if kind is tl.constexpr:
        return kind, _kind(operand.value, tensors, tl)
    if isinstance(operand, tl.dtype):
        return kind, operand.name
    if kind is slice:
        operand = (operand.start, operand.stop, operand.step)
    elif kind not in (tuple, list):
        raise _UnknownError
    return kind, *(_kind(each, tensors, tl) for each in operand)


class _Recorder:
    """Stands for the builder while an operation runs, and notes the methods that it calls.

    Args:
        interpreter: Triton's module.
        tensors: the tensors that the operation gets.
    """

    def __init__(self, interpreter: Any, tensors: list[Any]) -> None:
        self._interpreter = interpreter
        self._tensors = tensors
        self._blocks = [tensor.handle for tensor in tensors]
        self._constants: list[Any] = []
        self._steps: list[_Step] = []
        self._is_known = True

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._interpreter.interpreter_builder, name)
        if not inspect.ismethod(member):
            return member

        def method(*operands: Any, **named: Any) -> Any:
            result = member(*operands, **named)
            if not isinstance(result, self._interpreter.tl.dtype):
                self._note(_Step(name, operands, (), named), result)
            return result

        return method

    def tape(self, result: Any) -> _Tape | None:
        """The tape of the operation that has run, or None if a tape would miss something."""
        try:
            return _Tape(self._steps, self._returning(result)) if self._is_known else None
        except _UnknownError:
            return None

    def _note(self, step: _Step, result: Any) -> None:
        try:
            numbers = [self._number(operand) for operand in step.operands]
            for operand in step.named.values():
                if self._number(operand) is not None:
                    raise _UnknownError
        except _UnknownError:
            self._is_known = False
            return
        places = tuple((position, number) for position, number in enumerate(numbers) if number is not None)
        if not places and (step.method.startswith("get_") or step.method in _FOLDED):
            self._constants.append(result)
            return
        self._blocks.append(result)
        self._steps.append(step._replace(places=places))

    def _number(self, operand: Any) -> int | None:
        """The number of a block; None for a constant."""
        for number, block in enumerate(self._blocks):
            if block is operand and block is not None:
                return number
        if any(constant is operand for constant in self._constants):
            return None
        if type(operand).__module__ == self._interpreter.__name__:
            raise _UnknownError  # a block from elsewhere
        if isinstance(operand, tuple | list) and any(self._number(each) is not None for each in operand):
            raise _UnknownError
        return None

    def _returning(self, result: Any) -> Callable[[list[Any], list[Any]], Any]:
        for place, tensor in enumerate(self._tensors):
            if tensor is result:
                return lambda tensors, blocks: tensors[place]
        kind, tensor = type(result), self._interpreter.tl.tensor
        if kind is tensor:
            block, of_type, number = result.handle, result.type, self._number(result.handle)
            if number is None:
                return lambda tensors, blocks: tensor(block, of_type)
            return lambda tensors, blocks: tensor(blocks[number], of_type)
        if kind in (tuple, list, self._interpreter.tl.tuple):
            parts = [self._returning(part) for part in result]
            return lambda tensors, blocks: kind([part(tensors, blocks) for part in parts])
        if kind in _PLAIN:
            return lambda tensors, blocks: result
        raise _UnknownError

"""Branches, loops and returns of programs that run together: what a rewritten kernel calls.

`attn_fuzz.interpreted.together.rewriting` shows the calls. Where all active programs go the same way, Python goes it.
Where they part, both ways run, one after the other. The programs that take a way are active in it: they alone access
memory. After it, a variable that was assigned there has the new value for these programs, and the old value for the
others.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attn_fuzz.errors import RefusedByTritonError
from attn_fuzz.interpreted.together import running
from attn_fuzz.interpreted.together.running import FewerError, Lanes, apart, both, common


class _Undefined:
    """The value of a variable that is not assigned, or that has blocks of two types, which compiled code refuses to use."""


UNDEFINED = _Undefined()


def branch(test: Any) -> "_Common | _Parting":
    """An `if` of this test.

    Raises:
        TypeError: the test is a block, whose truth compiled code refuses.
    """
    if not _is_tensor(test):
        return _TAKEN if test else _PASSED
    truth = truths(test)
    one = common(truth)
    if one is None:
        return _Parting(truth)
    return _TAKEN if one else _PASSED


class _Common:
    """An `if` that all active programs take alike."""

    diverges = False

    def __init__(self, taken: bool) -> None:
        self.taken = taken

    def then(self) -> bool:
        return self.taken

    def otherwise(self) -> bool:
        return not self.taken

    def end(self) -> None:
        pass


_TAKEN, _PASSED = _Common(True), _Common(False)


class _Merging:
    """A part of a kernel that some of the active programs run."""

    diverges = True
    lanes: Lanes

    def before(self, variables: dict[str, Any], names: tuple[str, ...]) -> None:
        """Keep the variables that the part may assign."""
        self._kept = {name: variables[name] for name in names if name in variables}

    def merged(self, variables: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
        """The variables after the part: the new values for the programs that have run it."""
        return tuple(
            _merged(self.lanes, self._kept.get(name, UNDEFINED), variables.get(name, UNDEFINED), name) for name in names
        )


class _Parting(_Merging):
    """An `if` at which the active programs part.

    Args:
        truth: [programs] bool, of the test.
    """

    def __init__(self, truth: np.ndarray) -> None:
        self._entry = running.current.active
        self._truth = truth

    def _run(self, lanes: Lanes) -> bool:
        self.lanes = running.current.active = lanes
        return True

    def then(self) -> bool:
        return self._run(both(self._entry, self._truth))

    def otherwise(self) -> bool:
        return self._run(both(self._entry, ~self._truth))

    def end(self) -> None:
        running.current.active = both(self._entry, _live())


def either(test: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """`first() if test else second()`"""
    parting = branch(test)
    if isinstance(parting, _Common):
        return first() if parting.taken else second()
    parting.then()
    chosen, lanes = first(), parting.lanes
    parting.otherwise()
    other = second()
    parting.end()
    return _merged(lanes, other, chosen, "a conditional expression")


def loop(*bounds: Any, **named: Any) -> "_Alike | _Turns":
    """`range(...)`, `tl.range(...)` or `tl.static_range(...)`. What `tl.range` says of pipelining changes no result."""
    start, stop, step = _three(*bounds, **{name: named[name] for name in ("arg1", "arg2", "step") if name in named})
    first, last, by = (_integer(bound) for bound in (start, stop, step))
    if first is not None and last is not None and by is not None:
        return _Alike(range(first, last, by))
    return _Turns(*(_integers(bound) for bound in (start, stop, step)), dtype=_widest(start, stop, step))


def _three(arg1: Any, arg2: Any = None, step: Any = 1) -> tuple[Any, Any, Any]:
    step = 1 if step is None else step
    return (0, arg1, step) if arg2 is None else (arg1, arg2, step)


class _Alike:
    """A loop of which all active programs run all turns, with the same numbers."""

    diverges = False

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


class _Looping(_Merging):
    """A loop. Of the variables that a turn assigns, the next one is handed those that are defined before the loop."""

    _handed: tuple[str, ...] | None = None

    def before(self, variables: dict[str, Any], names: tuple[str, ...]) -> None:
        if self._handed is None:
            self._handed = tuple(name for name in names if name in variables)
        super().before(variables, self._handed)


class _Turns(_Looping):
    """A loop with numbers of their own for the active programs, which end it after turns of their own.

    Args:
        start, stop, step: [programs] or [1] int64.
        dtype: Triton's type of the number.
    """

    def __init__(self, start: np.ndarray, stop: np.ndarray, step: np.ndarray, dtype: Any) -> None:
        self._start, self._step, self._dtype = start, step, dtype
        self._turns = np.broadcast_to(np.maximum(-((start - stop) // step), 0), running.current.count)

    def __iter__(self) -> Iterator[Any]:
        entry = running.current.active
        turns = self._turns if entry is None else self._turns[entry]
        for turn in range(turns.max(initial=0)):
            lanes = both(both(entry, self._turns > turn), _live())
            assert lanes is not None
            if not lanes.any():
                break
            self.lanes = running.current.active = None if lanes.all() else lanes
            yield _tensor(self._start + turn * self._step, self._dtype)
        running.current.active = both(entry, _live())


def while_loop() -> "_While":
    """A `while`."""
    return _While()


class _While(_Looping):
    """A `while` of which the active programs run turns of their own."""

    def __init__(self) -> None:
        self._entry = running.current.active
        self.diverges = False

    def goes_on(self, test: Any) -> bool:
        """True if a program runs a turn, by the test of the active ones."""
        parting = branch(test)
        if isinstance(parting, _Common):
            if not parting.taken or not self._anybody():
                running.current.active = both(self._entry, _live())
                return False
        else:
            parting.then()
            self.diverges = True
        self.lanes = running.current.active
        return True

    @staticmethod
    def _anybody() -> bool:
        return running.current.active is None or bool(running.current.active.any())


def frame() -> "_Frame":
    """A function begins that may return for some of the active programs and go on for others."""
    return _Frame(is_kernel=sys._getframe(1).f_code is running.current.code)


class _Frame:
    """The run of such a function.

    Attributes:
        live: the programs that have not returned.
    """

    def __init__(self, is_kernel: bool) -> None:
        self._entry = self.live = running.current.active
        self._value: Any = UNDEFINED
        self._is_kernel = is_kernel
        running.current.frames.append(self)

    def returns(self, value: Any) -> bool:
        """Return a value for the active programs. Returns whether no program is left.

        Raises:
            FewerError: programs of a kernel are left, and no program has stored.
        """
        lanes = running.current.active
        self._value = _merged(lanes, self._value, value, "a returned value")
        rest = self._rest(lanes)
        if not rest.any():
            return True
        if self._is_kernel and not running.current.has_stored:
            raise FewerError(rest)
        self.live = rest
        running.current.active = np.zeros_like(rest)
        return False

    def _rest(self, lanes: Lanes) -> np.ndarray:
        everybody = np.ones(running.current.count, np.bool_) if self.live is None else self.live
        return np.zeros_like(everybody) if lanes is None else everybody & ~lanes

    def result(self) -> Any:
        """The function's result, where no program is left."""
        running.current.frames.pop()
        running.current.active = self._entry
        return self._value

    def ends(self, value: Any) -> Any:
        """The function's result, where the active programs return a value at its end."""
        self._value = _merged(running.current.active, self._value, value, "a returned value")
        return self.result()


def _live() -> Lanes:
    frames = running.current.frames
    return frames[-1].live if frames else None


def least(*operands: Any) -> Any:
    """Python's `min`, which compiled code takes for `tl.minimum` of tensors."""
    return _by_pairs("minimum", min, operands)


def most(*operands: Any) -> Any:
    """Python's `max`, which compiled code takes for `tl.maximum` of tensors."""
    return _by_pairs("maximum", max, operands)


def _by_pairs(name: str, of_python: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    if not any(map(_is_tensor, operands)):
        return of_python(*operands)
    import triton.language as tl

    found, *others = operands
    for other in others:
        found = getattr(tl, name)(found, other)
    return found


def truths(tensor: Any) -> np.ndarray:
    """The truth of a scalar, [programs], or [1] for all of them.

    Raises:
        RefusedByTritonError: the tensor is a block of several elements, whose truth compiled code refuses.
    """
    data = tensor.handle.data
    if data.size != len(data):
        raise RefusedByTritonError(f"the truth of a block of {data.size // len(data)} elements: compiled code refuses it")
    return np.asarray(data.reshape(-1)).astype(np.bool_)


def truth(tensor: Any) -> bool:
    """The truth of a scalar that all active programs share.

    Raises:
        ApartError: they do not share it.
    """
    found = common(truths(tensor))
    if found is None:
        raise apart("the truth of a tensor, which differs among programs")
    return bool(found)


def index(tensor: Any) -> int:
    """The integer that all active programs share.

    Raises:
        ApartError: they do not share it.
    """
    found = common(tensor.handle.data.reshape(-1))
    if found is None:
        raise apart("an integer of Python, which differs among programs")
    return int(found)


def _integer(bound: Any) -> int | None:
    """A bound of a loop, or None if programs have different ones."""
    if not _is_tensor(bound):
        try:
            return int(bound)
        except (TypeError, ValueError) as error:
            raise RefusedByTritonError(f"a loop up to {bound!r}: {error}") from None
    found = common(bound.handle.data.reshape(-1))
    return None if found is None else int(found)


def _integers(bound: Any) -> np.ndarray:
    return bound.handle.data.reshape(-1).astype(np.int64) if _is_tensor(bound) else np.array([int(bound)])


def _widest(*bounds: Any) -> Any:
    import triton.language as tl

    widest = max((bound.dtype for bound in bounds if _is_tensor(bound)), key=lambda dtype: dtype.primitive_bitwidth)
    return widest if widest.primitive_bitwidth > 32 else tl.int32


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "handle") and hasattr(value.handle, "data")


def _tensor(numbers: np.ndarray, dtype: Any) -> Any:
    import triton.language as tl
    from triton.runtime import interpreter

    return tl.tensor(interpreter.TensorHandle(numbers.astype(interpreter._get_np_dtype(dtype)), dtype), dtype)


def _merged(lanes: Lanes, old: Any, new: Any, what: str) -> Any:
    """The new value for some of the programs, and the old value for the others. Blocks of two types have no value in common.

    Raises:
        ApartError: the two are values of Python that differ.
    """
    if new is old or lanes is None or old is UNDEFINED:
        return new
    if new is UNDEFINED:
        return old
    old, new = _as_tensor(old), _as_tensor(new)
    if _is_tensor(new) and _is_tensor(old):
        return _selected(lanes, old, new) if new.type == old.type else UNDEFINED
    if isinstance(new, tuple) and isinstance(old, tuple) and len(new) == len(old):
        merged = [_merged(lanes, *pair, what) for pair in zip(old, new, strict=True)]
        return type(new)(*merged) if hasattr(new, "_fields") else type(new)(merged)  # a NamedTuple takes its fields apart
    if type(new) is not type(old) or new != old:
        raise apart(f"{what}: {old} for some programs, {new} for others")
    return new


def _as_tensor(value: Any) -> Any:
    """A number as compiled code takes it where programs part; anything else as it is."""
    from triton.runtime import interpreter

    value = getattr(value, "value", value)  # of a constexpr
    return interpreter.interpreter_semantic.to_tensor(value) if isinstance(value, int | float) else value


def _selected(lanes: np.ndarray, old: Any, new: Any) -> Any:
    import triton.language as tl
    from triton.runtime import interpreter

    rank = max(new.handle.data.ndim, old.handle.data.ndim)
    chosen = interpreter.TensorHandle(lanes.reshape(-1, *[1] * (rank - 1)), tl.int1)
    handle = interpreter.interpreter_builder.create_select(chosen, new.handle, old.handle)
    return tl.tensor(handle, new.type)

"""Runs the programs of an interpreted launch, many of them together.

Triton's interpreter runs a kernel's Python once for each program, and spends nearly all of its time on the Python. Here
the Python runs once for many programs. `attn_fuzz.interpreted.together.control` says how they part and meet again.

If programs return before any program has stored, the others begin again without them. So no place is taken by a program
that does nothing. If a run of several programs raises, memory is given back what it held, and the programs run one by
one. If the reason is that they cannot run together, so do the programs of each later launch of the kernel. If it is an
error of a program, this program raises it again, and is the one to be named. If no program raises it again, running them
together was wrong: `apart` says so, and later launches run one by one.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attn_fuzz.errors import RefusedByTritonError
from attn_fuzz.interpreted import launched, program_order, sanitizer
from attn_fuzz.interpreted.together import running
from attn_fuzz.interpreted.together.running import FewerError, Running

apart: dict[Any, str] = {}
"""The reasons why the programs of a kernel run one by one, by the kernel's code."""


def launching(interpreter: Any) -> Callable[..., None]:
    """A replacement of `GridExecutor.__call__` of Triton's module `triton.runtime.interpreter`."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        launched.count(self.fn)
        taken = _parameters(self.fn)
        kwargs = {name: value for name, value in kwargs.items() if name in taken}
        host_args, host_kwargs = self._init_args_hst(args, kwargs)
        for hook in self.pre_run_hooks:
            hook(*host_args, **host_kwargs)
        language = interpreter._patch_lang(self.fn)
        try:
            named = {**dict(zip(taken, host_args, strict=False)), **host_kwargs}
            if not len(named) == len(taken) == len(host_args) + len(host_kwargs):  # there are defaults, or it raises
                named = inspect.getcallargs(self.fn, *host_args, **host_kwargs)
            types = _integers(self.fn)
            named = {
                name: arg if name in self.constexprs else _converted(interpreter, arg, types.get(name))
                for name, arg in named.items()
            }
            grid: Any = self.grid(named) if callable(self.grid) else self.grid
            try:
                _run(interpreter.interpreter_builder, self.fn, named, _dims(grid))
            except Exception as error:
                raise interpreter.InterpreterError(repr(error)) from error
        finally:
            language.restore()
        self._restore_args_dev(args, host_args, kwargs, host_kwargs)

    return launch


@functools.cache
def _parameters(kernel: Callable[..., Any]) -> tuple[str, ...]:
    taken = inspect.getfullargspec(kernel)
    return (*taken.args, *taken.kwonlyargs)


@functools.cache
def _integers(kernel: Callable[..., Any]) -> dict[str, str]:
    """The types of the parameters that are declared as integers, such as strides of tl.int64."""
    from triton.runtime.jit import _normalize_ty

    declared = {name: str(_normalize_ty(given)) for name, given in inspect.get_annotations(kernel).items()}
    return {name: given for name, given in declared.items() if re.fullmatch("[iu](8|16|32|64)", given)}


def _converted(interpreter: Any, argument: Any, declared: str | None) -> Any:
    """An argument as a kernel meets it. Triton's interpreter gives an int the narrowest type, whatever is declared."""
    if declared is None or type(argument) is not int:
        return interpreter._implicit_cvt(argument)
    dtype = interpreter.tl.str_to_ty(declared, None)
    return interpreter.tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=dtype.name), dtype), dtype)


def _dims(grid: Sequence[int]) -> tuple[int, int, int]:
    if len(grid) > 3:
        raise RefusedByTritonError("grid must have at most 3 dimensions")
    x, y, z = (*grid, *[1] * (3 - len(grid)))
    return x, y, z


def _run(builder: Any, kernel: Callable[..., Any], arguments: dict[str, Any], grid: tuple[int, int, int]) -> None:
    """Run all programs of a launch, in the order of `program_order`."""
    builder.set_grid_dim(*grid)
    indices = _indices(grid)
    waiting, begun, failed, why = program_order.order(len(indices)), [], [], ""
    while waiting or begun or failed:
        at_once = 1 if failed or kernel.__code__ in apart else running.at_once
        queue = failed or (waiting if waiting and len(begun) < at_once else begun)
        chosen = queue[:at_once]
        del queue[:at_once]
        running.current = Running(indices[chosen], kernel.__code__)
        builder.set_grid_idx(*map(int, indices[chosen[0]]))
        watch = None if sanitizer.checks == "nothing" else sanitizer.current
        if watch is not None:
            watch.programs(indices[chosen], grid)
        try:
            kernel(**arguments)
        except FewerError as fewer:
            begun[:0] = [place for place, rests in zip(chosen, fewer.rest, strict=True) if rests]
        except Exception as error:
            if len(chosen) == 1 or (watch is not None and watch.violation is not None):
                raise
            why = running.current.refusal or f"they raised together, and alone none did: {error!r}"
            builder.undo()
            failed = chosen
        else:
            if why and not failed:
                apart[kernel.__code__] = why


def _indices(grid: tuple[int, int, int]) -> np.ndarray:
    """The indices of all programs, [programs, 3] int32, the last axis of the grid fastest."""
    axes = np.meshgrid(*(np.arange(size, dtype=np.int32) for size in grid), indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=-1)

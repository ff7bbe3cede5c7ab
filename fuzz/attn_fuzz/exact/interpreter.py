"""Exact mode's parts of Triton's interpreter, for a process that interprets kernels and nothing else."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from attn_fuzz.exact import algebra, builder, followed_call, functions
from attn_fuzz.exact.elements import Elements
from attn_fuzz.interpreted import accesses, interpreter, reductions
from attn_fuzz.interpreted.together import blocks

_INSTALLED = "follows_elements"


def install() -> None:
    """Have interpreted kernels compute with elements while a call is followed, for the life of this process.

    Call it before `attn_fuzz.interpreted.accesses.install`, whose checks then come first.

    Raises:
        RuntimeError: this Triton's interpreter has not the parts that are replaced.
    """
    interpreter.install()
    triton: Any = importlib.import_module("triton.runtime.interpreter")
    replaced = triton.InterpreterBuilder
    if getattr(replaced, _INSTALLED, False):
        return
    for name, method in builder.methods(triton).items():
        blocks.replace(replaced, name, followed_call.while_followed(method, blocks.method(replaced, name)))
    reduce, scan, function = triton.ReduceOps.apply_impl, triton.ScanOps.apply_impl, triton.InterpretedFunction.__call__
    triton.ReduceOps.apply_impl = followed_call.while_followed(_reduced(triton, reduce), reduce)
    triton.ScanOps.apply_impl = followed_call.while_followed(scan, scan)
    triton.InterpretedFunction.__call__ = followed_call.while_followed(functions.calling(triton, function), function)
    executor = triton.GridExecutor
    executor.__call__ = _launching(executor.__call__)
    executor._init_args_hst = _knowing_memory(executor._init_args_hst)
    setattr(replaced, _INSTALLED, True)


def _reduced(triton: Any, method: Any) -> Callable[..., Any]:
    """`ReduceOps.apply_impl`, in which sums and maxima of elements are computed at once."""
    standard = triton.tl.standard
    at_once = {
        id(standard._elementwise_max): algebra.largest,
        id(standard._elementwise_min): algebra.smallest,
        id(standard._sum_combine): algebra.sum_of,
    }

    def apply(self: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        block, function = inputs[0].handle.data, at_once.get(id(self.combine_fn))
        if function is None or not isinstance(block, Elements):
            return method(self, inputs)
        [block], axis, reduced_axes = reductions.along(self.axis, [block])
        result = function(block, axis)
        if self.keep_dims:
            result = np.expand_dims(result, reduced_axes)
        return (self.to_tensor(result, inputs[0].dtype),)

    return apply


def _launching(method: Any) -> Callable[..., Any]:
    def launch(self: Any, *arguments: Any, **named: Any) -> Any:
        if followed_call.current is None:
            return method(self, *arguments, **named)
        followed_call.current.host.launches = True
        try:
            return method(self, *arguments, **named)
        finally:
            followed_call.current.host.launches = False

    return launch


def _knowing_memory(init_args_hst: Any) -> Callable[..., Any]:
    def init(executor: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = init_args_hst(executor, args, kwargs)
        if followed_call.current is not None:
            named = {**dict(enumerate(host_args)), **host_kwargs}
            followed_call.current.memory.note(tensor for _, tensor in accesses.tensors_of(named))
        return host_args, host_kwargs

    return init

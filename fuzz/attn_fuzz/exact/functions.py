"""Functions of kernels that compute a named function by steps that exact mode cannot follow, such as a series.

While a call is followed, the named function is computed in their place. So exact mode does not see a fault inside of them: the
judge does, and so do their own tests.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from attn_fuzz.exact import algebra, call
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.builder import elements_of

Original = Callable[..., Any]


def _tanh(interpreter: Any, original: Original, x: Any) -> Any:
    """A function that returns tanh(x)."""
    return _like(interpreter, x, algebra.tanh(elements_of(x.handle)))


def _stored(interpreter: Any, original: Original, values: Any, *arguments: Any) -> Any:
    """A function that rounds numbers to bits of a cache or an output: the element stays, and the bits are those of its order."""
    held = elements_of(values.handle)
    floats = interpreter.TensorHandle(held.order.astype(np.float32), interpreter.tl.float32)
    with call.following(None):
        rounded = original(interpreter.tl.tensor(floats, values.type), *arguments)
    if rounded.dtype == values.dtype:
        return values
    return interpreter.tl.tensor(
        interpreter.TensorHandle(replace(held, stored=rounded.handle.data), rounded.dtype), rounded.type
    )


NAMED: dict[tuple[str, str], Callable[..., Any]] = {
    ("attn_optimized.kernels.logits", "tanh"): _tanh,
    ("attn_optimized.kernels.quantization", "encode"): _stored,
}
"""By module and name of a kernel's function: what is computed in its place."""


def calling(interpreter: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """What replaces `InterpretedFunction.__call__`."""

    def call_function(self: Any, *arguments: Any, **named: Any) -> Any:
        function = NAMED.get((self.fn.__module__, self.fn.__qualname__)) if call.current is not None else None
        if function is None:
            return method(self, *arguments, **named)
        return function(interpreter, lambda *inner: method(self, *inner), *arguments, **named)

    return call_function


def _like(interpreter: Any, x: Any, block: Elements) -> Any:
    return interpreter.tl.tensor(interpreter.TensorHandle(block, x.dtype), x.type)

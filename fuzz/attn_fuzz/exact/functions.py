"""Functions of kernels that compute a named function by steps that exact mode cannot follow, such as a series.

While a call is followed, the named function is computed in their place. So exact mode does not see a fault inside of them: the
judge does, and so do their own tests.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from attn_fuzz.exact import algebra, followed_call
from attn_fuzz.exact.builder import elements_of
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.refusal import NotCarriedError

Original = Callable[..., Any]


def _tanh(interpreter: Any, original: Original, x: Any) -> Any:
    """A function that returns tanh(x)."""
    return _like(interpreter, x, algebra.tanh(elements_of(x.handle)))


def _soft_cap(interpreter: Any, original: Original, scores: Any, cap: Any) -> Any:
    """A function that returns cap * tanh(scores / cap)."""
    return _like(interpreter, scores, _capped(elements_of(scores.handle), _number(cap)))


def _soft_cap_in_base_2(interpreter: Any, original: Original, scores: Any, cap: Any) -> Any:
    """The same by powers of 2: cap * tanh(ln(2) * scores / cap)."""
    scaled = algebra.multiply(elements_of(scores.handle), algebra.LN2)
    return _like(interpreter, scores, _capped(scaled, _number(cap)))


def _log2_of_e(interpreter: Any, original: Original, x: Any) -> float:
    """A function that returns log2(x), of the number e alone: the number of the host that exact mode knows."""
    if x != math.e:
        raise NotCarriedError(f"log2 of {x}")
    return math.log2(x)


def _capped(scores: Elements, cap: Elements) -> Elements:
    return algebra.multiply(cap, algebra.tanh(algebra.divide(scores, cap)))


def _number(number: Any) -> Elements:
    """The element that an argument is: a tensor of one float, or a float of the host."""
    if hasattr(number, "handle"):
        return elements_of(number.handle)
    assert followed_call.current is not None
    return followed_call.current.quantities.element(float(getattr(number, "value", number)))


def _in_bfloat16(interpreter: Any, original: Original, numbers: Any) -> Any:
    """A function that converts to bfloat16 in integers: a conversion, which exact mode follows."""
    return numbers.to(interpreter.tl.bfloat16)


def _stored(interpreter: Any, original: Original, values: Any, *arguments: Any) -> Any:
    """A function that rounds numbers to the bits of an output: the element stays, and the bits are those of its order."""
    held = elements_of(values.handle)
    floats = interpreter.TensorHandle(held.order.astype(np.float32), interpreter.tl.float32)
    with followed_call.following(None):
        rounded = original(interpreter.tl.tensor(floats, values.type), *arguments)
    if rounded.dtype == values.dtype:
        return values
    return interpreter.tl.tensor(
        interpreter.TensorHandle(replace(held, stored=rounded.handle.data), rounded.dtype), rounded.type
    )


NAMED: dict[tuple[str, str], Callable[..., Any]] = {
    ("attn_optimized.kernels.bfloat16", "exact_bfloat16"): _in_bfloat16,
    ("attn_optimized.kernels.bfloat16", "nearest_bfloat16"): _in_bfloat16,
    ("attn_optimized.kernels.logits", "tanh"): _tanh,
    ("attn_optimized.kernels.quantization", "encode"): _stored,
    ("vllm.v1.attention.ops.triton_attention_helpers", "apply_softcap"): _soft_cap,
    ("aiter.ops.triton._triton_kernels.activation", "_tanh"): _tanh,
    ("aiter.ops.triton._triton_kernels.unified_attention", "apply_softcap"): _soft_cap_in_base_2,
    ("sglang.kernels.ops.attention.decode_attention", "tanh"): _tanh,
    ("sglang.kernels.ops.attention.extend_attention", "tanh"): _tanh,
    ("attn_fuzz.targets.packages.lmdeploy.functions", "tanh"): _tanh,
    ("attn_fuzz.targets.packages.lmdeploy.functions", "log2"): _log2_of_e,
}
"""Replacements of kernels' functions, by module and name."""


def calling(interpreter: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of `InterpretedFunction.__call__` while a call is followed."""

    def call_function(self: Any, *arguments: Any, **named: Any) -> Any:
        function = NAMED.get((self.fn.__module__, self.fn.__qualname__))
        if function is None:
            return method(self, *arguments, **named)
        return function(interpreter, lambda *inner: method(self, *inner), *arguments, **named)

    return call_function


def _like(interpreter: Any, x: Any, block: Elements) -> Any:
    return interpreter.tl.tensor(interpreter.TensorHandle(block, x.dtype), x.type)

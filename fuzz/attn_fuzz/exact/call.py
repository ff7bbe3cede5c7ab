"""The call that is followed in exact mode: its named quantities, and the elements in its memory."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attn_fuzz.exact.memory import Memory
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError


class Call:
    """One call of a target.

    Attributes:
        quantities, memory: of the call.
        refusal: the first reason why exact mode cannot carry the call; empty if there is none so far.
    """

    def __init__(self, quantities: Quantities) -> None:
        self.quantities = quantities
        self.memory = Memory()
        self.refusal = ""


current: Call | None = None
"""The call that is running, or None: then kernels compute with floats."""


@contextmanager
def following(call: Call | None) -> Iterator[None]:
    """Have kernels that are launched inside the `with` compute with elements, where `interpreter.install` was called.

    Args:
        call: what is noted on; None: kernels compute with floats.
    """
    global current
    before, current = current, call
    try:
        yield
    finally:
        current = before


def noting(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that notes on the running call what it cannot carry. Triton wraps exceptions, and a target may catch them."""

    @functools.wraps(method)
    def op(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except NotCarriedError as error:
            if current is not None and not current.refusal:
                current.refusal = str(error)
            raise

    return op

"""The call that exact mode follows: its named quantities, and the elements in its memory."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from attn_fuzz.exact.host import Host
from attn_fuzz.exact.memory import Memory
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from attn_fuzz.interpreted import tapes


class FollowedCall:
    """One call of a target.

    Args:
        quantities: the quantities of the call.
        inputs: the tensors that the call reads.
        outputs: the tensors that are compared after the call.

    Attributes:
        quantities, memory, host: the quantities, the memory and the host of the call.
        refusal: the first reason why exact mode cannot carry the call; empty if there is none so far.
    """

    def __init__(
        self, quantities: Quantities, inputs: Iterable[torch.Tensor] = (), outputs: Iterable[torch.Tensor] = ()
    ) -> None:
        self.quantities = quantities
        self.memory = Memory(quantities)
        self.memory.know(inputs)
        self.memory.expect(outputs)
        self.host = Host(self.memory, quantities)
        self.refusal = ""


current: FollowedCall | None = None
"""The call that is running. If it is None, kernels compute with floats."""


@contextmanager
def following(call: FollowedCall | None) -> Iterator[None]:
    """Make kernels that are launched inside the `with` compute with elements, in a process that called `interpreter.install`.

    Args:
        call: the call that keeps elements and refusals; None: kernels compute with floats.
    """
    global current
    before, current = current, call
    tapes.in_use = call is None
    try:
        with nullcontext() if call is None else call.host:
            yield
    except NotCarriedError as error:
        note(error)
        raise
    finally:
        current = before
        tapes.in_use = before is None


def refuse(what: str) -> None:
    """Refuse the running call because exact mode cannot follow something. Do nothing if no call is followed.

    Raises:
        NotCarriedError: a call is followed.
    """
    if current is not None:
        raise NotCarriedError(what)


def note(error: NotCarriedError) -> None:
    """Note the first refusal on the running call."""
    if current is not None and not current.refusal:
        current.refusal = str(error)


def while_followed(method: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """`method` while a call is followed, and `otherwise` if none is.

    A refusal by `method` is noted on the call, because Triton wraps exceptions, and a target may catch them.
    """

    @functools.wraps(otherwise)
    def op(*arguments: Any, **named: Any) -> Any:
        if current is None:
            return otherwise(*arguments, **named)
        try:
            return method(*arguments, **named)
        except NotCarriedError as error:
            note(error)
            raise

    return op

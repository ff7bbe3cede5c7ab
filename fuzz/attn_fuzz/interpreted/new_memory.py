"""Fills memory that torch allocates uninitialized while a target runs: with NaN, or in half of the cases with a number.

NaN becomes visible even if a weight of 0 multiplies the memory. But code that takes NaN for "no key", as merges do, hides it;
such code takes a number for data. Integers are so large that an index leads out of every tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import storage_of
from attn_fuzz.interpreted import dynamo
from attn_fuzz.interpreted.eager import EagerMode, returned

ALLOCATE = {
    *("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::empty_permuted"),
    *("aten::new_empty", "aten::new_empty_strided"),
}
"""Operations that return uninitialized memory."""
NUMBER = 0x41
"""A byte of which every floating type makes a number between 1 and 16."""
holds_numbers = False
"""True if new memory of this process holds numbers inside a `filled` block."""


def numbers_in(case: Case) -> bool:
    """True if new memory holds numbers in a case."""
    return case.values.choice("new memory", 2) == 1


@contextmanager
def filled(with_numbers: bool) -> Iterator[None]:
    """Inside the block torch fills new memory: floats with NaN, integers with their largest; or all with NUMBER.

    Nothing is filled where Dynamo compiles (`attn_fuzz.interpreted.dynamo`).
    """
    global holds_numbers
    if dynamo.begun:
        yield
        return
    before, holds_numbers = holds_numbers, with_numbers
    # torch.use_deterministic_algorithms does so, too, and imports torch's compiler, in two seconds
    torch.set_deterministic_debug_mode("warn")
    dynamo.fills = True
    try:
        with _Numbers() if with_numbers else nullcontext():
            yield
    finally:
        torch.set_deterministic_debug_mode("default")
        dynamo.fills = False
        holds_numbers = before


class _Numbers(EagerMode):
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.name in ALLOCATE and made.dtype is not torch.bool and made.numel():
            storage_of(made, torch.uint8).fill_(NUMBER)
        return returned(made)

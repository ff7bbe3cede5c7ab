"""The base of modes that note torch's operations as they run."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class EagerMode(TorchDispatchMode):
    """A mode for operations that are never compiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """True if torch keeps each operation from its compiler. It would import the compiler, in two seconds of a process."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True if Dynamo compiles beside the mode. It would leave the function to eager for good, whoever calls it again."""
        return True


def returned(result: Any) -> Any:
    """The result of an operation in a form that a mode may return: torch accepts no list with None in it.

    A list has None for each tensor that C++ left undefined, as FlashAttention-3 does with sums of parts that it does not have.
    """
    return [torch.empty(0) if each is None else each for each in result] if isinstance(result, list) else result

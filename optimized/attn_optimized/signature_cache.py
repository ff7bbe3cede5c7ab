"""A cache by signature: later calls with the signature of a first call reuse its checks and launches."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

MAX_SIGNATURES = 4096
_ALL: list["SignatureCache[Any]"] = []


class SignatureCache(dict[Hashable, T]):
    """Values by signature (attn_contract.signatures). The oldest value is dropped if there are more than MAX_SIGNATURES."""

    def __init__(self) -> None:
        super().__init__()
        _ALL.append(self)

    def __setitem__(self, signature: Hashable, found: T) -> None:
        if len(self) == MAX_SIGNATURES:
            del self[next(iter(self))]
        super().__setitem__(signature, found)

    def shared(self, signature: Hashable, make: Callable[[], T]) -> T:
        """The value of a signature, made on the first call."""
        found = self.get(signature)
        if found is None:
            found = self[signature] = make()
        return found


def forget() -> None:
    """Empty all caches. Kernels stay compiled."""
    for cache in _ALL:
        cache.clear()

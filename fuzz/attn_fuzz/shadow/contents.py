"""Marks of keys and values: 64 bits of a token, which are compared in place of its bytes.

A mark is a hash of the key (31 bits) above one of the value (32 bits), each a sum of 32-bit words times random 64-bit numbers,
of which the upper bits count. Tokens that differ have the same hash with a chance of 2^-31. Zeros hash to zero.
"""

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from attn_contract import ContractError

REAL: Final = np.uint64(1 << 63)
"""Set in each mark that is a hash. Others are serial numbers of writes without keys."""
KEY: Final = np.uint64(0x7FFFFFFF << 32)
VALUE: Final = np.uint64(0xFFFFFFFF)
ZEROS: Final = REAL
_MAX_WORDS: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class Contents:
    """Keys and values of n tokens: their marks, and the tensors themselves, for a shadow that keeps values.

    Args:
        marks: [n] uint64.
        mask: the bits of a mark that are known: those of keys, of values, or of both.
        keys, values: [n, ...].
    """

    marks: np.ndarray
    mask: np.uint64
    keys: torch.Tensor | None
    values: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.marks)

    def __getitem__(self, rows: Any) -> "Contents":
        """The contents of some tokens, given as a slice or indices."""
        keys, values = (None if x is None else x[rows] for x in (self.keys, self.values))
        return Contents(self.marks[rows], self.mask, keys, values)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.keys, self.values) if x is not None)

    def clone(self) -> "Contents":
        """The same contents with memory of their own for the tensors."""
        return Contents(self.marks, self.mask, *(None if x is None else x.clone() for x in (self.keys, self.values)))


def contents_of(keys: Any, values: Any = None) -> Contents:
    """The contents of tokens, whose first dimension counts them. Engines that write many requests at once hash once.

    Args:
        keys: [n, ...], a tensor or an array; None if they are not known.
        values: the same for values.

    Raises:
        ContractError: an argument is no tensor, or the two have different lengths.
    """
    tensors = [_tensor(name, given) for name, given in (("keys", keys), ("values", values))]
    k, v = tensors
    if k is None and v is None:
        raise ContractError("keys", None, "keys or values")
    if k is not None and v is not None and len(k) != len(v):
        raise ContractError("values", f"{len(v)} tokens", f"{len(k)}, as keys")
    marks = np.uint64(REAL)
    if k is not None:
        marks = marks | (_hashes(k) >> np.uint64(33) << np.uint64(32))
    if v is not None:
        marks = marks | (_hashes(v) >> np.uint64(32))
    mask = REAL | (KEY if k is not None else np.uint64(0)) | (VALUE if v is not None else np.uint64(0))
    return Contents(np.asarray(marks), mask, k, v)


def _tensor(name: str, given: Any) -> torch.Tensor | None:
    if given is None:
        return None
    try:
        tensor = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ContractError(name, type(given).__name__, "a tensor or an array") from error
    if tensor.dim() == 0:
        raise ContractError(name, "a number", "a tensor whose first dimension counts tokens")
    return tensor


def _hashes(tensor: torch.Tensor) -> np.ndarray:
    """[n] uint64, computed on the tensor's device."""
    rows = tensor.reshape(len(tensor), -1).contiguous()
    row_bytes = rows.shape[1] * rows.element_size()
    if not rows.numel():
        return np.zeros(len(tensor), np.uint64)
    word = torch.int32 if row_bytes % 4 == 0 else torch.uint8
    words = rows.view(torch.uint8).view(word)
    factors = _factors(words.shape[1], str(words.device))
    step = max(1, _MAX_WORDS // words.shape[1])
    sums = torch.cat([(part.long() * factors).sum(1) for part in words.split(step)])
    return sums.cpu().numpy().view(np.uint64)


@functools.lru_cache(maxsize=64)
def _factors(count: int, device: str) -> torch.Tensor:
    random = np.random.default_rng(20251128).integers(0, 1 << 63, count, dtype=np.int64)
    return torch.from_numpy(random * 2 + 1).to(device)

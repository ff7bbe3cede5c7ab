"""The types that values of rules can have, each with its check. Whatever is derived from rules knows all of them."""

from collections.abc import Callable
from typing import Any, Final

import torch

from attn_contract.arguments import INT32_MAX, check_int, check_tensor, check_type, shown
from attn_contract.errors import ContractError

Check = Callable[[str, Any, Any], Any]
"""Takes the rule's name, a value, and the Layer or Batch that has it. Returns the value to keep, or raises ContractError.

An AttentionConfig calls it with None for the Layer or Batch.
"""


def _check_bool(name: str, value: Any, _: object) -> bool:
    check_type(name, value, bool, "a bool")
    return value


def check_number(name: str, value: Any, _: object, minimum: int = -INT32_MAX) -> int:
    check_int(name, value, minimum=minimum)
    return value


def check_optional_number(name: str, value: Any, _: object, minimum: int = -INT32_MAX) -> int | None:
    return None if value is None else check_number(name, value, None, minimum)


def _check_optional_float(name: str, value: Any, _: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, float | int) or isinstance(value, bool) or not abs(value) <= torch.finfo(torch.float32).max:
        raise ContractError(name, shown(value), "None or a finite number of float32")
    return float(value)


def check_pair(
    name: str, value: Any, _: object, minimum: int = -INT32_MAX, expected: str = "a tuple of two ints"
) -> tuple[int, int]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ContractError(name, shown(value), expected)
    for i, number in enumerate(value):
        check_int(f"{name}[{i}]", number, minimum=minimum)
    return value


def _check_tensor(name: str, value: Any, _: object) -> torch.Tensor:
    check_tensor(name, value)
    return value


RULE_TYPES: Final[dict[Any, Check]] = {
    bool: _check_bool,
    int: check_number,
    int | None: check_optional_number,
    float | None: _check_optional_float,
    tuple[int, int]: check_pair,
    torch.Tensor | None: _check_tensor,
}
"""The check of each type. It takes every value of the type that kernels can hold: ints of int32, finite numbers of float32."""


def is_of_type(value: object, kind: Any) -> bool:
    """True if a value is of one of RULE_TYPES."""
    try:
        RULE_TYPES[kind]("off", value, None)
    except ContractError:
        return False
    return True

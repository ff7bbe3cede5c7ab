"""What torch can be set to around a call. No call's result depends on it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DETERMINISTIC = "deterministic algorithms"


@contextmanager
def _set(get: Callable[[], Any], put: Callable[[Any], object], value: object) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def _precision(name: str) -> AbstractContextManager[None]:
    return _set(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)


def _default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return _set(torch.get_default_dtype, torch.set_default_dtype, dtype)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    **{
        f"autocast to {dtype} on {device}": partial(torch.autocast, device, dtype)
        for device in DEVICES
        for dtype in (torch.bfloat16, torch.float16)
    },
    # both set the flags of TF32; "medium" allows bfloat16, too
    **{f"float32 products of precision {name}": partial(_precision, name) for name in ("high", "medium")},
    **{f"default dtype {dtype}": partial(_default_dtype, dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
    "default device meta": partial(torch.device, "meta"),
    "inference mode": torch.inference_mode,
    DETERMINISTIC: partial(_set, torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
}


def states_that_change(call: Callable[[], Any]) -> list[str]:
    """The states in which a call gives other bits than without them. In deterministic mode torch may refuse a call.

    Args:
        call: returns the tensors that it makes or writes, in whatever holds them; those that it writes are copies.
    """
    expected = _bits(call())
    assert expected
    changed = []
    for name, state in STATES.items():
        try:
            with state():
                got = call()
        except RuntimeError as error:
            if name == DETERMINISTIC and "deterministic" in str(error):
                continue
            changed.append(f"{name}: {error}")
            continue
        if len(found := _bits(got)) != len(expected) or not all(map(torch.equal, found, expected)):
            changed.append(name)
    return changed


def _bits(result: Any) -> list[torch.Tensor]:
    """The bytes of each tensor in a tensor, a collection or an object."""
    if isinstance(result, torch.Tensor):
        return [result.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)]
    if not isinstance(result, tuple | list | Iterator):
        result = vars(result).values() if hasattr(result, "__dict__") else ()
    return [bits for part in result for bits in _bits(part)]

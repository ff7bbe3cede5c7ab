"""Copies a step's tensors to another device. Their strides stay, and tensors that share memory still share it."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from attn_fuzz.cases.tensors import Step

T = TypeVar("T")


def sent(step: Step, device: str) -> Step:
    """The step on a device, with a copy of each allocation."""
    held = storages(step)
    return _with(step, {key: storage.to(device=torch.device(device)) for key, storage in held.items()})


def returned(step: Step) -> Step:
    """The step on the CPU. It is fetched in one transfer, because every transfer waits until the device is free."""
    held = storages(step)
    parts = [torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage) for storage in held.values()]
    sizes = [len(part) for part in parts]
    fetched = torch.cat(parts).cpu().split(sizes)
    return _with(step, {key: part.clone().untyped_storage() for key, part in zip(held, fetched, strict=True)})


def is_sound(device: str) -> bool:
    """True if the device still answers: after an illegal access, a process's CUDA calls fail for good."""
    try:
        return device == "cpu" or torch.zeros(1, device=device).item() == 0
    except Exception:
        return False


def storages(step: Step) -> dict[int, torch.UntypedStorage]:
    """All allocations that hold tensors of a step, by address."""
    found = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    mapped(step, note)
    return found


def _with(step: Step, storages: dict[int, torch.UntypedStorage]) -> Step:
    def place(tensor: torch.Tensor) -> torch.Tensor:
        storage = storages[tensor.untyped_storage().data_ptr()]
        empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    return mapped(step, place)


def mapped(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """The value with each of its tensors replaced by what the function returns."""
    if isinstance(value, torch.Tensor):
        return change(value)  # pyright: ignore[reportReturnType]
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}  # pyright: ignore[reportReturnType]
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)  # pyright: ignore[reportReturnType]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: dict[str, Any] = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: mapped(item, change) for name, item in fields.items()}
        if any(changed[name] is not item for name, item in fields.items()):
            return dataclasses.replace(value, **changed)  # pyright: ignore[reportReturnType]
    return value

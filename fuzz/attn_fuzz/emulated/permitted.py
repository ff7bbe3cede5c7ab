"""Lets emulated launches touch only what the running call may touch, as the sanitizer does with interpreted launches.

The emulator knows bytes of buffers. Regions of a call (`attn_fuzz.interpreted.permissions`) become spans of them, and a fault
becomes a Violation that names tensor and index. Which request an element belongs to is not looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from attn_amdgcn import EmulationFault, PermittedBytes
from attn_fuzz.interpreted import sanitizer
from attn_fuzz.interpreted.permissions import READ, WRITE, Region
from attn_fuzz.interpreted.sanitizer import Violation


@contextmanager
def launch(kernel: str, architecture: str, arguments: Mapping[str, Any]) -> Iterator[list[Region]]:
    """The regions of a launch's tensors; none where no call is watched. What a launch may write, later ones may read.

    Args:
        arguments: the arguments of the launch, by the kernel's names.

    Raises:
        Violation: the launch ended with a fault.
    """
    watch = sanitizer.current
    regions = list(watch.regions(_tensors(arguments)).values()) if isinstance(watch, sanitizer.Watch) else []
    try:
        yield regions
    except EmulationFault as fault:
        about, what = _described(fault, regions, arguments)
        raise Violation(f"{kernel} for {architecture}: {what}{fault}", about) from fault
    for region in regions:
        region.rights[region.rights & WRITE != 0] |= READ


def permitted_bytes(regions: Sequence[Region], storages: Mapping[int, str]) -> PermittedBytes:
    """The bytes of buffers that may be touched.

    Args:
        storages: the names of buffers by the addresses of their storages.
    """
    reads: dict[str, list[np.ndarray]] = {name: [np.zeros((0, 2), np.int64)] for name in storages.values()}
    writes = {name: list(spans) for name, spans in reads.items()}
    for region in {id(region): region for region in regions}.values():
        name = storages[region.address]
        reads[name].append(_spans(region, READ))
        writes[name].append(_spans(region, WRITE))
    return PermittedBytes(*({name: np.concatenate(spans) for name, spans in each.items()} for each in (reads, writes)))


def _spans(region: Region, right: int) -> np.ndarray:
    """[spans, 2]: the bytes [begin, end) of a region's storage that have a right."""
    has = np.zeros(len(region.rights) + 2, bool)
    np.not_equal(region.rights & right, 0, out=has[1:-1])
    return np.flatnonzero(has[1:] != has[:-1]).reshape(-1, 2) * region.tensor.element_size()


def _tensors(arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor) and value.numel()}


def _described(fault: EmulationFault, regions: Sequence[Region], arguments: Mapping[str, Any]) -> tuple[str, str]:
    """The subject of a fault, and the element that must not be touched, in words; empty if no region has it."""
    touch = fault.touch
    if touch is None or touch.buffer not in arguments:
        return "Fault", ""
    address = arguments[touch.buffer].untyped_storage().data_ptr()
    candidates = [region for region in regions if region.address == address]
    if not candidates:
        return "Fault", ""
    region = next((one for one in candidates if one.contains(address + touch.byte)), candidates[0])
    access, rule = ("load", region.reads) if touch.does == "read" else ("store", region.writes)
    element = touch.byte // region.tensor.element_size()
    allowed = f"only {rule}" if rule else "nothing of it"
    return f"{access} of {region.name}", f"{access} of {region.describe(element)}: {allowed} may be {touch.does}: "

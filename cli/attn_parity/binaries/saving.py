"""Write code objects into a folder, with launches.json: the arguments of hipModuleLaunchKernel or cuLaunchKernel for each."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.compilation import Binary
from attn_parity.options import write_json

SCHEMA = "attn-parity.launches/1"


def save_binaries(folder: Path, binaries: dict[tuple[str, str], Binary], calls: dict[str, dict[str, KernelCall]]) -> int:
    """Write the code objects and launches.json, and return the number of code objects.

    Args:
        calls: the launches, by architecture and name.
    """
    launches = []
    for (architecture, name), binary in binaries.items():
        file = f"{architecture}-{re.sub('[^A-Za-z0-9]+', '-', name)}.{binary.suffix}"
        (folder / file).write_bytes(binary.code)
        described = {field.name: getattr(binary, field.name) for field in dataclasses.fields(binary)}
        del described["code"], described["instructions"], described["attributes"]
        described["arguments"] = _arguments(binary, calls[architecture][name])
        described["constants"] = {name: _plain(value) for name, value in binary.constants.items()}
        launches.append({"call": name, "file": file, **described, "facts": dataclasses.asdict(binary.facts)})
    write_json(folder / "launches.json", {"schema": SCHEMA, "launches": launches})
    return len(launches)


def _arguments(binary: Binary, call: KernelCall) -> list[dict[str, Any]]:
    """The arguments in the kernel's order: name, type, attributes, and a number's value or a tensor's shape and strides."""
    described = []
    for name, kind in binary.arguments.items():
        value = call.arguments.get(name)
        known = {} if value is None else {"value": value}
        if isinstance(value, torch.Tensor):
            known = {"shape": list(value.shape), "strides": list(value.stride())}
        described.append({"name": name, "type": kind, **known, "attributes": binary.attributes.get(name, {})})
    return described


def _plain(constant: Any) -> Any:
    """A constant as JSON. A kernel may have one dataclass for all of its constants."""
    if dataclasses.is_dataclass(constant) and not isinstance(constant, type):
        return dataclasses.asdict(constant)
    return constant

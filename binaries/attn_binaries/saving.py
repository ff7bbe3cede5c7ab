"""Write code objects and assembly into a folder, with launches.json: what hipModuleLaunchKernel or cuLaunchKernel needs.

`attn_binaries.saved` reads it.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from attn_binaries.compilation import Binary
from attn_binaries.kernarg import kernarg_of
from attn_fuzz import outputs
from attn_optimized.kernel_call import KernelCall

SCHEMA = "attn-parity.launches/3"


def save_binaries(folder: Path, binaries: dict[tuple[str, str], Binary], calls: dict[str, dict[str, KernelCall]]) -> int:
    """Write the code objects, their assembly and launches.json, and return the number of code objects.

    Args:
        calls: the launches, by architecture and name.
    """
    launches = []
    for (architecture, name), binary in binaries.items():
        stem = f"{architecture}-{re.sub('[^A-Za-z0-9]+', '-', name)}"
        file, text = f"{stem}.{binary.suffix}", f"{stem}.{'s' if binary.suffix == 'hsaco' else 'ptx'}"
        contents = {"file": binary.code, "assembly": binary.assembly.encode()}
        outputs.write(folder / file, contents["file"])
        outputs.write(folder / text, contents["assembly"])
        digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
        described = _described(binary, calls[architecture][name])
        launches.append({"call": name, "file": file, "assembly": text, "sha256": digests, **described})
    text = json.dumps({"schema": SCHEMA, "launches": launches}, indent=1, ensure_ascii=False, allow_nan=False)
    outputs.write(folder / "launches.json", text + "\n")
    return len(launches)


def _described(binary: Binary, call: KernelCall) -> dict[str, Any]:
    """The record by which a code object is launched."""
    described = {
        field.name: getattr(binary, field.name)
        for field in dataclasses.fields(binary)
        if field.name not in ("code", "assembly", "attributes", "scratch_bytes", "hot_loop")
    }
    return described | {
        "arguments": _arguments(binary, call),
        "constants": {name: plain(value) for name, value in binary.constants.items()},
        "grid": [*binary.grid, 1, 1][:3],
        "threads_per_block": binary.num_warps * binary.warp_size,
        "dynamic_lds_bytes": binary.facts.lds_bytes,
        "kernarg": kernarg_of(binary.assembly, list(binary.arguments)) if binary.suffix == "hsaco" else None,
        "facts": dataclasses.asdict(binary.facts),
    }


def _arguments(binary: Binary, call: KernelCall) -> list[dict[str, Any]]:
    """The arguments in the kernel's order. Each has a name, a type and attributes.

    A number has its value, a tensor its shape and strides, and a pointer to scratch memory the bytes of this memory. A pointer
    is null if it `may_be_null`.
    """
    described = []
    for name, kind in binary.arguments.items():
        value = call.arguments.get(name)
        known: dict[str, Any] = {} if value is None else {"value": value}
        if isinstance(value, torch.Tensor):
            known = {"shape": list(value.shape), "strides": list(value.stride())}
        if name in binary.scratch_bytes:
            known = {"bytes": binary.scratch_bytes[name]}
        if kind.startswith("*"):
            known["may_be_null"] = binary.scratch_bytes.get(name) == 0
        described.append({"name": name, "type": kind, **known, "attributes": binary.attributes.get(name, {})})
    return described


def plain(constant: Any) -> Any:
    """A constant as JSON. A kernel may have one dataclass for all of its constants."""
    if dataclasses.is_dataclass(constant) and not isinstance(constant, type):
        return dataclasses.asdict(constant)
    return constant

"""The memory of a kernel's arguments on AMD GPUs, as the code that launches the kernel must fill it."""

import re
from collections.abc import Sequence
from typing import Any

_ARGUMENT = re.compile(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)\s+\.value_kind:\s+(\w+)")


def kernarg_of(assembly: str, names: Sequence[str]) -> dict[str, Any]:
    """The size of the memory, and offset, size and kind of each argument, hidden ones included.

    Kinds are those of LLVM's metadata of code objects. A hidden argument has its kind as name.

    Args:
        assembly: the assembly of one kernel, with its metadata, in which LLVM writes the keys of an argument in alphabetical
            order.
        names: the names of the arguments that are not hidden, which come first.

    Raises:
        ValueError: the metadata describe another number of arguments.
    """
    metadata = assembly.partition("\n\t.amdgpu_metadata\n")[2]
    found = _ARGUMENT.findall(metadata)
    own = [kind for _, _, kind in found if not kind.startswith("hidden_")]
    if len(own) != len(names):
        raise ValueError(f"the metadata describe {len(own)} arguments, and the kernel has {len(names)}: {', '.join(names)}")
    size = re.search(r"\.kernarg_segment_size:\s+(\d+)", metadata)
    assert size is not None
    all_names = [*names, *(kind for _, _, kind in found[len(names) :])]
    return {
        "bytes": int(size[1]),
        "arguments": [
            {"name": name, "offset": int(offset), "size": int(length), "kind": kind}
            for name, (offset, length, kind) in zip(all_names, found, strict=True)
        ],
    }

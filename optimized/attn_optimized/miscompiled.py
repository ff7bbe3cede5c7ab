"""What Triton 3.9 makes wrong code of for AMD's GPUs is refused before it runs: LLVM 24 may lose a spilled address.

See `attn_amdgcn.origins`, which finds such code in its text. Kernels that spill no register cannot have it.
"""

import functools
import re

import triton
from attn_contract import MiscompiledError, UnsupportedError

_SPILLS = re.compile(r"\.(?:sgpr|vgpr)_spill_count:\s*[1-9]")
_FIRST_WITH_FAULT = (3, 9)


@functools.lru_cache(maxsize=256)
def refuse_lost_addresses(assembly: str, architecture: str) -> None:
    """Look through the code of a kernel, if this Triton's compiler may lose addresses.

    Args:
        assembly: `asm["amdgcn"]` of the binary.
        architecture: such as "gfx942".

    Raises:
        MiscompiledError: a load or store has an address that another value replaces.
        UnsupportedError: pyyaml is missing, without which nobody can look.
    """
    if _release() < _FIRST_WITH_FAULT or not _SPILLS.search(assembly):
        return
    try:
        from attn_amdgcn import load, lost_addresses
    except ModuleNotFoundError as error:
        what = f"code of Triton {triton.__version__} for {architecture} that spills registers"
        raise UnsupportedError("attn_optimized", what, f"it may be wrong, and to check it {error}") from None
    kernel = load(assembly)
    if lost := lost_addresses(kernel, assembly):
        raise MiscompiledError(
            "attn_optimized.miscompiled",
            f"what Triton {triton.__version__} makes of {kernel.name} for {architecture}",
            f"LLVM loses the address of {len(lost)} accesses, the first of {lost[0].instruction.source or 'an unknown line'}",
            "Triton 3.8",
        )


def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])

"""Refuses launches that Triton is known to compile wrongly for AMD's GPUs, before they run.

* LLVM 24, of Triton 3.9, may lose a spilled address: see `attn_amdgcn.origins`, which finds such code in its text. Kernels that
  spill no register cannot have it.
* LLVM 22, of Triton 3.6, may write a vector register where lanes meet again, before it switches on those that were off: see
  findings/compilers/llvm-copies-before-exec.py. Later ones repair a part of this (LLVM's issue 222368).
"""

import functools
import itertools
import re

import triton
from attn_contract import MiscompiledError, UnsupportedError

_SPILLS = re.compile(r"\.(?:sgpr|vgpr)_spill_count:\s*[1-9]")
_FIRST_THAT_LOSES = (3, 9)
_SWITCHES_LANES_ON = re.compile(r"s_or_b(64 exec|32 exec_lo), ")
_WRITES_LANES = re.compile(r"(v_(?!readlane|readfirstlane|writelane)|ds_|scratch_|buffer_|global_|flat_)\w+")


@functools.lru_cache(maxsize=256)
def refuse_miscompiled(assembly: str, architecture: str) -> None:
    """Look through the code of a kernel for what this Triton's compiler may do wrong.

    Args:
        assembly: `asm["amdgcn"]` of the binary.
        architecture: such as "gfx942".

    Raises:
        MiscompiledError: a load or store has an address that another value replaces, or lanes are written while they are off.
        UnsupportedError: pyyaml is missing, or the code has what nobody can read, so nobody can look.
    """
    if early := early_writes(assembly):
        raise MiscompiledError(
            "attn_optimized.miscompiled",
            f"what Triton {triton.__version__} makes of a kernel for {architecture}",
            f"LLVM writes registers while lanes are off, the first by `{early[0]}`",
            "another release of Triton",
        )
    if _release() < _FIRST_THAT_LOSES or not _SPILLS.search(assembly):
        return
    what = f"code of Triton {triton.__version__} for {architecture} that spills registers"
    try:
        from attn_amdgcn import AmdgcnError, load, lost_addresses
    except ModuleNotFoundError as error:
        raise UnsupportedError("attn_optimized", what, f"it may be wrong, and to check it {error}") from None
    try:
        kernel = load(assembly)
        lost = lost_addresses(kernel, assembly)
    except AmdgcnError as error:
        raise UnsupportedError("attn_optimized", what, f"it may be wrong, and cannot be checked: {error}") from None
    if lost:
        raise MiscompiledError(
            "attn_optimized.miscompiled",
            f"what Triton {triton.__version__} makes of {kernel.name} for {architecture}",
            f"LLVM loses the address of {len(lost)} accesses, the first of {lost[0].instruction.source or 'an unknown line'}",
            "Triton 3.8",
        )


def early_writes(assembly: str) -> list[str]:
    """The vector instructions between a label to which a wave without lanes jumps and the `s_or` that switches lanes on."""
    lines = [line.partition(";")[0].strip() for line in assembly.splitlines()]
    code = [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]
    targets = {line.split()[1] + ":" for line in code if line.startswith("s_cbranch_execz ")}
    found: list[str] = []
    for place, line in enumerate(code):
        if line in targets:
            found += _before_lanes_are_on(code, place + 1)
    return found


def _before_lanes_are_on(code: list[str], begin: int) -> list[str]:
    """The vector instructions from a place on; none if the block that begins there switches no lanes on."""
    writes: list[str] = []
    for line in itertools.islice(code, begin, None):
        if _SWITCHES_LANES_ON.match(line):
            return writes
        if line.endswith(":") or "exec" in line or line.startswith(("s_cbranch", "s_branch", "s_endpgm")):
            return []
        if _WRITES_LANES.match(line):
            writes.append(line)
    return []


def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])

"""Refuses launches that Triton is known to compile wrongly, before they run.

For AMD's GPUs the code of a kernel shows it:

* LLVM 24, of Triton 3.9, may lose a spilled address: see `attn_amdgcn.origins`, which finds such code in its text. Kernels that
  spill no register cannot have it.
* LLVM 22, of Triton 3.6, may write a vector register where lanes meet again, before it switches on those that were off: see
  findings/compilers/llvm-copies-before-exec.py. Later ones repair a part of this (LLVM's issue 222368).
* LLVM, of Triton 3.8 and 3.9, may wait for a loop's stores into LDS after the barrier that hands them to other waves: see
  findings/compilers/llvm-wait-behind-barrier.py.

For NVIDIA's, one kind of call is known by its results; see `refuse_wrong_values`.
"""

import functools
import itertools
import re

import torch
import triton
from attn_contract import Layer, Layout, MiscompiledError, UnsupportedError

_SPILLS = re.compile(r"\.(?:sgpr|vgpr)_spill_count:\s*[1-9]")
_FIRST_THAT_LOSES = (3, 9)
_FIRST_THAT_SHUFFLES = (3, 9)
"""The first release that is known to read selections of a SHUFFLED cache right; see `refuse_wrong_values`."""
_SWITCHES_LANES_ON = re.compile(r"s_or_b(64 exec|32 exec_lo), ")
_LDS = re.compile(r"ds_(store|write)?\w*")
_WAITS_FOR_LDS = re.compile(r"s_waitcnt .*lgkmcnt\((\d+)\)|s_wait_(?:loadcnt_|storecnt_)?dscnt (0x[0-9a-f]+)")
_MAX_LATER = 64
"""The most accesses of LDS to count after a store: no wait leaves more under way."""
_WRITES_LANES = re.compile(r"(v_(?!readlane|readfirstlane|writelane)|ds_|scratch_|buffer_|global_|flat_)\w+")


@functools.lru_cache(maxsize=256)
def refuse_miscompiled(assembly: str, architecture: str) -> None:
    """Look through the code of a kernel for known mistakes of this Triton's compiler.

    Args:
        assembly: `asm["amdgcn"]` of the binary.
        architecture: such as "gfx942".

    Raises:
        MiscompiledError: a load or store has an address that another value replaces, lanes are written while they are off, or
            a barrier does not wait for a wave's stores into LDS.
        UnsupportedError: pyyaml is missing, or the code cannot be read, so it cannot be checked.
    """
    if early := early_writes(assembly):
        why = f"LLVM writes registers while lanes are off, the first by `{early[0]}`"
        raise _refusal("a kernel", architecture, why, "another release of Triton")
    if unwaited := unwaited_stores(assembly):
        why = f"LLVM lets waves pass a barrier before their stores into LDS are done, the first by `{unwaited[0]}`"
        raise _refusal("a kernel", architecture, why, "another release of Triton, or num_stages=1")
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
        why = f"LLVM loses the address of {len(lost)} accesses, the first of {lost[0].instruction.source or 'an unknown line'}"
        raise _refusal(kernel.name, architecture, why, "Triton 3.8")


def refuse_wrong_values(architecture: str, dtype: torch.dtype, layer: Layer) -> None:
    """Refuse a selection of keys by float32 queries in a one-byte SHUFFLED cache on NVIDIA's GPUs, before Triton 3.9.

    On an H200, under Triton 3.6.0, most dims of heads of 64 are wrong, even for a single key, with ptxas 12.8 and 13.0 and
    without its optimizations; units of 32 keys end in an illegal address. Under 3.9.0 all of it is right there, as the emulated
    code for AMD's GPUs is. The cause is not known, and 3.7 and 3.8 have not run there.

    Raises:
        MiscompiledError: it is such a call.
    """
    if _release() >= _FIRST_THAT_SHUFFLES:
        return
    is_read_wrong = layer.layout == Layout.SHUFFLED and layer.kv_cache_dtype is not None and layer.selection_unit is not None
    if architecture.startswith("sm") and dtype == torch.float32 and is_read_wrong:
        what = "a selection by float32 queries in a one-byte SHUFFLED cache"
        raise _refusal(
            what, architecture, "values are wrong on an H200", "Triton 3.9, float16 or bfloat16 queries, or another layout"
        )


def _refusal(kernel: str, architecture: str, why: str, instead: str) -> MiscompiledError:
    what = f"what Triton {triton.__version__} makes of {kernel} for {architecture}"
    return MiscompiledError("attn_optimized.miscompiled", what, why, instead)


def early_writes(assembly: str) -> list[str]:
    """The vector instructions between a label to which a wave without lanes jumps and the `s_or` that switches lanes on."""
    code = _code(assembly)
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


def unwaited_stores(assembly: str) -> list[str]:
    """The stores into LDS that may be under way when their wave comes to a barrier."""
    blocks, begin = [], 0
    code = _code(assembly)
    for place, line in enumerate(code, 1):
        if line.startswith(("s_cbranch", "s_branch", "s_endpgm")) or (code[place : place + 1] and code[place].endswith(":")):
            blocks.append(code[begin:place])
            begin = place
    if not blocks:
        return []
    labels = {block[0].removesuffix(":"): number for number, block in enumerate(blocks) if block[0].endswith(":")}
    found: list[str] = []
    arriving: dict[int, tuple[str, int] | None] = {}
    to_visit: list[tuple[int, tuple[str, int] | None]] = [(0, None)]
    while to_visit:
        number, under_way = to_visit.pop()
        if number in arriving and not _is_newer(under_way, arriving[number]):
            continue
        arriving[number] = under_way
        leaving = _left(blocks[number], under_way, found)
        *_, last = blocks[number]
        followers = [labels[name] for name in last.split()[1:] if name in labels] if last.startswith(("s_cb", "s_br")) else []
        if not last.startswith(("s_branch", "s_endpgm")) and number + 1 < len(blocks):
            followers.append(number + 1)
        to_visit += [(each, leaving) for each in followers]
    return list(dict.fromkeys(found))


def _is_newer(one: tuple[str, int] | None, other: tuple[str, int] | None) -> bool:
    """True if fewer accesses of LDS lie after a store than after another: a wait that covers it covers the other one, too."""
    return one is not None and (other is None or one[1] < other[1])


def _left(block: list[str], under_way: tuple[str, int] | None, found: list[str]) -> tuple[str, int] | None:
    """The last store that is under way after a block, and how many accesses of LDS came after it. LDS keeps their order."""
    for line in block:
        if access := _LDS.match(line):
            if access[1]:
                under_way = line, 0
            elif under_way is not None:
                under_way = under_way[0], min(under_way[1] + 1, _MAX_LATER)
        elif under_way is None:
            continue
        elif wait := _WAITS_FOR_LDS.match(line):
            left = int(wait[1]) if wait[1] else int(wait[2], 16) & 0x3F
            under_way = None if left <= under_way[1] else under_way
        elif line.startswith("s_barrier") and not line.startswith("s_barrier_wait"):
            found.append(under_way[0])
    return under_way


def _code(assembly: str) -> list[str]:
    """The instructions and the labels of a kernel."""
    lines = [line.partition(";")[0].strip() for line in assembly.splitlines()]
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", triton.__version__)[:2])

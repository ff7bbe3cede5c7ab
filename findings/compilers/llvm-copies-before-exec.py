"""LLVM 22, of Triton 3.6.0, for AMD GPUs: registers are saved while lanes are off, and restored for all lanes.

The LLVM IR beside this file is an encoder attention of 80 dims in float32, as Triton 3.6.0 made it of this project's kernel for
gfx950. The kernel needs more than the 256 vector registers of a lane, so two of them are kept in accumulation registers within
a loop. The copies stand at the beginning of a block where lanes meet again, before the instruction that switches them on:

    s_and_saveexec_b64 s[2:3], s[4:5]     only some lanes load a slope
    s_cbranch_execz .LBB0_86
    ...
    .LBB0_86:
    v_accvgpr_write_b32 a1, v222          the copies of the lanes that are on, which may be none
    v_accvgpr_write_b32 a0, v221
    s_mov_b64 s[6:7], s[88:89]
    s_mov_b32 s98, s86
    s_or_b64 exec, exec, s[2:3]           all lanes are on from here
    ...
    v_accvgpr_read_b32 v221, a0           all lanes: those that were off get something else

Here v221 holds a bit of the thread's number. Two of four waves lose it, and store their rows over those of the other two: 0
instead of an output. With the copies after s_or_b64, the emulated kernel computes what it should.

LLVM allocates scalar registers first, and puts copies of them before s_or_b64, where they may stand. Then it looks for a place
for vector copies after s_or_b64, and does not look past these scalar copies. LLVM's pull request 117544 marks such copies.
Triton 3.9.0 has it. 3.6.0 and 3.7.1 do not, but 3.7.1 allocates the registers of this kernel in another way. In LLVM's issue
222368, open in September 2026, other scalar instructions than copies have the same effect, seen on an MI300A.

This script needs only Triton, and no GPU.
"""

import gzip
import re
import sys
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import llvm
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

LLVM_IR = Path(__file__).with_suffix(".ll.gz")
SWITCHES_ON = re.compile(r"s_or_b(64 exec|32 exec_lo), ")
WRITES_LANES = re.compile(r"(v_(?!readlane|readfirstlane|writelane)|ds_|scratch_|buffer_|global_|flat_)\w+")


def machine_code(source: str, architecture: str = "gfx950", num_warps: int = 4) -> list[str]:
    """LLVM's code of a kernel, an instruction or a label a line."""
    llvm.init_targets()
    backend: Any = make_backend(GPUTarget("hip", architecture, 64))
    text = backend.make_amdgcn(source, {}, backend.parse_options({"num_warps": num_warps}))
    lines = [line.partition(";")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def too_early(code: list[str]) -> list[str]:
    """The vector instructions between a label to which a wave without lanes jumps and the s_or that switches lanes on."""
    targets = {line.split()[1] + ":" for line in code if line.startswith("s_cbranch_execz ")}
    found: list[str] = []
    for place, line in enumerate(code):
        if line not in targets:
            continue
        before: list[str] = []
        for later in code[place + 1 :]:
            if SWITCHES_ON.match(later):
                found += before
                break
            if later.endswith(":") or "exec" in later or later.startswith(("s_cbranch", "s_branch", "s_endpgm")):
                break  # no lanes are switched on at this label
            if WRITES_LANES.match(later):
                before.append(later)
    return found


def main() -> int:
    """Print what was found, and return the exit code."""
    found = too_early(machine_code(gzip.decompress(LLVM_IR.read_bytes()).decode()))
    print(f"Triton {triton.__version__}")
    print("expected: vector registers are copied when all lanes are on")
    print("got: so" if not found else "got, before lanes are switched on:\n  " + "\n  ".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

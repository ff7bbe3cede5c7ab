"""LLVM, of Triton 3.6.0 and 3.7.0, for AMD GPUs: reads of LDS sink past a barrier, after which other waves write there.

The LLVM IR beside this file is a loop over tiles of K and V that are found through a table of blocks, for 16 queries of 80 dims
in float16. Triton 3.6.0 made it of a kernel of 20 lines, for gfx942 with num_stages=3. Triton takes the last two
turns out of the loop, and multiplies there only if the turn exists. The IR of the first of them is right:

    load ... addrspace(3)                       ten times: the tile of K
    call void @llvm.amdgcn.s.waitcnt(...)
    call void @llvm.amdgcn.s.barrier()
    load ... addrspace(3)                       four times: the tile of V
    br i1 %exists, ...                          over the products
    ...
    store ... addrspace(3)                      the next tile of K, over this one

LLVM moves the reads of K to where they are used:

    s_waitcnt lgkmcnt(0)
    s_barrier
    s_cbranch_vccnz .LBB0_25
    ds_read2st64_b64 ...                        one wave may be here
    ...
    .LBB0_25:
    ds_write_b64 ...                            while another one is here: no barrier stands between

LLVM's issue 181708 says why: MachineSink does not look at what stands after a load in the load's own block. LLVM of Triton
3.8.0 and 3.9.0 leaves the reads of this IR where they are. These Tritons also put fences beside a barrier. LMDeploy's decode
(_fwd_grouped_split_kernel) of 80 dims has the fault. The emulator tells it as a race, of this IR and of LMDeploy's kernel.

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

LLVM_IR = gzip.decompress(Path(__file__).with_suffix(".ll.gz").read_bytes()).decode()
BYTES = {"half": 2, "i16": 2, "i32": 4, "float": 4, "i64": 8}
IN_IR = re.compile(r"call void @llvm.amdgcn.s.barrier\(\)|= load (?:<(?P<count>\d+) x )?(?P<of>\w+)>?, ptr addrspace\(3\)")
IN_CODE = re.compile(r"^\s*(?:s_barrier|ds_read(?P<count>2)?(?:st64)?_[bui](?P<of>\d+))", re.MULTILINE)


def machine_code(source: str, architecture: str = "gfx942", num_warps: int = 4) -> str:
    """LLVM's code of a kernel."""
    llvm.init_targets()
    backend: Any = make_backend(GPUTarget("hip", architecture, 64))
    return backend.make_amdgcn(source, {}, backend.parse_options({"num_warps": num_warps}))


def read(pattern: re.Pattern[str], text: str) -> list[int]:
    """Bytes of LDS that a lane reads before each barrier and after the last one, in the order of the text."""
    between = [0]
    for found in pattern.finditer(text):
        if of := found["of"]:
            between[-1] += int(found["count"] or 1) * (int(of) // 8 if of.isdigit() else BYTES[of])
        else:
            between.append(0)
    return between


def sunk(source: str, code: str) -> list[str]:
    """The barriers before which the code reads less than the IR."""
    pairs = enumerate(zip(read(IN_IR, source), read(IN_CODE, code), strict=True), 1)
    return [f"before barrier {place}: {own} bytes of {wanted}" for place, (wanted, own) in pairs if own < wanted]


def main() -> int:
    """Print what was found, and return the exit code."""
    found = sunk(LLVM_IR, machine_code(LLVM_IR))
    print(f"Triton {triton.__version__}")
    print("expected: what the IR reads from LDS before a barrier, the code reads before that barrier")
    print("got: so" if not found else "got, of what a lane reads:\n  " + "\n  ".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

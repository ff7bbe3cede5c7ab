"""LLVM, of Triton 3.8 and 3.9, for AMD GPUs: a loop's stores into LDS are waited for after the barrier, and not before it.

The LLVM IR beside this file is a prefill of 128 dims in bfloat16 over a cache in vLLM's x-packed layout, as Triton 3.9.0 made
it of this project's kernel for gfx950 with num_stages=2. Each turn of its loop stores a tile of V into LDS, and the next turn
reads it after `fence syncscope("workgroup") release`, a barrier, and `fence ... acquire`. LLVM makes this of it:

    .LBB0_43:
    ...
    s_waitcnt vmcnt(0)
    s_barrier                                   a wave comes here while its stores are under way
    s_waitcnt lgkmcnt(0)                        and waits for them here
    ds_read_b64_tr_b16 v[140:141], v71          another wave may read the tile of the turn before
    ...
    ds_write_b16_d16_hi v169, v217 offset:7680  the last store of the next tile
    v_mfma_f32_32x32x16_bf16 ...
    s_cbranch_execnz .LBB0_43

The release should wait for all stores of the wave before the barrier, as it does in front of the loop. What Triton 3.7.0 makes
of the same launch does; it cannot read this IR. AITER's extend_attention and deepgemm_fp8_paged_mqa_logits_ragged_k have the
fault for gfx1100 under Triton 3.9. The emulator tells it as a race once the loop has turned twice, and
`attn_optimized.miscompiled` refuses such code.

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


def machine_code(source: str, architecture: str = "gfx950", num_warps: int = 4) -> list[str]:
    """LLVM's code of a kernel, an instruction or a label a line."""
    llvm.init_targets()
    backend: Any = make_backend(GPUTarget("hip", architecture, 64))
    text = backend.make_amdgcn(source, {}, backend.parse_options({"num_warps": num_warps}))
    lines = [line.partition(";")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def unwaited(code: list[str]) -> list[str]:
    """The last stores into LDS of loops of one block whose first barrier comes before a wait for them."""
    found = []
    for end, line in enumerate(code):
        if not line.startswith("s_cbranch") or f"{line.split()[1]}:" not in code[:end]:
            continue
        turn = code[code.index(f"{line.split()[1]}:") + 1 : end]
        if any(each.endswith(":") for each in turn):
            continue
        stores = [place for place, each in enumerate(turn) if each.startswith("ds_write")]
        after = turn[stores[-1] + 1 :] + turn if stores else []
        waits = (each for each in after if re.match(r"s_barrier|s_waitcnt .*lgkmcnt\(0\)", each))
        if next(waits, "").startswith("s_barrier"):
            found.append(turn[stores[-1]])
    return found


def main() -> int:
    """Print what was found, and return the exit code."""
    found = unwaited(machine_code(gzip.decompress(LLVM_IR.read_bytes()).decode()))
    print(f"Triton {triton.__version__}")
    print("expected: stores into LDS are waited for before the barrier that hands them to other waves")
    print("got: so" if not found else "got, under way at a barrier:\n  " + "\n  ".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

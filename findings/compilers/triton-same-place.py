"""Triton 3.8.0 and 3.9.0, for gfx950: the last tile is loaded into the place in LDS where the tile before it is still read.

A loop over four tiles of keys, which are found through slots, in three stages. Tiles alternate between two places in LDS,
0, 1, 0 and 1. Triton takes the first turn and the last two out of the loop, so that two turns are left, whose last one fills
place 0. The place of the last tile is one more than that, modulo 2. Triton takes it for 0:

    %first = ttg.memdesc_index %keys[%c0_i32]
    amdg.buffer_load_to_local ... into %first          tile 0, into place 0
    scf.for ... = %c0_i32 to %c2_i32                   tile 1, into place 1; tile 2, into place 0
    amdg.buffer_load_to_local ... into %first          tile 3, into place 0
    ttg.local_load %loop#2                             tile 2, from place 0

No wait stands between the load and the read. Of three tiles the last place is 0, and of five and six it is computed. 3.7.0
computes it of four, too. SGLang's _sparse_mla_fused_kernel has the fault where topk is 97 to 128 and a tile has 32 keys. The
emulator stops there as at a missing wait. A GPU reads LDS sooner than memory answers, most of the time.

This script needs Triton alone, and no GPU.
"""

import re
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TILES = 4
INTO = re.compile(r"(?:load_to_local|global_to_local) .*? into (%\w+)")


def kernel(slots, keys, queries, out, TILES: tl.constexpr):
    row, dim, key = tl.arange(0, 16), tl.arange(0, 32), tl.arange(0, 32)
    q = tl.load(queries + row[:, None] * 32 + dim)
    total = tl.full((16, 32), 0.0, tl.float32)
    for tile in tl.range(0, TILES, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
        slot = tl.load(slots + tile * 32 + key)
        k = tl.load(keys + tl.maximum(slot, 0)[:, None] * 32 + dim, mask=(slot >= 0)[:, None], other=0.0)
        total += tl.exp2(tl.dot(q, tl.trans(k)))
    tl.store(out + row[:, None] * 32 + key, total)


def compiled(tiles: int = TILES) -> Any:
    """The kernel, compiled, even where TRITON_INTERPRET is set."""
    types = {"slots": "*i32", "keys": "*bf16", "queries": "*bf16", "out": "*fp32", "TILES": "constexpr"}
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    attributes[(1,)].append(["tt.pointer_range", 32])
    source = ASTSource(JITFunction(kernel), types, {"TILES": tiles}, attributes)
    return triton.compile(source, target=GPUTarget("hip", "gfx950", 64), options={"num_warps": 4})


def is_same_place(ttgir: str) -> bool:
    """Whether the last of four tiles is loaded into the place of the first, where the third one is."""
    into = INTO.findall(ttgir)
    return len(into) > 1 and into[0] == into[-1]


def main() -> int:
    """Print what was found, and return the exit code."""
    found = is_same_place(compiled().asm["ttgir"])
    print(f"Triton {triton.__version__}")
    print("expected: of four tiles in two places, the last one is loaded into the second place")
    print(f"got: {'the first one, while the third tile is read there' if found else 'so, or no load into LDS'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

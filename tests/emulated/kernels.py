"""The text of a whole kernel, as Triton's compiler writes it, around instructions that a test gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from attn_amdgcn import Memory, Report, checked, load, prepare

_TEXT = """
    .amdgcn_target "amdgcn-amd-amdhsa-unknown-{architecture}"
    .text
kernel:
    {body}
    s_endpgm
    .section .rodata
    .amdhsa_kernel kernel
        {settings}
    .end_amdhsa_kernel
    .amdgpu_metadata
---
amdhsa.kernels:
  - .name: kernel
    .args:
      {arguments}
    .kernarg_segment_size: {bytes}
    .wavefront_size: 64
    .max_flat_workgroup_size: 128
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: {scratch}
amdhsa.target: amdgcn-amd-amdhsa--{architecture}
...
    .end_amdgpu_metadata
"""
POINTER = ("global_buffer", 8)


def kernel_text(
    *body: str,
    arguments: Sequence[tuple[str, int]] = (POINTER,),
    settings: Sequence[str] = ("user_sgpr_kernarg_segment_ptr 1", "user_sgpr_count 2"),
    workgroup_ids: str = "x",
    architecture: str = "gfx942",
    scratch: int = 0,
) -> str:
    """Two waves of 64 lanes.

    Args:
        body: its lines; the end is appended.
        arguments: the kind and the bytes of each, one after the other.
        settings: what stands in user SGPRs. By default the arguments' address is in s[0:1].
        workgroup_ids: the axes whose numbers stand in the SGPRs that follow.
        scratch: bytes of a lane.
    """
    ids = [f"system_sgpr_workgroup_id_{axis} {int(axis in workgroup_ids)}" for axis in "xyz"]
    described, offset = [], 0
    for kind, size in arguments:
        described.append(f"- {{ .offset: {offset}, .size: {size}, .value_kind: {kind} }}")
        offset += size
    return _TEXT.format(
        architecture=architecture,
        body="\n    ".join(body),
        settings="\n        ".join(f".amdhsa_{line}" for line in (*settings, *ids, "next_free_vgpr 16", "accum_offset 16")),
        arguments="\n      ".join(described),
        bytes=offset,
        scratch=scratch,
    )


KERNEL = kernel_text(
    "s_load_dwordx2 s[4:5], s[0:1], 0x0",
    "s_load_dword s6, s[0:1], 0x8",
    "s_waitcnt lgkmcnt(0)",
    "s_mov_b32 s7, 0",
    ".LBB0_1:",
    "s_add_u32 s7, s7, s6",
    "s_cmp_lt_u32 s7, s2",
    "s_cbranch_scc1 .LBB0_1",
    arguments=[POINTER, ("by_value", 4), ("hidden_block_count_x", 4)],
    workgroup_ids="xyz",
)
DATA = {"data": np.arange(16, dtype=np.uint8)}
OUT = np.zeros(1024, np.uint8)
LOADED = ("s_load_dwordx2 s[4:5], s[0:1], 0x0", "s_waitcnt lgkmcnt(0)")
"""The pointer to `out`."""
LSHL = "v_add_u32_e32 v1, v0, v0\n    v_add_u32_e32 v1, v1, v1"
"""v1 is the lane's number in its workgroup times 4."""


def checked_run(*body: str, grid: tuple[int, int, int] = (1, 1, 1), **further: Any) -> tuple[Memory, Report]:
    """Run a kernel of these lines under several schedules. It writes `out`."""
    program = prepare(load(kernel_text(*LOADED, *body)))
    return checked(program, grid, [("out", 0)], {"out": OUT}, lds_bytes=1024, **further)

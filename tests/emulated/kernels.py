"""The text of a whole kernel, as Triton's compiler writes it, around instructions that a test gives."""

from collections.abc import Sequence

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
        arguments: the kind and the bytes of each, one behind the other.
        settings: what stands in user SGPRs. By default the arguments' address is in s[0:1].
        workgroup_ids: the axes whose numbers stand in the SGPRs behind.
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

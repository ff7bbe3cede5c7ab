"""Integer arithmetic and bits of vector registers.

Source: "VOP1", "VOP2" and "VOP3 Instructions" in AMD's Instinct MI300 ISA, sections 12.7 to 12.10, and in AMD's RDNA4 ISA,
sections 16.7 to 16.10.
"""

import numpy as np
from attn_amdgcn.instructions.forms import vector


@vector("v_mov_b32", "b32 = b32")
@vector("v_mov_b64", "b64 = b64")
def mov(a):
    return a


@vector("v_add_u32 v_add_nc_u32", "u32 = u32 u32")
def add(a, b):
    return a + b


@vector("v_cndmask_b32", "b32 = b32 b32 mask")
def cndmask(a, b, mask):
    return np.where(mask, b, a)

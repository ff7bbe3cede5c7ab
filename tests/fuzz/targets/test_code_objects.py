"""Launches of code objects: what their arguments point to."""

import torch
from attn_amdgcn import Schedule, load, prepare
from attn_fuzz.emulated import code_objects

from tests.emulated.kernels import kernel_text

COPY = (
    *("s_load_dwordx2 s[4:5], s[0:1], 0x0", "s_waitcnt lgkmcnt(0)"),
    *("s_load_dwordx2 s[6:7], s[4:5], 0x0", "s_load_dwordx2 s[8:9], s[4:5], 0x8", "s_waitcnt lgkmcnt(0)"),
    *("v_lshlrev_b32_e32 v0, 2, v0", "global_load_dword v1, v0, s[6:7]", "s_waitcnt vmcnt(0)"),
    "global_store_dword v0, v1, s[8:9]",
)


def test_a_pointer_lies_in_memory():
    """The kernel gets one pointer, to the addresses of two tensors, and copies one to the other."""
    everything = torch.arange(256, dtype=torch.int32)
    source, result = everything[64:192], torch.zeros(128, dtype=torch.int32)
    code = code_objects.CodeObject("copy", prepare(load(kernel_text(*COPY))))
    code_objects.run(code, {0: (source, result)}, (1, 1, 1), [Schedule()])
    assert torch.equal(result, source)


WHOLE = (
    *("s_load_dwordx2 s[6:7], s[0:1], 0x0", "s_load_dwordx2 s[8:9], s[0:1], 0x10", "s_load_dword s10, s[0:1], 0x20"),
    *("s_waitcnt lgkmcnt(0)", "v_lshlrev_b32_e32 v0, 2, v0", "global_load_dword v1, v0, s[6:7]", "s_waitcnt vmcnt(0)"),
    *("v_mul_f32_e32 v1, s10, v1", "global_store_dword v0, v1, s[8:9]"),
)


def test_arguments_that_are_one_struct_are_its_members():
    """Two tensors, one of them a view, and a number; an argument after the struct is left out."""
    everything = torch.arange(256, dtype=torch.float32)
    source, result = everything[64:192], torch.zeros(128)
    kernel = load(kernel_text(*WHOLE, arguments=(("by_value", 40),)))
    code_objects.run(
        code_objects.CodeObject("whole", prepare(kernel)), {0: source, 16: result, 32: 0.5, 48: 3}, (1, 1, 1), [Schedule()]
    )
    assert torch.equal(result, source / 2)

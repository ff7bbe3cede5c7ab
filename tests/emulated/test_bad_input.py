"""Texts that are no kernel, and launches that do not fit theirs: one clear error each, before anything runs."""

from dataclasses import replace

import numpy as np
import pytest
from attn_amdgcn import AssemblyError, LaunchError, Schedule, UnknownInstructionError, checked, launch, load, prepare

from tests.emulated.test_run import DATA, KERNEL

PTX = ".version 8.4\n.target sm_90a\n.visible .entry kernel(\n)\n{\n\tld.param.u64 %rd1, [kernel_param_0];\n\tret;\n}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", r"no \.amdgpu_metadata", id="empty"),
        pytest.param("s_endpgm\n", r"no \.amdgpu_metadata", id="instructions alone"),
        pytest.param(PTX, "no assembly of a kernel for AMD", id="a kernel for NVIDIA"),
        pytest.param(KERNEL.encode(), "the text is of type bytes", id="bytes"),
        pytest.param(None, "the text is of type NoneType", id="nothing"),
        pytest.param(KERNEL + KERNEL, r"\.amdgpu_metadata 2 times", id="two texts"),
        pytest.param(KERNEL.replace("amdhsa.target", "  - {.name: other}\namdhsa.target"), "holds 2 kernels", id="two kernels"),
        pytest.param(KERNEL.replace(".name: kernel\n    .args", ".args"), "incompletely: KeyError: '.name'", id="no name"),
        pytest.param(KERNEL.replace("amdhsa.target", "other"), "cannot be read: KeyError: 'amdhsa.target'", id="no target"),
        pytest.param(KERNEL.replace("...", ": : ["), "cannot be read: ParserError", id="no YAML"),
        pytest.param(KERNEL.replace(".amdhsa_next_free_vgpr 16", ""), "no .amdhsa_next_free_vgpr", id="no registers"),
    ],
)
def test_what_is_no_kernel_is_not_loaded(text, message):
    with pytest.raises(AssemblyError, match=message):
        load(text)


def test_a_truncated_text_is_not_loaded():
    for end in range(0, KERNEL.index(".end_amdgpu_metadata"), 23):
        with pytest.raises(AssemblyError):
            load(KERNEL[:end])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            KERNEL.replace("    s_endpgm\n", ""),
            AssemblyError,
            "line 12: `s_cbranch_scc1 .LBB0_1`: the code ends without s_endpgm",
        ),
        (KERNEL.replace(".LBB0_1:\n", ""), AssemblyError, "line 11: `s_cbranch_scc1 .LBB0_1`: there is no such label"),
        (KERNEL.replace("gfx942", "gfx1030"), UnknownInstructionError, "architecture 'gfx1030': gfx90a, gfx942"),
        (KERNEL.replace("s_add_u32", "s_frob_u32"), UnknownInstructionError, "line 10: `s_frob_u32 s7, s7, s6`"),
        (
            KERNEL.replace("s_mov_b32 s7, 0", "s_sendmsg sendmsg(MSG_INTERRUPT)"),
            UnknownInstructionError,
            "line 8: .*: a message",
        ),
        (
            KERNEL.replace("s_mov_b32 s7, 0", "s_barrier_signal 1"),
            UnknownInstructionError,
            "a barrier of another number than -1",
        ),
        (KERNEL.replace("s_mov_b32 s7, 0", "s_barrier_wait 1"), UnknownInstructionError, "a barrier of another number than -1"),
    ],
)
def test_what_cannot_run_is_not_prepared(text, error, message):
    with pytest.raises(error, match=message):
        prepare(load(text))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": (0, 1, 1)}, "three integers"),
        ({"grid": (1, 1)}, "three integers"),
        ({"grid": (1.5, 1, 1)}, "three integers"),
        ({"grid": (1 << 31, 1 << 16, 1 << 16)}, "more than 16777216 workgroups"),
        ({"lds_bytes": -4}, "lds_bytes -4: an integer from 0 to 65536"),
        ({"lds_bytes": 65537}, "lds_bytes 65537"),
        ({"lds_bytes": 4.0}, "lds_bytes 4.0"),
        ({"arguments": [("data", 0)]}, "1 arguments, and the kernel has 2"),
        ({"arguments": [("other", 0), 1]}, "'other': there is no such buffer"),
        ({"arguments": ["data", 1]}, "argument 'data' at byte 0: the kernel has a global_buffer there"),
        ({"arguments": [("data", 0), ("data", 0)]}, "at byte 8: the kernel has a by_value there"),
        ({"arguments": [("data", 0), 1 << 32]}, "argument 4294967296: 4 bytes do not hold it"),
        ({"buffers": {"data": np.zeros(4, np.float32)}}, r"buffer data: float32 \(4,\)"),
        ({"buffers": {"data": [1, 2]}}, "buffer data: list"),
        ({"buffers": {**DATA, "kernel arguments": DATA["data"]}}, "the name is taken"),
    ],
)
def test_a_launch_that_does_not_fit_is_refused(changed, message):
    launched = {"grid": (1, 1, 1), "arguments": [("data", 0), 1], "buffers": DATA, **changed}
    with pytest.raises(LaunchError, match=message):
        launch(prepare(load(KERNEL)), **launched)


def test_a_workgroup_of_more_lanes_than_hardware_has_is_refused():
    program = prepare(replace(load(KERNEL), threads=2048))
    with pytest.raises(LaunchError, match="a workgroup of 2048 lanes"):
        launch(program, (1, 1, 1), [("data", 0), 1], DATA)


def test_schedules():
    with pytest.raises(LaunchError, match="schedule 'up', 'ascending'"):
        Schedule("up")
    with pytest.raises(LaunchError, match="schedule 'together', 'together'"):
        Schedule("together", "together")
    with pytest.raises(LaunchError, match="schedules: none"):
        checked(prepare(load(KERNEL)), (1, 1, 1), [("data", 0), 1], DATA, schedules=())

"""Texts that are no kernel, and launches that do not fit theirs: one clear error each, before anything runs."""

import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from attn_amdgcn import (
    AmdgcnError,
    AssemblyError,
    LaunchError,
    Schedule,
    UnknownInstructionError,
    checked,
    launch,
    load,
    prepare,
)

from tests.emulated.kernels import DATA, KERNEL
from tests.support.malformed import ASSEMBLY_DRAWS, LAUGHS, numbers_changed

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
        pytest.param(KERNEL.replace(".name: kernel\n    .args", ".args"), r"\.name: got nothing, expected a", id="no name"),
        pytest.param(KERNEL.replace("amdhsa.target", "other"), "amdhsa.target: got nothing, expected a text", id="no target"),
        pytest.param(KERNEL.replace("...", ": : ["), "cannot be read: ParserError", id="no YAML"),
        pytest.param(KERNEL.replace(".amdhsa_next_free_vgpr 16", ""), "no .amdhsa_next_free_vgpr", id="no registers"),
    ],
)
def test_a_text_that_is_no_kernel_is_not_loaded(text, message):
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
def test_a_kernel_that_cannot_run_is_not_prepared(text, error, message):
    with pytest.raises(error, match=message):
        prepare(load(text))


def test_whatever_a_text_says_is_run_or_refused_in_short(request):
    """Each number of a text in turn, and draws of other faults: an error of this package, and nothing of a number's size."""
    texts = [*numbers_changed(KERNEL)]
    seeds = request.config.getoption("--malformed")
    for seed in range(4 * seeds.start, 4 * seeds.stop):
        rng = random.Random(seed)
        texts.append(rng.choice(ASSEMBLY_DRAWS)(rng, KERNEL).decode())
    wrong = []
    tracemalloc.start()
    for text in texts:
        try:
            launch(prepare(load(text)), (2, 1, 1), [("data", 0), 1], DATA, most=2000)
        except AmdgcnError as error:
            if len(str(error)) > 3000:
                wrong.append(f"{text}: a message of {len(str(error))} characters")
        except Exception as error:
            wrong.append(f"{text}: {type(error).__name__}: {error}")
    most = tracemalloc.get_traced_memory()[1] >> 20
    tracemalloc.stop()
    assert not wrong, "\n".join(wrong[:5])
    assert most < 200


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("s_mov_b32 s7, 0", "s_mov_b32 s7, v99999999999", "line 8: .*v99999999999: registers v have the numbers 0 to 1023"),
        ("s_mov_b32 s7, 0", "s_mov_b64 s[9:2], 0", r"line 8: .*s\[9:2\]: registers s .* the first one before the last"),
        ("s_mov_b32 s7, 0", "v_mov_b32_e32 v16, 0", "line 8: .*: v16: the kernel has 16 vector registers"),
        ("s_mov_b32 s7, 0", "s_mov_b32 s7, " + "9" * 30, "a number of at most 64 bits"),
        (
            "s_mov_b32 s7, 0",
            "v_mov_b32_dpp v1, v2 quad_perm:[0,1]",
            "line 8: .*: its operands or modifiers are not of its form",
        ),
        ("s_mov_b32 s7, 0", "s_waitcnt_vscnt", "line 8: .*: its operands or modifiers are not of its form"),
        ("s_mov_b32 s7, 0", "s_mov_b32 s7, 0" * 100, "line 8: it has 1500 characters"),
        ("vgpr 16", "vgpr 1000000000000", r"line 21: \.amdhsa_next_free_vgpr: got 1000000000000, expected one from 1 to 512"),
        ("workgroup_size: 128", "workgroup_size: x", r"\.max_flat_workgroup_size: got 'x', expected an integer"),
        ("workgroup_size: 128", "workgroup_size: 0", r"\.max_flat_workgroup_size: got 0, expected an integer from 1 to 1024"),
        ("fixed_size: 0", "fixed_size: 1000000000000", "fixed_size: got 1000000000000, expected an integer from 0 to 65536"),
        (".size: 8", ".size: 99", r"\.size: got 99, expected an integer from 1 to 16"),
        (".name: kernel", ".name: *a8", "anchor or an alias"),
        (".name: kernel", ".name: kernel\n    .name: kernel", "there twice"),
        (".name: kernel", f".name: {'[' * 40}", "nested more than 32 deep"),
        ("---", "---\n#" + "x" * 70_000, "and at most 65536 are expected"),
    ],
)
def test_metadata_that_no_architecture_has_is_named(old, new, message):
    laughs = LAUGHS if "*a8" in new else ""
    text = KERNEL.replace("---\n", f"---\n{laughs}")
    with pytest.raises(AssemblyError, match=message):
        prepare(load(text.replace(old, new, 1)))


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


def test_a_wrong_schedule_is_refused():
    with pytest.raises(LaunchError, match="schedule 'up', 'ascending'"):
        Schedule("up")
    with pytest.raises(LaunchError, match="schedule 'together', 'together'"):
        Schedule("together", "together")
    with pytest.raises(LaunchError, match="schedules: none"):
        checked(prepare(load(KERNEL)), (1, 1, 1), [("data", 0), 1], DATA, schedules=())

"""Findings in compilers: their scripts see the fault in machine code, and the installed compiler has it or has not."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
from attn_fuzz.report.finding_scripts import DOES_NOT_SHOW, FOLDER, SHOWS

LOST_SHIFT, BEFORE_EXEC = (FOLDER / "compilers" / f"{name}.py" for name in ("ptxas-lost-shift", "llvm-copies-before-exec"))
WRONG = ["/*0010*/ IMAD R4, R4, 0x1f8, R5 ;", "/*0020*/ IMAD.SHL.U32 R5, R4, 0x10, RZ ;"]
JUMP, LABEL, ON = "s_cbranch_execz .LBB0_1", ".LBB0_1:", "s_or_b64 exec, exec, s[2:3]"
COPY = "v_accvgpr_write_b32 a0, v221"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script", request.param)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", [LOST_SHIFT], indirect=True)
@pytest.mark.parametrize(
    ("code", "is_lost"),
    [
        (WRONG, True),
        ([WRONG[0], "/*0018*/ PRMT R7, RZ, 0x7610, R4 ;", WRONG[1]], True),
        ([WRONG[1], WRONG[0]], False),
        ([WRONG[0], "/*0018*/ LOP3.LUT R4, R6, 0x7, RZ, 0xc0, !PT ;", WRONG[1]], False),
    ],
)
def test_a_shift_is_lost_if_its_register_has_the_sum_already(script, code, is_lost):
    assert (script.lost_shift(code) is not None) == is_lost


def test_ptxas_12_8_loses_the_shift_and_later_ones_do_not():
    done = subprocess.run([sys.executable, LOST_SHIFT], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "release 12.8" in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr


@pytest.mark.parametrize("script", [BEFORE_EXEC], indirect=True)
@pytest.mark.parametrize(
    ("code", "early"),
    [
        ([JUMP, "s_nop 0", LABEL, COPY, "s_mov_b32 s98, s86", ON], [COPY]),
        ([JUMP, LABEL, "s_mov_b32 s98, s86", ON, COPY], []),
        ([JUMP, LABEL, "v_writelane_b32 v255, s3, 55", ON], []),  # it writes one lane, be it on or off
        ([JUMP, LABEL, COPY, "s_mov_b64 exec, s[4:5]", ON], []),
        (["s_cbranch_scc1 .LBB0_1", LABEL, COPY, ON], []),
    ],
)
def test_a_copy_before_lanes_are_switched_on_is_too_early(script, code, early):
    assert script.too_early(code) == early


def test_llvm_22_copies_registers_while_lanes_are_off_and_later_ones_do_not():
    done = subprocess.run([sys.executable, "-W", "ignore", BEFORE_EXEC], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "Triton 3.6." in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr

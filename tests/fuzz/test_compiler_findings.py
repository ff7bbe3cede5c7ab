"""Findings in compilers: their scripts see the fault in machine code, and the installed compiler has it or has not."""

import importlib.util
import subprocess
import sys

import pytest
from attn_fuzz.report.finding_scripts import DOES_NOT_SHOW, FOLDER, SHOWS

SCRIPT = FOLDER / "compilers" / "ptxas-lost-shift.py"
WRONG = ["/*0010*/ IMAD R4, R4, 0x1f8, R5 ;", "/*0020*/ IMAD.SHL.U32 R5, R4, 0x10, RZ ;"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ptxas_lost_shift", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == (SHOWS if "release 12.8" in done.stdout else DOES_NOT_SHOW), done.stdout + done.stderr

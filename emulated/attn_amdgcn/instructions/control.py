"""Branches, barriers, and instructions that change no value.

Source: "SOPP Instructions" in AMD's Instinct MI300 ISA and in AMD's RDNA4 ISA.
"""

from collections.abc import Callable

import numpy as np
from attn_amdgcn.assembly import Instruction, Kernel, Literal, Named
from attn_amdgcn.instructions import modes
from attn_amdgcn.instructions.forms import Step, check_count, own_step
from attn_amdgcn.operands import unknown
from attn_amdgcn.waves import EXEC, VCC, Waves

CONDITIONS: dict[str, Callable[[Waves], np.ndarray]] = {
    "s_cbranch_scc0": lambda waves: ~waves.scc,
    "s_cbranch_scc1": lambda waves: waves.scc,
    "s_cbranch_vccz": lambda waves: ~_any(waves, VCC),
    "s_cbranch_vccnz": lambda waves: _any(waves, VCC),
    "s_cbranch_execz": lambda waves: ~_any(waves, EXEC),
    "s_cbranch_execnz": lambda waves: _any(waves, EXEC),
}
"""[waves] bool: which waves take a conditional branch."""
BRANCHES = ("s_branch", *CONDITIONS)
ENDS = ("s_endpgm",)
BARRIERS = ("s_barrier", "s_barrier_wait")
"""Instructions at which a wave waits for the others of its workgroup. gfx12 has s_barrier_signal before."""


def _any(waves: Waves, index: int) -> np.ndarray:
    """True if a bit is set in a mask. A wave of 32 lanes has no second half."""
    return (waves.scalar[:, index : index + waves.shape[1] // 32] != 0).any(axis=1)


NO_EFFECT = """
s_nop s_sleep s_setprio s_clause s_delay_alu s_wait_alu s_waitcnt_depctr s_icache_inv s_inst_prefetch
s_code_end s_set_inst_prefetch_distance s_set_vgpr_msb v_nop global_inv global_wb global_wbinv buffer_gl0_inv buffer_gl1_inv
buffer_inv buffer_wbl2 buffer_wbinvl1
"""
"""Instructions that change only timing or caches, neither of which exists here. Waits for arithmetic results are not
checked."""
WAITS = (
    "s_waitcnt s_wait_loadcnt s_wait_storecnt s_wait_dscnt s_wait_kmcnt s_wait_samplecnt s_wait_bvhcnt s_wait_expcnt "
    "s_wait_loadcnt_dscnt s_wait_storecnt_dscnt s_wait_xcnt s_wait_idle s_waitcnt_vscnt s_waitcnt_vmcnt s_waitcnt_lgkmcnt "
    "s_wait_asynccnt s_wait_tensorcnt"
)
"""Waits for memory: see `attn_amdgcn.waits`."""


def nothing(waves: Waves) -> None:
    """The step of an instruction that changes no value."""


@own_step(f"{NO_EFFECT} {WAITS}")
def no_effect(instruction: Instruction, kernel: Kernel) -> Step:
    return nothing


@own_step("s_sendmsg")
def send_message(instruction: Instruction, kernel: Kernel) -> Step:
    """The one message that is known frees a wave's registers at its end."""
    check_count(instruction, 1)
    message = instruction.operands[0].of
    if not isinstance(message, Named) or message.text != "sendmsg(MSG_DEALLOC_VGPRS)":
        raise unknown(instruction, "a message")
    return nothing


@own_step("s_barrier_signal")
def barrier_signal(instruction: Instruction, kernel: Kernel) -> Step:
    """Announces a wave at the workgroup's barrier, whose number is -1. The wave waits at s_barrier_wait."""
    check_count(instruction, 1)
    if instruction.operands[0].of != Literal(-1):
        raise unknown(instruction, "a barrier of another number than -1")
    return nothing


_SCHEDULING = (Named("hwreg(HW_REG_WAVE_MODE, 25, 1)"), Named("hwreg(HW_REG_WAVE_SCHED_MODE, 0, 2)"))
"""Fields that say how gfx1250 repeats memory instructions after a page fault (LLVM pull request 169016), and whether hardware
waits for results of arithmetic (LLVM pull request 170319)."""

_ROUNDING = (Named("hwreg(HW_REG_MODE, 2, 2)"), Named("hwreg(HW_REG_WAVE_MODE, 2, 2)"))
"""The rounding of float16 and float64: 0, to nearest, as `modes` requires when a program begins."""


@own_step("s_setreg_imm32_b32")
def setreg(instruction: Instruction, kernel: Kernel) -> Step:
    """Fields of mode registers that change no value, rounding to nearest, and FP16_OVFL; any other field is refused."""
    check_count(instruction, 2)
    field, value = (operand.of for operand in instruction.operands)
    if field in modes.FP16_OVFL:
        modes.check_overflow(instruction, kernel)
    elif field not in _SCHEDULING and not (field in _ROUNDING and value == Literal(0)):
        raise unknown(instruction)
    return nothing

"""An interpreter of the code that Triton compiles for AMD GPUs, on numpy. It knows nothing of attention.

`load` reads `asm["amdgcn"]`, `prepare` makes it ready, `launch` runs a grid, and `checked` runs it under several schedules.
`counts` says what ran.
"""

from attn_amdgcn.assembly import Kernel, load
from attn_amdgcn.checked import SCHEDULES, checked
from attn_amdgcn.counts import counts
from attn_amdgcn.errors import AmdgcnError, AssemblyError, Fault, LaunchError, UnknownInstructionError
from attn_amdgcn.launch import Report, Schedule, launch
from attn_amdgcn.memory import Memory
from attn_amdgcn.program import Program, prepare

__all__ = [
    "SCHEDULES",
    "AmdgcnError",
    "AssemblyError",
    "Fault",
    "Kernel",
    "LaunchError",
    "Memory",
    "Program",
    "Report",
    "Schedule",
    "UnknownInstructionError",
    "checked",
    "counts",
    "launch",
    "load",
    "prepare",
]

"""An interpreter of the code that Triton compiles for AMD GPUs, on numpy. It knows nothing of attention.

`load` reads `asm["amdgcn"]`, `prepare` makes it ready, `launch` runs a grid, and `checked` runs it under several schedules.
`counts` and `multiply_adds` say what ran, `Accesses` how its accesses fit the memory, and `inexact` what of it hardware may
round in another way. `lost_addresses` finds accesses whose address the compiler lost, without running anything.

What the readings were held against. AMD's pseudocode in the ISA documents of CDNA4, RDNA3.5 and RDNA4 is public as tables that
tinygrad makes of the documents (`tinygrad/runtime/autogen/amd/*/str_pcode.py`). They have 334 of the 358 mnemonics in a sample
of the shipped launches (40 of each of five architectures). Scalar and vector integers, bits, selections, lanes, the larger and
the smaller one of floats, sums and products of floats, and division were read beside them. Comparisons, conversions, memory and
matrix instructions were not.

Nobody had the documents themselves. Where a module names one of them, it names the chapter to which the instruction belongs,
and the reading is this project's. So are all readings of gfx90a, gfx942 and gfx1250 where they differ from the three documents,
of waits, DPP, SDWA, the bounds of buffers, and of the layouts of matrices.

Left where the ISA is not exact: the sums of matrix instructions (here in numpy's order; hardware's order and rounding are not
published), transcendental functions (here the nearest float; hardware promises 1 ulp), and division (where this project
departs from AMD's pseudocode: `instructions.division`).
"""

from attn_amdgcn.accesses import Accesses
from attn_amdgcn.assembly import Kernel, load
from attn_amdgcn.checked import SCHEDULES, checked
from attn_amdgcn.counts import counts, multiply_adds
from attn_amdgcn.errors import AmdgcnError, AssemblyError, Fault, LaunchError, Touch, UnknownInstructionError
from attn_amdgcn.flow import hot_loop
from attn_amdgcn.launch import Report, Schedule, launch
from attn_amdgcn.memory import Memory, Parts
from attn_amdgcn.origins import lane_moves_in_loops, lost_addresses
from attn_amdgcn.program import Program, prepare
from attn_amdgcn.rounding import inexact
from attn_amdgcn.watch import Access, Watch

__all__ = [
    "SCHEDULES",
    "Access",
    "Accesses",
    "AmdgcnError",
    "AssemblyError",
    "Fault",
    "Kernel",
    "LaunchError",
    "Memory",
    "Parts",
    "Program",
    "Report",
    "Schedule",
    "Touch",
    "UnknownInstructionError",
    "Watch",
    "checked",
    "counts",
    "hot_loop",
    "inexact",
    "lane_moves_in_loops",
    "launch",
    "load",
    "lost_addresses",
    "multiply_adds",
    "prepare",
]

"""An interpreter of the code that Triton compiles for AMD GPUs, on numpy. It knows nothing of attention.

`load` reads `asm["amdgcn"]`, `prepare` makes it ready, `launch` runs a grid, and `checked` runs it under several schedules.
`counts` and `multiply_adds` say what ran, `Accesses` how its accesses fit the memory, and `inexact` what of it hardware may
round in another way. `lost_addresses` finds accesses whose address the compiler lost, without running anything.

Sources: AMD's pseudocode in the ISA documents of CDNA4, RDNA3.5 and RDNA4, as the tables that tinygrad makes of the documents
(`tinygrad/runtime/autogen/amd/*/str_pcode.py`). They have 334 of the 358 mnemonics in a sample of the shipped launches (40 of
each of five architectures). Integers, bits, selections, lanes, minima and maxima, sums, products and division were compared
with them; comparisons, conversions, memory and matrix instructions were not.

The documents themselves were not at hand. A module that names one of them names the chapter to which the instruction belongs,
and the meaning is this project's reading. So is everything about waits, DPP, SDWA, the bounds of buffers and the layouts of
matrices, and about gfx90a, gfx942 and gfx1250 where they differ from the three documents.

Results may differ from hardware where the ISA is not exact: sums of matrix instructions (here in numpy's order; hardware's
order and rounding are not published), transcendental functions (here the nearest float; hardware promises 1 ulp), and division
(where this project departs from AMD's pseudocode: `instructions.division`).
"""

from attn_amdgcn.accesses import Accesses
from attn_amdgcn.assembly import Kernel, load
from attn_amdgcn.checked import SCHEDULES, checked
from attn_amdgcn.counts import counts, multiply_adds
from attn_amdgcn.errors import AmdgcnError, AssemblyError, EmulationFault, LaunchError, Touch, UnknownInstructionError
from attn_amdgcn.flow import hot_loop
from attn_amdgcn.launch import Report, Schedule, launch
from attn_amdgcn.memory import Memory, PermittedBytes
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
    "EmulationFault",
    "Kernel",
    "LaunchError",
    "Memory",
    "PermittedBytes",
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

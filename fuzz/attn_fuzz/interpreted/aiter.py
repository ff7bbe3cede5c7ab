"""Loads AITER's Triton unified_attention on a CPU: the installed files, unchanged, under Triton's interpreter.

`import aiter` asks ROCm for its version and Triton for its GPU. It fails on a machine without them. So `attn_fuzz.foreign`
loads only the modules of this kernel, and fixed answers replace the two modules that ask the GPU.
"""

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING

from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter

COMPUTE_UNITS = 16
"""The compute units that the kernel sees on every machine. It splits keys if it has fewer programs than four times this."""
XCDS = 8
"""Chiplets of an MI300X. Kernels spread heads over them."""
ARCHITECTURE = "gfx942"
"""The architecture that the kernel sees. Its native float8 is e4m3fnuz."""
FOLDERS = (
    "ops/triton/_triton_kernels/",
    "ops/triton/_triton_kernels/attention/",
    "ops/triton/_triton_kernels/quant/",
    "ops/triton/utils/",
    "ops/triton/utils/_triton/",
)
_LDS_BYTES = {"gfx1250": 320 << 10, "gfx950": 160 << 10, "gfx942": 64 << 10}


def stubs(architecture: str = ARCHITECTURE, compute_units: int = COMPUTE_UNITS) -> Stubs:
    """What the kernels' modules ask of a GPU of an architecture."""
    is_rdna = architecture.startswith(("gfx11", "gfx120"))
    arch = SimpleNamespace(name=architecture, family="rdna" if is_rdna else "cdna", is_rdna=is_rdna, is_cdna=not is_rdna)
    return {
        "aiter.ops.triton.utils.device_info": {"get_num_sms": lambda: compute_units, "get_num_xcds": lambda: XCDS},
        "aiter.ops.triton.utils._triton.arch_info": {
            "get_arch": lambda: architecture,
            "get_device": lambda: "MI300X",
            "is_fp8_avail": lambda: architecture in ("gfx942", "gfx950"),
            "_LDS_CAP_BYTES": _LDS_BYTES,
        },
        # where AITER of August 2026 asks for it
        "aiter.ops.triton._triton_kernels.flash_attn_triton_amd.utils": {"get_arch": lambda: arch},
    }


def interpreted(aiter: "Aiter") -> "Aiter":
    """The same AITER, with its unified_attention loaded for the interpreter.

    Call `attn_fuzz.interpreted.interpreter.install` before: it corrects the interpreter's 16-bit types and float8.

    Raises:
        RuntimeError: TRITON_INTERPRET was not set when this process imported Triton, or there is no AITER.
        ImportError: the kernel's modules import a module that is neither in FOLDERS nor in `stubs`.
    """
    from triton import knobs

    if not knobs.runtime.interpret:
        raise RuntimeError("Triton compiles in this process: set TRITON_INTERPRET=1 before it is imported")
    if aiter.missing is not None or aiter.location is None:
        raise RuntimeError(aiter.missing or f"{aiter} is a record, without source")
    file = "/".join(aiter.signatures["unified_attention"].module.split(".")[1:]) + ".py"
    folders = [folder for folder in FOLDERS if (aiter.location / folder).is_dir()]
    [module] = foreign.load("aiter", (file, *folders), stubs=stubs(), folder=aiter.location)
    return dataclasses.replace(aiter, functions={**aiter.functions, "unified_attention": module.unified_attention})

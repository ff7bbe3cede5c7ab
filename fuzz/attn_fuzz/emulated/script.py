"""Runs a script whose Triton kernels are compiled for a GPU of AMD that is not here, and emulated.

    python -m attn_fuzz.emulated.script gfx942 SCRIPT

The script's tensors are on the CPU, and it may ask for Triton's interpreter, which it does not get. Exit 2 if the script
raises: with 1 a script says that a kernel is wrong.
"""

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from typing import Any


def install(architecture: str) -> None:
    """Have each later launch of a kernel compile it for the architecture and run the code on the emulator.

    Call it before the kernels are imported, in a process that did not import Triton with TRITON_INTERPRET.
    """
    from attn_amdgcn import load, prepare
    from attn_fuzz.emulated.compilation import compiled_kernel, launchable
    from attn_fuzz.emulated.compiler import Ready
    from attn_fuzz.emulated.emulation import run_ready
    from triton import JITFunction, knobs

    def run(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        binary, source = compiled_kernel(kernel, architecture, *arguments, **named)
        compiled = launchable(binary, source)
        defaults = {parameter.name: parameter.default for parameter in kernel.params if parameter.has_default}
        given = {name: value for name, value in named.items() if name in kernel.arg_names}
        values = defaults | dict(zip(kernel.arg_names, arguments, strict=False)) | given
        programs: Sequence[int] = grid(values) if callable(grid) else grid  # pyright: ignore[reportAssignmentType]
        run_ready(Ready(prepare(load(compiled.text)), compiled), values, programs)

    knobs.runtime.interpret = False  # wins over the environment variable
    JITFunction.run = run  # pyright: ignore[reportAttributeAccessIssue]


def main(architecture: str, script: str) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    install(architecture)
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Loads AITER's Triton unified_attention on a CPU: the installed files, unchanged, under Triton's interpreter.

`import aiter` asks ROCm for its version and Triton for its GPU. It fails on a machine without them. So only the modules of this
kernel are imported, under the names by which they import each other. Empty modules with the paths of the folders replace
AITER's packages: no `__init__` runs. Modules with fixed answers replace the two modules that ask the GPU. All these names are
removed from `sys.modules` when the kernel is loaded.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter

COMPUTE_UNITS = 16
"""Compute units that the kernel is told on every machine. It splits keys if it has fewer programs than four times this."""
ARCHITECTURE = "gfx942"
"""The architecture that the kernel is told. Its native float8 is e4m3fnuz."""
PACKAGES = ("ops", "ops.triton", "ops.triton.attention", "ops.triton.utils", "ops.triton.utils._triton")
_ANSWERS = {
    "ops.triton.utils.device_info": {"get_num_sms": lambda: COMPUTE_UNITS},
    "ops.triton.utils._triton.arch_info": {"get_arch": lambda: ARCHITECTURE, "is_fp8_avail": lambda: True},
}


def interpreted(aiter: "Aiter") -> "Aiter":
    """The same AITER, with its unified_attention loaded for the interpreter.

    Call `attn_fuzz.interpreted.interpreter.install` before: it corrects the interpreter's 16-bit types and float8.

    Raises:
        RuntimeError: TRITON_INTERPRET was not set when this process imported Triton, or there is no AITER.
        ImportError: the kernel's modules import a module that is neither in PACKAGES nor answered here.
    """
    from triton import knobs

    if not knobs.runtime.interpret:
        raise RuntimeError("Triton compiles in this process: set TRITON_INTERPRET=1 before it is imported")
    if aiter.missing is not None or aiter.location is None:
        raise RuntimeError(aiter.missing or f"{aiter} is a record, without source")
    signature = aiter.signatures["unified_attention"]
    with _packages(aiter.location):
        module = importlib.import_module(signature.module)
    return dataclasses.replace(aiter, functions={**aiter.functions, "unified_attention": module.unified_attention})


@contextmanager
def _packages(folder: Path) -> Iterator[None]:
    """Put the stand-ins for AITER's packages and modules into `sys.modules`, and restore its earlier contents at the end."""
    before = {name: module for name, module in sys.modules.items() if _is_aiters(name)}
    for name in before:
        del sys.modules[name]
    _add("aiter", __path__=[str(folder)])
    for name in PACKAGES:
        _add(f"aiter.{name}", __path__=[str(folder.joinpath(*name.split(".")))])
    for name, answers in _ANSWERS.items():
        _add(f"aiter.{name}", **answers)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_aiters(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _add(name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    package, _, attribute = name.rpartition(".")
    if package:
        setattr(sys.modules[package], attribute, module)


def _is_aiters(name: str) -> bool:
    return name == "aiter" or name.startswith("aiter.")

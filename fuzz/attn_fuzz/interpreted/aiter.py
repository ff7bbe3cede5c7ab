"""AITER's Triton unified_attention on a CPU: the installed files as they are, under Triton's interpreter.

`import aiter` asks ROCm for its version and Triton for its GPU, and fails where there is neither. So only the modules of this
kernel are run, by the names under which they import each other: packages are their folders, without what their `__init__`
does, and what the two modules that ask the GPU say is said here. The names are gone from `sys.modules` when it is loaded.
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
"""How many the interpreter stands for, on every machine: keys are split where programs are fewer than four times as many."""
ARCHITECTURE = "gfx942"
"""Whose float8 the kernel is to take for its own: e4m3fnuz."""
PACKAGES = ("ops", "ops.triton", "ops.triton.attention", "ops.triton.utils", "ops.triton.utils._triton")
_ANSWERS = {
    "ops.triton.utils.device_info": {"get_num_sms": lambda: COMPUTE_UNITS},
    "ops.triton.utils._triton.arch_info": {"get_arch": lambda: ARCHITECTURE, "is_fp8_avail": lambda: True},
}


def interpreted(aiter: "Aiter") -> "Aiter":
    """The same AITER with its unified_attention loaded for the interpreter.

    `attn_fuzz.interpreted.interpreter.install` makes that right about 16-bit types and float8; call it before.

    Raises:
        RuntimeError: TRITON_INTERPRET was not set when this process imported Triton, or there is no AITER.
        ImportError: the kernel's modules import what is not answered here.
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
    """The names of AITER's packages and of what is answered here, while it lasts."""
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

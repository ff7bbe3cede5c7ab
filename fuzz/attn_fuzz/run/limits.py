"""Which exceptions are limits or faults of this tool, and no verdict on the kernel that met them."""

import importlib.util
import re
import sys
import traceback
from types import FrameType

from attn_contract import ContractError, MiscompiledError, UnsupportedError
from attn_fuzz.errors import FaultError, HelperKilledError, LimitError, RefusedByTritonError
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.patches.mutant import INSTALLED
from attn_fuzz.run.exceptions import causes, message_of, module_of
from attn_fuzz.text import one_line

_TOOLS = ("attn_amdgcn", "attn_fuzz")
_PASSED_THROUGH = ("attn_contract", "attn_reference", "numpy", "torch", *sys.stdlib_module_names)
"""What raises at a call for which the caller is to blame."""
_RAISES_AGAIN = "attn_fuzz.targets.rank_processes"
"""It raises what a rank has raised in another process."""
_ON_PURPOSE = (ContractError, HelperKilledError, MiscompiledError, RefusedByTritonError, UnsupportedError, Violation)
"""Types of verdicts on the kernel, whoever raises them."""
_LATER = {"attn_amdgcn.errors": ("AmdgcnError",), "attn_fuzz.emulated.compiler": ("CompilerError",)}
"""Such types of modules that a run without an emulated target does not import."""


def limit_of(error: BaseException | None) -> str | None:
    """The limit of this tool that an exception tells, with what would lift it; None if it tells none.

    Triton's interpreter makes another exception of each that a function of its language raises: the cause tells the limit.
    """
    emulator = sys.modules.get("attn_amdgcn.errors")
    unknown = () if emulator is None else (emulator.AssemblyError, emulator.UnknownInstructionError)
    for each in () if error is None else causes(error):
        if isinstance(each, LimitError):
            return one_line(each.sentence, 300)
        if isinstance(each, unknown):
            instruction = re.search(r"`(\w+)[^`]*`(: .+)?", str(each))
            what = f"{instruction[1]}{instruction[2] or ''}" if instruction else message_of(each)
            return f"{what} (lifted by its meaning in attn_amdgcn.instructions)"
        if isinstance(each, ModuleNotFoundError) and (absent := _absent(each.name)):
            return f"module {each.name} (lifted by installing {absent})"
    return None


def _absent(module: str | None) -> str | None:
    """The package of a module, if it is not installed. Who imports what an installed package does not have is at fault."""
    package = (module or "").partition(".")[0]
    return package if package and package not in sys.modules and importlib.util.find_spec(package) is None else None


def check_no_fault(error: BaseException) -> None:
    """
    Raises:
        FaultError: the exception is a fault of this tool: one of its own functions raised it, and not on purpose.
    """
    if INSTALLED:  # a mutant is at fault
        return
    met = list(causes(error))
    later = tuple(getattr(sys.modules[name], each) for name in _LATER if name in sys.modules for each in _LATER[name])
    if any(isinstance(each, (*_ON_PURPOSE, *later)) for each in met):
        return
    place = next((place for each in reversed(met) if (place := _raised_in(each)) is not None), None)
    if place is not None and _is_of_tool(place):
        raise FaultError(f"a fault of this tool, not of the kernel:\n{''.join(traceback.format_exception(error))}") from error


def _raised_in(error: BaseException) -> FrameType | None:
    """The innermost frame of code that may be at fault: of a tool, of Triton, or of the code under test."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((each for each in reversed(frames) if module_of(each).partition(".")[0] not in _PASSED_THROUGH), None)


def _is_of_tool(frame: FrameType) -> bool:
    module = module_of(frame)
    return module.partition(".")[0] in _TOOLS and module != _RAISES_AGAIN

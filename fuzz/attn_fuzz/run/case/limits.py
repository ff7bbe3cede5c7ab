"""Tells exceptions that are limits or faults of this tool from those that are a verdict on the kernel."""

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import FrameType

import attn_fuzz
import torch
from attn_contract import ContractError, MiscompiledError, UnsupportedError
from attn_fuzz.errors import FailedCheckError, FaultError, HelperKilledError, LimitError, RefusedByTritonError
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.patches.mutant import INSTALLED
from attn_fuzz.run.case.exceptions import causes, message_of, module_of
from attn_fuzz.text import one_line

_TOOLS = ("attn_amdgcn", "attn_fuzz")
_PASSED_THROUGH = ("attn_contract", "attn_reference", "numpy", "torch", *sys.stdlib_module_names)
"""Packages whose exceptions at a call are the caller's fault."""
_NO_TOOLS = ("attn_fuzz.run.", "attn_fuzz.targets.ranks.processes")
"""Modules that call the code under test and wait for its GPU, or raise again an exception of a rank in another process."""
_ON_PURPOSE = (
    ContractError,
    FailedCheckError,
    HelperKilledError,
    MiscompiledError,
    RefusedByTritonError,
    UnsupportedError,
    Violation,
)
"""Types of exceptions that are verdicts on the kernel in any case."""
_OF_GPUS = (torch.AcceleratorError, torch.OutOfMemoryError)
"""Exceptions of any later call after a kernel's fault on a GPU."""
_NO_GPU = ("Torch not compiled with CUDA enabled", "0 active drivers", "Found no NVIDIA driver", "No CUDA GPUs are available")
"""The beginnings of torch's and Triton's messages that there is no GPU."""
_TORCH, _TOOL = Path(torch.__file__).parent, Path(attn_fuzz.__file__).parent
_UNBOUND = re.compile(r"\S+\(\) (missing|takes|got) ")
"""The beginnings of Python's messages that a call does not bind, such as a kernel's call of a function of Triton."""
_LATER = {"attn_amdgcn.errors": ("AmdgcnError",), "attn_fuzz.emulated.compiler": ("CompilerError",)}
"""More such types, of modules that a run without an emulated target does not import."""


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
        if isinstance(each, AttributeError) and type(each.obj).__name__ == "InterpreterBuilder":
            frames = [frame for frame, _ in traceback.walk_tb(each.__traceback__) if _is_of_language(frame)]
            called = [name for frame in frames if not (name := frame.f_code.co_name).startswith("__")]  # not a constexpr's call
            return LimitError(f"tl.{(*called, each.name)[0]}: Triton's interpreter has no {each.name}").sentence
        if isinstance(each, ValueError) and "Did you forget to add @triton.jit" in str(each) and (function := _builtin(each)):
            return LimitError(f"{function}: Triton's interpreter does not replace it").sentence
        if place := _traced_tool(each):
            return LimitError(f"torch.compile cannot compile what this tool does at {place}").sentence
        if message_of(each).startswith(_NO_GPU):
            return LimitError(f"the call asks for a GPU: {message_of(each)}", "a machine with one").sentence
        if isinstance(each, NotImplementedError) and message_of(each).startswith("Block pointers have been removed"):
            return LimitError("Triton has no block pointers from 3.9 on", "an older Triton").sentence
        if isinstance(each, ModuleNotFoundError) and (absent := _absent(each.name)):
            return f"module {each.name} (lifted by installing {absent})"
    return None


def _traced_tool(error: BaseException) -> str | None:
    """The place of this tool that Dynamo was compiling when it raised; None if it was compiling other code.

    Dynamo keeps the frames of what it compiles, which do not run, beside the exception.
    """
    frames = getattr(error, "real_stack", None)
    for frame in reversed(frames if isinstance(frames, traceback.StackSummary) else ()):
        path = Path(frame.filename)
        if not path.is_relative_to(_TORCH):
            return f"{path.relative_to(_TOOL)}:{frame.lineno}" if path.is_relative_to(_TOOL) else None
    return None


def _builtin(error: ValueError) -> str:
    """The function of Triton's language that raised because no kernel calls it: of a module that the interpreter leaves."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    function = frame.f_locals.get("fn")
    return f"{function.__module__}.{function.__name__}" if _is_of_language(frame) and function is not None else ""


def _absent(module: str | None) -> str | None:
    """The package of a module, if it is not installed. Code that imports a name that an installed package lacks is at fault."""
    package = (module or "").partition(".")[0]
    return package if package and package not in sys.modules and importlib.util.find_spec(package) is None else None


def _is_of_language(frame: FrameType) -> bool:
    return module_of(frame).startswith("triton.language")


def check_no_fault(error: BaseException) -> None:
    """
    Raises:
        FaultError: the exception is a fault of this tool: one of its own functions raised it, and not on purpose.
    """
    if INSTALLED or not isinstance(error, Exception):  # a mutant is at fault, or the process is told to end
        return
    met = list(causes(error))
    later = tuple(getattr(sys.modules[name], each) for name in _LATER if name in sys.modules for each in _LATER[name])
    if any(isinstance(each, (*_ON_PURPOSE, *_OF_GPUS, *later)) for each in met) or _UNBOUND.match(message_of(met[-1])):
        return
    place = next((place for each in reversed(met) if (place := _raised_in(each)) is not None), None)
    if place is not None and _is_of_tool(place):
        raise FaultError(f"a fault of this tool, not of the kernel:\n{''.join(traceback.format_exception(error))}") from error


def _raised_in(error: BaseException) -> FrameType | None:
    """The innermost frame of code that may be at fault: of a tool, of Triton, or of the code under test.

    Code that calls an operator object of torch passes on an operation of other code: modes of `attn_fuzz.interpreted` do so.
    """
    inner = ""
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        module = module_of(frame)
        if inner != "torch._ops" and module.partition(".")[0] not in _PASSED_THROUGH:
            return frame
        inner = module
    return None


def _is_of_tool(frame: FrameType) -> bool:
    module = module_of(frame)
    return module.partition(".")[0] in _TOOLS and not module.startswith(_NO_TOOLS)

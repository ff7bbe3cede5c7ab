"""Makes Triton's interpreter correct and quick, in a process that interprets kernels and does nothing else.

`install` replaces parts of the interpreter of Triton 3.6 to 3.9:

    casts, and how numbers are stored            `attn_fuzz.interpreted.numbers`
    arithmetic, comparisons, tl.dot, atomics     `attn_fuzz.interpreted.arithmetic`
    reductions and scans                         `attn_fuzz.interpreted.reductions`
    loads and stores                             `attn_fuzz.interpreted.memory`
    functions of libdevice                       `attn_fuzz.interpreted.libdevice`
    `and`, `or`, `not` and the truth of blocks   `attn_fuzz.interpreted.language`
    the order of a launch's programs             `attn_fuzz.interpreted.program_order`
    many programs of a launch run together       `attn_fuzz.interpreted.together`
    types of the language, each made once        `attn_fuzz.interpreted.types`
    operations of the language, played again     `attn_fuzz.interpreted.tapes`
    the language, patched once per module of kernels and not in every call
    launches, without NumPy's warnings: a GPU computes infinities and NaN silently

The other parts are right as Triton has them, or raise. `tests/fuzz/interpreted/test_interpreter.py` goes through all dtypes and
all functions of the language.
"""

import importlib
import inspect
from typing import Any

import numpy as np
from attn_fuzz.interpreted import arithmetic, language, libdevice, memory, reductions, tapes, types
from attn_fuzz.interpreted.together import blocks, control, launches

# set on Triton's InterpreterBuilder, for kernels that refuse bfloat16 where it is computed as bit patterns
EXACT = "exact_bfloat16"
_PARTS = {
    "": (
        *("_patch_lang", "_patch_attr", "_LangPatchScope"),
        *("ASTTransformer", "TensorHandle", "InterpreterBuilder", "ReduceOps", "ScanOps"),
        "GridExecutor",
    ),
    "InterpreterBuilder": (
        *("binary_op", "unary_op", "cast_impl", "create_fp_to_fp", "create_idiv", "create_clampf", "create_minnumf"),
        *("create_maxnumf", "create_fma", "create_dot", "create_umulhi", "create_histogram", "create_atomic_rmw"),
        *("create_descriptor_load", "create_masked_load", "create_masked_store", "set_grid_dim", "set_grid_idx"),
    ),
    "ReduceOps": ("apply_impl",),
    "ScanOps": ("apply_impl",),
}


def install() -> None:
    """Replace them for the life of this process.

    Raises:
        RuntimeError: this Triton's interpreter has not the parts that are replaced.
    """
    import triton

    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    if missing := [*_missing(interpreter), *types.missing()]:
        raise RuntimeError(f"triton {triton.__version__}: its interpreter has no {', '.join(missing)}, which is replaced here")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, EXACT, False):
        return
    for name, method in {**arithmetic.methods(interpreter), **memory.methods(interpreter)}.items():
        setattr(builder, name, method)
    if hasattr(interpreter, "_mxfp_value_handle_to_float32"):
        interpreter._mxfp_value_handle_to_float32 = arithmetic.scaled_operand(interpreter)
    blocks.install(interpreter)
    for holder, function in ((interpreter.ReduceOps, reductions.reduced), (interpreter.ScanOps, reductions.scanned)):
        holder.apply_impl = function(interpreter)
        holder.to_tensor = reductions.to_tensor(interpreter)
    language.install(interpreter)
    libdevice.install(interpreter)
    types.install()
    interpreter._patch_attr = _patching(interpreter)
    interpreter._patch_lang = _patching_once(interpreter._patch_lang, interpreter._LangPatchScope, interpreter.tl)
    # once a launch, because entering it takes as long as a small operation
    interpreter.GridExecutor.__call__ = np.errstate(all="ignore")(launches.launching(interpreter))
    setattr(builder, EXACT, True)


def _missing(interpreter: Any) -> list[str]:
    found = [name for name in _PARTS[""] if not hasattr(interpreter, name)]
    for holder, names in _PARTS.items():
        found += [name for name in names if holder and not hasattr(getattr(interpreter, holder, None), name)]
    return found


def _patching(interpreter: Any) -> Any:
    """A replacement of `_patch_attr`: functions of the language as tapes, without a check whether a kernel calls them."""

    def _patch_attr(holder: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        scope.set_attr(holder, name, tapes.taped(getattr(member, "__wrapped__", member), interpreter))

    return _patch_attr


def _patching_once(patch_language: Any, scope: Any, tl: Any) -> Any:
    patched: set[int] = set()

    def _patch_lang(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module not in patched:
            patched.add(module)
            patch_language(fn)
            _patch_methods(tl.core)
            tl.tensor.__bool__ = language.truth
            tl.tensor.__index__ = control.index
            tl.tensor.T = language.transposed(importlib.import_module("triton.runtime.interpreter"))
            tl.dtype.to_ir = _to_ir
        return scope()  # nothing to restore

    return _patch_lang


def _patch_methods(core: Any) -> None:
    """Patch methods of Triton's classes that are not marked as builtins: `x.exp()` and `block_pointer.advance()` before 3.9."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    for holder in [each for each in vars(core).values() if inspect.isclass(each) and each.__module__ == core.__name__]:
        for name, method in list(vars(holder).items()):
            if (
                inspect.isfunction(method)
                and "_semantic" in inspect.signature(method).parameters
                and not core.is_builtin(method)
            ):
                interpreter._patch_attr(holder, name, method, None, interpreter._LangPatchScope())


def _to_ir(self: Any, builder: Any) -> Any:
    """The interpreter's own type of a dtype, which is the dtype. Triton 3.6 does not know all of float8."""
    return self

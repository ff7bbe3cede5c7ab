"""Triton's interpreter at a speed to fuzz with. For a process that interprets kernels and nothing else.

Two of its habits cost most of the time: it patches `triton.language` anew for every call of every jitted function, and it
multiplies float16 matrices without a BLAS. Neither change alters a result: products of float16 are exact in float32, which is
what the interpreter sums them in too.
"""

from typing import Any

import numpy as np


def speed_up() -> None:
    """Install both changes for the life of this process.

    Raises:
        RuntimeError: this Triton's interpreter has not the parts that are replaced.
    """
    import triton
    from triton.runtime import interpreter

    missing = [name for name in ("_patch_lang", "_LangPatchScope", "InterpreterBuilder") if not hasattr(interpreter, name)]
    if missing or not hasattr(interpreter.InterpreterBuilder, "create_dot"):
        raise RuntimeError(f"triton {triton.__version__}: its interpreter has no {', '.join(missing) or 'create_dot'}")
    if interpreter._patch_lang.__module__ == __name__:
        return
    interpreter._patch_lang = _patching_once(interpreter._patch_lang, interpreter._LangPatchScope)
    interpreter.InterpreterBuilder.create_dot = _dot_in_float32(interpreter.InterpreterBuilder.create_dot)


def _patching_once(patch_language: Any, scope: Any) -> Any:
    patched: set[int] = set()

    def _patch_lang(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module not in patched:
            patched.add(module)
            patch_language(fn)
        return scope()  # nothing to restore

    return _patch_lang


def _dot_in_float32(create_dot: Any) -> Any:
    def dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        if a.data.dtype == b.data.dtype == np.float16 and d.data.dtype == np.float32:
            product = np.matmul(a.data.astype(np.float32), b.data.astype(np.float32))
            return type(d)(product + d.data, d.dtype.scalar)
        return create_dot(builder, a, b, d, input_precision, max_num_imprecise_acc)

    return dot

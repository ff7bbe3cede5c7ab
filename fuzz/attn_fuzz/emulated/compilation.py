"""Compile a kernel for a GPU that need not be there. As a program: serve `attn_fuzz.emulated.compiler`.

This needs a process without Triton's interpreter: TRITON_INTERPRET must not be set when Triton is imported.
"""

import contextlib
import fcntl
import hashlib
import importlib
import os
import pickle
import pkgutil
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import triton
from attn_contract import ContractError
from attn_fuzz import current_folder
from attn_fuzz.emulated.jobs import Compiled, Job, architecture
from attn_fuzz.errors import LimitError
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature


def gpu_target(architecture: str) -> GPUTarget:
    """Triton's name of a GPU: "gfx942" and its like (waves of gfx9 have 64 lanes, later ones 32), or "sm90" and its like.

    Raises:
        ContractError: it is neither.
    """
    if found := re.fullmatch(r"gfx(1?)[0-9a-f]{3}", architecture):
        return GPUTarget("hip", architecture, 32 if found.group(1) else 64)
    if found := re.fullmatch(r"sm(\d+)", architecture):
        return GPUTarget("cuda", int(found.group(1)), 32)
    raise ContractError("architecture", repr(architecture), "such as gfx90a, gfx942, gfx1201 or sm90")


def compiled_kernel(kernel: Any, architecture: str, /, *arguments: Any, **named: Any) -> tuple[Any, ASTSource]:
    """The binary that Triton's launcher would compile for kernel[grid](*arguments, **named), and its source.

    Tensors may be on the device meta: they count as aligned, as fresh allocations are. They may be `Pointer`s.

    Args:
        named: further arguments, constants and options of the compiler.

    Raises:
        ContractError: the architecture is unknown, or the kernel is interpreted in this process.
    """
    target = gpu_target(architecture)
    if not isinstance(kernel, JITFunction):
        raise ContractError("call", "an interpreted kernel", "one of a process without TRITON_INTERPRET")
    backend = make_backend(target)
    # the two steps of Triton's launcher, which would take the backend from the GPU of this machine
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    named["debug"] = named.get("debug", kernel.debug) or knobs.runtime.debug
    bound, specialization, options = bind(*arguments, **named)
    parsed, signature, constants, attributes = kernel._pack_args(backend, named, bound, specialization, options)
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, signature, constants, attributes)
    with alone(source, parsed):
        return triton.compile(source, target=target, options=parsed.__dict__), source


@contextlib.contextmanager
def alone(source: ASTSource, options: Any) -> Iterator[None]:
    """Inside, no other process compiles the same source, so the code that is returned is the code that Triton's cache keeps.

    Triton 3.9 for AMD gives a few kernels other code each time, as wide latent decodes: the order of instructions depends on
    the addresses of the compiler's own objects. Two processes at once would return two, and the cache would keep one.
    """
    folder = Path(knobs.cache.dir, "attn-parity-locks")
    folder.mkdir(parents=True, exist_ok=True)
    number = hashlib.sha256(f"{source.hash()} {options.hash()}".encode()).hexdigest()[:3]
    with open(folder / number, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or the process dies
        yield


def compiled(job: Job) -> Compiled:
    """Compile a job."""
    architecture.set(job.architecture)
    return launchable(*compiled_kernel(kernel_of(job), job.architecture, **job.arguments))


def kernel_of(job: Job) -> Any:
    """The kernel of a job, whose name may stand for what tunes it.

    Raises:
        LimitError: the job's modules do not have it.
    """
    if job.modules is None:
        return getattr(importlib.import_module(job.module), job.kernel)
    for module in pkgutil.resolve_name(job.modules)():
        found = vars(module).get(job.kernel)
        while found is not None and not isinstance(found, JITFunction):
            found = getattr(found, "fn", None)
        if found is not None and found.fn.__module__ == job.module:
            return found
    raise LimitError(f"the modules of the target have no {job.module}.{job.kernel}", "naming its module in Target.modules")


def launchable(binary: Any, source: ASTSource) -> Compiled:
    """The parts of a result of `compiled_kernel` that a launch needs."""
    names = tuple(name for name, kind in source.signature.items() if kind != "constexpr")
    return Compiled(binary.asm["amdgcn"], names, 2, binary.metadata.shared)


def _reason(error: BaseException) -> str:
    """Triton reports an error in a function again at each call of the function: the first report says what is wrong."""
    while isinstance(error.__cause__, CompilationError):
        error = error.__cause__
    return f"{type(error).__name__}: {str(error)[-2000:]}"


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer jobs until there are no more: with what was compiled, or with an error's text, or a limit."""
    if mutants := pickle.load(requests):
        from attn_fuzz.patches import installation

        for mutant in mutants:
            installation.install(mutant)
    while True:
        try:
            current_folder.folders.update(pickle.load(requests))
            job = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: Compiled | LimitError | str = compiled(job)
        except LimitError as error:
            answer = error
        except Exception as error:
            answer = f"{job.kernel} for {job.architecture}: {_reason(error)}"
        try:
            pickle.dump(answer, replies)
            replies.flush()
        except BrokenPipeError:
            return  # nobody waits for it


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its requests do
    with os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # a compiler that prints must not write among the replies
        _serve(sys.stdin.buffer, replies)

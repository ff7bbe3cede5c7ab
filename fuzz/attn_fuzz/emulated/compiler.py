"""A process that compiles kernels for this one, in which kernels are interpreted."""

import os
import pickle
import signal
import subprocess
import sys
from functools import lru_cache
from typing import NamedTuple

from attn_amdgcn import Program, load, prepare
from attn_fuzz import current_folder
from attn_fuzz.emulated.jobs import Compiled, Job
from attn_fuzz.errors import HelperKilledError, LimitError
from attn_fuzz.patches.mutant import INSTALLED

KEPT = 64
"""Programs that are kept: a prepared one has tens of thousands of closures."""
END_SECONDS = 10.0


class CompilerError(Exception):
    """The compiler refused a kernel, or crashed."""


class Ready(NamedTuple):
    """A program that can be launched, and what a launch of it needs."""

    program: Program
    compiled: Compiled


def ready(job: Job) -> Ready:
    """Compile a job, unless its program is kept. Jobs whose numbers differ may have one text, and then share its program.

    Raises:
        CompilerError: the compiler failed.
        LimitError: the target does not name the kernel's module.
        HelperKilledError: its process was killed from outside.
        attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
    """
    compiled = compiled_code(pickle.dumps(job))
    return Ready(program_of(compiled.text), compiled)


@lru_cache(maxsize=KEPT)
def program_of(text: str) -> Program:
    return prepare(load(text))


@lru_cache(maxsize=KEPT)
def compiled_code(request: bytes) -> Compiled:
    """The kernel that the other process compiles for a pickled job."""
    process = compiling_process()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(pickle.dumps(current_folder.folders) + request)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        compiling_process.cache_clear()
        how = f"the process that compiles {_end(process)}"
        raise (HelperKilledError if process.returncode == -signal.SIGKILL else CompilerError)(how) from None
    if isinstance(answer, LimitError):
        raise answer
    if isinstance(answer, str):
        raise CompilerError(answer)
    return answer


def _end(process: "subprocess.Popen[bytes]") -> str:
    """The death of a process, in words."""
    try:
        code = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return "closed its pipes and did not end"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


@lru_cache(maxsize=1)
def compiling_process() -> "subprocess.Popen[bytes]":
    """The process that compiles the sources that this process runs. It ends with this process, because its requests end."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # an empty entry would be the current folder
    # Triton's advice about defaults is for those who launch: a job has the options of the launch
    command = [sys.executable, "-P", "-W", "ignore", "-m", "attn_fuzz.emulated.compilation"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    pickle.dump(INSTALLED, process.stdin)
    return process

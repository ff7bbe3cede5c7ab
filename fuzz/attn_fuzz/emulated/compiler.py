"""A process that compiles kernels for this one, in which kernels are interpreted."""

import os
import pickle
import subprocess
import sys
from functools import lru_cache
from typing import NamedTuple

from attn_amdgcn import Program, load, prepare
from attn_fuzz.emulated.jobs import Compiled, Job
from attn_fuzz.zoo import mutants

KEPT = 64
"""Programs that are kept: a prepared one has tens of thousands of closures."""
JOBS_KEPT = 1024
"""Answers that are kept. Those with one code share its text."""


class CompilerError(Exception):
    """The compiler refused a kernel, or its process died."""


class Ready(NamedTuple):
    """A program that can be launched, and the names of its arguments."""

    program: Program
    compiled: Compiled


def ready(job: Job) -> Ready:
    """Compile a job, and make its code ready. Jobs that differ by numbers often have one code.

    Raises:
        CompilerError: the compiler failed.
        attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
    """
    compiled = _asked(pickle.dumps(job))
    return Ready(_program(compiled.text), compiled)


@lru_cache(maxsize=KEPT)
def _program(text: str) -> Program:
    return prepare(load(text))


@lru_cache(maxsize=JOBS_KEPT)
def _asked(request: bytes) -> Compiled:
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, OSError) as error:
        _process.cache_clear()
        raise CompilerError(f"the compiling process died: {type(error).__name__}") from error
    if isinstance(answer, str):
        raise CompilerError(answer)
    return answer._replace(text=sys.intern(answer.text))


@lru_cache(maxsize=1)
def _process() -> "subprocess.Popen[bytes]":
    """It ends when this process does, because its requests end. It compiles the sources that this process runs."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "attn_fuzz.emulated.compilation"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    pickle.dump(mutants.installed(), process.stdin)
    return process

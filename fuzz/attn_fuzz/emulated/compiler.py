"""A process that compiles kernels for this one, in which kernels are interpreted."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

from attn_amdgcn import Program, load, prepare
from attn_fuzz.emulated.jobs import Compiled, Job
from attn_fuzz.zoo import mutants

KEPT = 64
"""Programs that are kept: a prepared one has tens of thousands of closures."""


class CompilerError(Exception):
    """The compiler refused a kernel, or its process died."""


class Ready(NamedTuple):
    """A program that can be launched, and the names of its arguments."""

    program: Program
    compiled: Compiled


_ready: "OrderedDict[bytes, Ready]" = OrderedDict()


def ready(job: Job) -> Ready:
    """Compile a job, unless its program is kept.

    Raises:
        CompilerError: the compiler failed.
        attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
    """
    key = pickle.dumps(job)
    if key not in _ready:
        answer = _asked(key)
        _ready[key] = Ready(prepare(load(answer.text)), answer)
        if len(_ready) > KEPT:
            _ready.popitem(last=False)
    _ready.move_to_end(key)
    return _ready[key]


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
    return answer


@lru_cache(maxsize=1)
def _process() -> "subprocess.Popen[bytes]":
    """It ends when this process does, because its requests end. It compiles the sources that this process runs."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "attn_fuzz.emulated.compilation"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    pickle.dump(mutants.installed(), process.stdin)
    return process

"""Run a call that ships on the emulator, on small cases that compile to its very code, and judge the outputs.

Kernels must be interpreted in this process, which plans and judges. They are compiled in another one.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from attn_amdgcn import Accesses
from attn_amdgcn.counts import totals
from attn_fuzz.emulated.compiler import ready
from attn_fuzz.emulated.emulation import emulate, job_of
from attn_fuzz.run.trial import try_case
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.assembly import digest
from attn_parity.binaries.execution import (
    SCHEDULES,
    OtherCodeError,
    cases_of,
    error_of,
    launches_of,
    target_of,
)
from attn_parity.binaries.rows import AGREES, Execution
from attn_parity.binaries.shipped_calls import ShippedCall


def execute(shipped: ShippedCall, architecture: str, instructions: dict[str, str]) -> dict[str, Execution]:
    """What came of the launches of a call, by name.

    Args:
        instructions: the digests of the assembly of the launches that are asked for, by name. Others run, too, and may be of
            any code.
    """
    ran: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def run(name: str, call: KernelCall, like: KernelCall) -> None:
        ran[name].update(_run_compiled(call, architecture, like, name, instructions.get(name)))

    of_call = launches_of(shipped, architecture, run)
    target = target_of(of_call)
    verdicts = [try_case(case, target, "cpu") for case in cases_of(of_call)]
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    if failed is not None:
        return dict.fromkeys(instructions, Execution(failed.kind, failed.ratio, failed.message))
    error = max(error_of(of_call, verdict) for verdict in verdicts)
    left_out = Execution("not run", 0, "no case has this launch")
    return {name: Execution(AGREES, error, counts=ran[name]) if name in ran else left_out for name in instructions}


def _run_compiled(call: KernelCall, architecture: str, like: KernelCall, name: str, instructions: str | None) -> dict[str, int]:
    """Compile and run a launch in the place of one that ships, and count what it executes (COUNTED in `attn_amdgcn.counts`).

    Args:
        instructions: the digest of the assembly of the launch that ships; None if it may be of any code.

    Raises:
        OtherCodeError: the code is not that of the launch that ships.
        CompilerError, attn_amdgcn.AmdgcnError: as of `emulate`.
    """
    sizes = {key: tensor.untyped_storage().size() for key, tensor in like.tensors.items() if tensor is not None}
    job = job_of(call, architecture, sizes)
    program, compiled = ready(job)
    if instructions not in (None, digest(compiled.text, job.kernel)):
        raise OtherCodeError(f"{name}: a small case compiles to other code ({_difference(call, like)})")
    accesses = Accesses(architecture)
    report = emulate(call, architecture, schedules=SCHEDULES, sizes=sizes, watches=(accesses,))
    return {} if report is None else totals(program, report, accesses)


def _difference(call: KernelCall, like: KernelCall) -> str:
    """What is compiled in and differs, in words."""
    given, ships = (_compiled_in(one) for one in (call, like))
    other = [f"{name} is {given.get(name)}, and {value} ships" for name, value in ships.items() if given.get(name) != value]
    return "; ".join(other) or "its constants and types are the same, so an alignment or a width of a number is not"


def _compiled_in(call: KernelCall) -> Mapping[str, object]:
    types = {name: None if tensor is None else tensor.dtype for name, tensor in call.tensors.items()}
    return call.launch.constants | call.launch.options | types

"""Run a call that ships on the emulator, on small cases that compile to its very code, and judge the outputs.

Kernels must be interpreted in this process, which plans and judges. They are compiled in another one.
"""

from collections.abc import Mapping
from dataclasses import replace

from attn_binaries.assembly import digest
from attn_binaries.execution import (
    SCHEDULES,
    OtherCodeError,
    cases_of,
    error_of,
    launches_of,
    target_of,
)
from attn_binaries.rows import AGREES, Execution
from attn_binaries.shipped_calls import ShippedCall
from attn_fuzz.emulated.compiler import ready
from attn_fuzz.emulated.emulation import emulate, job_of
from attn_fuzz.run.case.trial import try_case
from attn_optimized.kernel_call import KernelCall


def execute(shipped: ShippedCall, architecture: str, instructions: dict[str, str], option: str = "") -> dict[str, Execution]:
    """The execution of each launch of a call, by the launch's name.

    Args:
        instructions: the digests of the assembly of the launches that are asked for, by name. Others run, too, and may be of
            any code.
        option: NAME=VALUE of Triton's AMD backend, with which the small cases are compiled. It changes how the compiler
            schedules and lays out a kernel, and never what the kernel computes.
    """
    ran: set[str] = set()
    same_code: set[str] = set()

    def run(name: str, call: KernelCall, like: KernelCall) -> None:
        sizes = {key: tensor.untyped_storage().size() for key, tensor in like.tensors.items() if tensor is not None}
        call = _with_option(call, option) if option else call
        job = job_of(call, architecture, sizes)
        _, compiled = ready(job)
        is_same = instructions.get(name) in (None, digest(compiled.text, job.kernel))
        if not (is_same or option):
            raise OtherCodeError(f"{name}: a small case compiles to other code ({_difference(call, like)})")
        same_code.update([name] if is_same else [])
        emulate(call, architecture, schedules=SCHEDULES, sizes=sizes)
        ran.add(name)

    of_call = launches_of(shipped, architecture, run)
    target = target_of(of_call)
    verdicts = [try_case(case, target, "cpu") for case in cases_of(of_call)]
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    if failed is not None:
        return dict.fromkeys(instructions, Execution(failed.kind, failed.ratio, failed.message))
    error = max(error_of(of_call, verdict) for verdict in verdicts)
    left_out = Execution("not run", 0, "no case has this launch")
    why = {name: f"{option}: the code that ships" for name in same_code if option}
    return {name: Execution(AGREES, error, why.get(name, "")) if name in ran else left_out for name in instructions}


def _with_option(call: KernelCall, option: str) -> KernelCall:
    name, _, text = option.partition("=")
    value = int(text) if text.isdigit() else text
    return call._replace(launch=replace(call.launch, options=call.launch.options | {name: value}))


def _difference(call: KernelCall, like: KernelCall) -> str:
    """The compiled-in values that differ, in words."""
    given, ships = (_compiled_in(one) for one in (call, like))
    other = [f"{name} is {given.get(name)}, and {value} ships" for name, value in ships.items() if given.get(name) != value]
    return "; ".join(other) or "its constants and types are the same, so an alignment or a width of a number is not"


def _compiled_in(call: KernelCall) -> Mapping[str, object]:
    types = {name: None if tensor is None else tensor.dtype for name, tensor in call.tensors.items()}
    return call.launch.constants | call.launch.options | types

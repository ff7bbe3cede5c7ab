"""`python -m benchmarks options`: launches that ship, compiled with options that the launch tables do not use, and emulated.

An option changes how a compiler schedules and lays out a kernel, and never what the kernel computes. So a launch that disagrees
with the judge under some option shows a bug: of the compiler, of the kernel, or of the emulator.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from attn_lab.written import table

from benchmarks import PAGES
from benchmarks.emulation.page import lines_of, of_lines
from benchmarks.emulation.settled import settle

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall

DATA = PAGES / "options.json"
ARCHITECTURES = "gfx942,gfx1201,gfx950"
CALLS = ("decode", "decode, split", "decode, int8 cache", "prefill", "prefill, e4m3fn cache", "prefill, fp32 D128")
OPTIONS: dict[str, tuple[int | str, ...]] = {
    "num_stages": (1, 2, 3, 4),
    "waves_per_eu": (1, 2, 4),
    "kpack": (2,),
    "matrix_instr_nonkdim": (16, 32),
    "wgp_cu_mode": ("cu",),
    "llvm_fn_attrs": ("amdgpu-sched-strategy=max-ilp", "amdgpu-sched-strategy=iterative-minreg"),
}
"""Values of the options of Triton's AMD backend."""
CDNA, RDNA = ("kpack", "matrix_instr_nonkdim"), ("wgp_cu_mode",)
"""Options that change code for one of the two families alone."""
SAME, AGREES, UNKNOWN = "same code", "agree", "no such option"
FINE = (SAME, AGREES, UNKNOWN)

PREFACE = """\
## Options of the compiler that no launch table uses

`python -m benchmarks options --write` ran them; options.json keeps each trial. {calls} calls that ship were compiled with
Triton {triton} for values of options, and run on the emulator on the two small cases of `python -m attn_lab binaries`, in two
orders, with a search for races. An option must not change what a kernel computes. **{agree} of {other} trials whose code
differs from the code that ships agree.** In {same} trials the code is the same, and in {unknown} a Triton has no such option.

Calls that agree, of those whose code differs, and the largest error / bound; nothing where no call was tried:
"""


class Trial(msgspec.Struct, frozen=True):
    """What came of a call under an option.

    Attributes:
        verdict: "agree"; "same code" if no launch of the call compiles to other code; "no such option" if this Triton has none;
            or a kind of failure of `attn_fuzz.verdict.verdict`.
        error: the largest error / bound of outputs.
        why: why it does not agree; empty if it does.
    """

    triton: str
    architecture: str
    call: str
    option: str
    verdict: str
    error: float
    why: str = ""


@click.command()
@click.option("--arch", "architectures", default=ARCHITECTURES, show_default=True, metavar="A,B,...", help="AMD's.")
@click.option("--only", default="", metavar="TEXT", help="Only calls whose names contain TEXT.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--write", is_flag=True, help="Write the page and its JSON. A second call keeps what agreed, and runs the rest.")
def options(architectures: str, only: str, workers: int, write: bool) -> None:
    """Compile launches with other options, run them on the emulator, and judge what they compute. Exit 1 if one is wrong."""
    kept = of_lines(DATA, Trial) if DATA.is_file() else []
    from attn_parity.binaries.build import in_processes
    from attn_parity.options import progress_bar
    from attn_parity.versions import version

    triton = version("triton")
    fine = {(one.architecture, one.call, one.option) for one in kept if one.triton == triton and one.verdict in FINE}
    jobs = [job for job in _jobs(architectures.split(","), only) if not (write and job in fine)]
    with progress_bar(len(jobs)) as show_bar:

        def report(found: Mapping[tuple[str, str, str], Trial | str]) -> None:
            show_bar(len(found), 0)
            if write:
                _save(kept, (one for one in found.values() if isinstance(one, Trial)), DATA)

        found, interrupted = in_processes(tried, jobs, workers, report, interpreter=True)
    for job, one in found.items():
        click.echo(f"{' '.join(job)}: {one if isinstance(one, str) else f'{one.verdict} {one.error:.2f} {one.why}'}")
    if write and DATA.is_file():
        settle(checks=False)
    if interrupted or any(isinstance(one, str) or one.verdict not in FINE for one in found.values()):
        raise SystemExit(130 if interrupted else 1)


def _jobs(architectures: Iterable[str], only: str = "") -> list[tuple[str, str, str]]:
    """Architectures take turns, so that an interrupted run has some of each."""
    return [
        (architecture, call, f"{option}={value}")
        for call in CALLS
        if only in call
        for option, values in OPTIONS.items()
        for value in values
        for architecture in architectures
        if option not in (CDNA if architecture.startswith(("gfx10", "gfx11", "gfx12")) else RDNA)
    ]


def tried(architecture: str, name: str, option: str) -> Trial:
    """Run the small cases of a call that ships, compiled with an option."""
    from attn_fuzz.emulated.compiler import ready
    from attn_fuzz.emulated.emulation import emulate, job_of
    from attn_fuzz.run.trial import try_case
    from attn_parity.binaries.assembly import digest
    from attn_parity.binaries.execution import SCHEDULES, cases_of, error_of, launches_of, target_of
    from attn_parity.binaries.shipped_calls import CALLS
    from attn_parity.versions import version

    differs = False

    def run(launch: str, call: "KernelCall", like: "KernelCall") -> None:
        nonlocal differs
        sizes = {key: tensor.untyped_storage().size() for key, tensor in like.tensors.items() if tensor is not None}
        other = _with_option(call, option)
        jobs = [job_of(one, architecture, sizes) for one in (call, other)]
        ships, changed = (digest(ready(job).compiled.text, job.kernel) for job in jobs)
        differs |= ships != changed
        emulate(other, architecture, schedules=SCHEDULES, sizes=sizes)

    (shipped,) = (call for call in CALLS if call.name == name)
    of_call = launches_of(shipped, architecture, run)
    verdicts = [try_case(case, target_of(of_call), "cpu") for case in cases_of(of_call)]
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    trial = Trial(version("triton") or "", architecture, name, option, AGREES if differs else SAME, 0)
    if failed and "was specified but unrecognised" in failed.message:  # Triton's words
        return msgspec.structs.replace(trial, verdict=UNKNOWN)
    if failed:
        return msgspec.structs.replace(trial, verdict=failed.kind, error=failed.ratio, why=failed.message[:300])
    return msgspec.structs.replace(trial, error=round(max(error_of(of_call, verdict) for verdict in verdicts), 2))


def _with_option(call: "KernelCall", option: str) -> "KernelCall":
    name, _, text = option.partition("=")
    value = int(text) if text.isdigit() else text
    return call._replace(launch=dataclasses.replace(call.launch, options=call.launch.options | {name: value}))


def _save(kept: Iterable[Trial], found: Iterable[Trial], path: Path) -> None:
    """Write trials, one in each line. What was found takes the place of what was kept of the same code and option."""
    trials = {(one.triton, one.architecture, one.call, one.option): one for one in (*kept, *found)}
    path.write_text(lines_of(one for _, one in sorted(trials.items())), encoding="utf-8")


def text(trials: Sequence[Trial]) -> str:
    """The part of the page."""
    verdicts = Counter(one.verdict for one in trials)
    lines = PREFACE.format(
        calls=len({one.call for one in trials}),
        triton=" and ".join(sorted({one.triton for one in trials})),
        agree=verdicts[AGREES],
        other=len(trials) - verdicts[SAME] - verdicts[UNKNOWN],
        same=verdicts[SAME],
        unknown=verdicts[UNKNOWN],
    ).splitlines()
    architectures = sorted({one.architecture for one in trials})
    rows = [
        [
            f"`{option}`",
            *(_cell([one for one in trials if (one.architecture, one.option) == (name, option)]) for name in architectures),
        ]
        for option in (f"{name}={value}" for name, values in OPTIONS.items() for value in values)
    ]
    lines += ["", *table(("option", *architectures), rows)]
    wrong = [one for one in trials if one.verdict not in FINE]
    lines += ["", *(f"- {one.architecture} {one.call}, `{one.option}`: {one.verdict}: {one.why}" for one in wrong)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(trials: Sequence[Trial]) -> str:
    other = [one for one in trials if one.verdict not in (SAME, UNKNOWN)]
    if trials and not other:
        return trials[0].verdict
    agree = [one.error for one in other if one.verdict == AGREES]
    return f"{len(agree)} of {len(other)}{f', {max(agree):.2f}' if agree else ''}" if trials else ""

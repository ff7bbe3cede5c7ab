"""Looks for known bugs: the plans, the run of each bug and seed, and which bugs a target can have."""

from collections.abc import Sequence

import msgspec
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.run import runner
from attn_fuzz.run.runner import Outcome
from attn_fuzz.run.shard import FuzzPlan, Progress
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_lab.zoo import known_bugs
from attn_lab.zoo.known_bugs import KnownBug
from attn_parity.console import notes, progress_bar
from attn_parity.device import sanitizes, say_what_runs_kernels


def run(
    plan: FuzzPlan, bugs: list[KnownBug], seeds: int, workers: int, *, sanitize: bool | None, shrinks: bool
) -> tuple[dict[str, list[Progress]], Outcome]:
    """Look for each bug with as many seeds, from that of the plan.

    Returns:
        The runs of each bug by its name, one for each seed; none for a bug whose runs have not ended.
    """
    missing = _missing_targets(bugs, plan.device)
    running = [bug for bug in bugs if bug.name not in missing and (plan.device != "cpu" or not bug.needs_gpu)]
    say_what_runs_kernels(plan.device, [registry.load(bug.target) for bug in running])
    plans = _plans(plan, running, range(plan.seed, plan.seed + seeds), sanitize=sanitize, shrinks=shrinks)
    outcome = run_plans(plans, workers)
    runs = {bug.name: _ended(outcome, range(i * seeds, (i + 1) * seeds)) for i, bug in enumerate(running)}
    return runs | {name: [Progress(broken=why)] for name, why in missing.items()}, outcome


def chosen(bugs: Sequence[KnownBug], only: Sequence[str]) -> list[KnownBug]:
    """The bugs with these names; all if no name is given.

    Raises:
        MutantError: there is no bug of a name.
    """
    names = [bug.name for bug in bugs]
    if unknown := sorted(set(only) - set(names)):
        raise MutantError(f"--only: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    return [bug for bug in bugs if not only or bug.name in only]


def on_target(bugs: list[KnownBug], target: str) -> tuple[list[KnownBug], dict[str, str]]:
    """The bugs of kernels on another target, or on their own targets compiled for an architecture: `@` and its name; or all
    bugs on their own targets.

    Returns:
        The bugs, and by name why others are left out: a target cannot be compiled, or no emulated GPU shows the bug.
    """
    if not target:
        return bugs, {}
    if not target.startswith("@"):
        return known_bugs.on_target(bugs, target, compiles=registry.load(target).compiles), {}
    kept, left_out = list[KnownBug](), dict[str, str]()
    for bug in known_bugs.compiled_for(bugs, target.removeprefix("@")):
        try:
            registry.load(bug.target)
        except UnknownTargetError as error:
            left_out[bug.name] = str(error)
        else:
            if bug.not_emulated:
                left_out[bug.name] = bug.not_emulated
            else:
                kept.append(bug)
    return kept, left_out


def _plans(plan: FuzzPlan, running: list[KnownBug], seeds: range, *, sanitize: bool | None, shrinks: bool) -> list[FuzzPlan]:
    """A plan for each bug and seed; the failing case of the first seed is shrunk if `shrinks`."""
    return [
        msgspec.structs.replace(
            plan,
            target=bug.target,
            mutant=bug.mutant,
            seed=seed,
            sanitize=sanitizes(sanitize, registry.usable(bug.target, plan.device), plan.device),
            on_failure="shrink" if shrinks and seed == seeds[0] else "stop",
        )
        for bug in running
        for seed in seeds
    ]


def run_plans(plans: list[FuzzPlan], workers: int) -> Outcome:
    """Run every plan while a progress bar counts findings and examples. Each finding is told when it is made."""
    done = [Progress() for _ in plans]
    with progress_bar(len(plans)) as show_bar:

        def show(index: int, progress: Progress) -> None:
            mutant, failure, before = plans[index].mutant, progress.failure, done[index].failure
            done[index] = progress
            if mutant is not None and failure is not None and before is None:
                notes.print(f"{mutant.name}: {failure.first_verdict.kind} after {failure.found_after} examples")
            show_bar(sum(p.failure is not None for p in done), f"{sum(p.examples + p.shrinking for p in done)} cases run")

        return runner.run(plans, workers, stop_at_failure=False, report=show)


def _missing_targets(bugs: list[KnownBug], device: str) -> dict[str, str]:
    """The reason why a bug's target cannot run on this device, by the bug's name. On a CPU, bugs that need a GPU are passed
    over."""
    found = {}
    for bug in bugs:
        try:
            if device != "cpu" or not bug.needs_gpu:
                registry.usable(bug.target, device)
        except UnknownTargetError as error:
            found[bug.name] = f"{bug.name}: {error}"
    return found


def _ended(outcome: Outcome, plans: range) -> list[Progress]:
    """The runs of a bug, by the indices of its plans; none if the run ended before one of them had its result."""
    runs = [outcome.progress[index] for index in plans]
    has_result = (i in outcome.finished or outcome.progress[i].failure or outcome.progress[i].broken for i in plans)
    return runs if all(has_result) else []

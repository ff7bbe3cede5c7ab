"""`attn-parity fuzz`: draw cases, run them on a target, judge them, and make small what fails."""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import msgspec
from attn_fuzz import outputs
from attn_fuzz.account import gaps
from attn_fuzz.cases.case import Case
from attn_fuzz.corpus import database, files
from attn_fuzz.report.run import Found
from attn_fuzz.run import runner, shard
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_parity.commands.fuzz import machines
from attn_parity.commands.fuzz.begun import Begun
from attn_parity.commands.fuzz.machines import Machines
from attn_parity.commands.fuzz.options import KEEP_GOING_MINUTES, Options
from attn_parity.console import notes
from attn_parity.device import check_exact, check_fence, check_malformed, sanitizes, say_what_runs_kernels
from attn_parity.files import check_writable
from attn_parity.options import (
    PROFILES,
    Duration,
    Positive,
    Seed,
    case_seconds_option,
    corpus_option,
    device_option,
    fence_option,
    json_option,
    malformed_option,
    needs_option,
    ray_option,
    record_of,
    sanitize_option,
    workers_option,
    working_dir_option,
)
from hypothesis.database import ExampleDatabase

DRAWING = 2 / 3
"""The share of the time of a run that keeps going in which it draws cases. In the rest it shrinks failures that wait."""
_PROFILES = ", ".join(f"{name} {examples}" for name, examples in PROFILES.items())


@click.command("fuzz")
@click.option(
    "--target",
    "names",
    multiple=True,
    default=("triton",),
    show_default=True,
    help="The target to check; `attn-parity targets` lists them. With --keep-going it may be given more than once.",
)
@click.option(
    "--manager",
    metavar="NAME|MODULE:NAME",
    help="Play requests against a cache manager instead, and judge the keys that attention would read.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Go on past each failure, and end with a table of distinct failures. Targets take turns. Default: "
    f"{KEEP_GOING_MINUTES:g} minutes, or --examples for each target.",
)
@click.option("--profile", type=click.Choice(list(PROFILES)), default="ci", show_default=True, help=f"Examples: {_PROFILES}.")
@click.option("--examples", type=Positive, help="Number of cases to draw, instead of the profile's.")
@click.option("--minutes", type=Duration, help="Stop drawing after this many minutes.")
@click.option("--seed", type=Seed, help="The same seed draws the same cases; default: a new seed, which is printed.")
@workers_option
@case_seconds_option
@device_option
@sanitize_option
@click.option(
    "--exact/--no-exact",
    "exactly",
    default=None,
    help="Compare each example, or none, in exact arithmetic, too, without a tolerance; default: every "
    f"{shard.EXACT_EVERY}th of this project's kernels on a CPU.",
)
@click.option(
    "--modes/--no-modes",
    "in_modes",
    default=True,
    help=f"Give 1/{runner.MODES_SHARE} of the time to modes of the target, as `attn-parity targets NAME` lists them; not "
    "with --exact.",
)
@fence_option
@malformed_option
@click.option(
    "--require",
    "required",
    metavar="NAME",
    multiple=True,
    help="Exit 4 if the run could not have seen a mistake about NAME, such as window (docs/reference/account.md).",
)
@json_option
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write a page about the run and failing cases into this folder; default: no page, cases into {outputs.RUNS}.",
)
@corpus_option
@click.option(
    "--database",
    metavar="FOLDER|redis://HOST",
    help="A database of failures: its cases run first, and failures of this run are added.",
)
@ray_option
@needs_option
@working_dir_option
@record_of(Options)
def command(options: Options) -> int:
    """Draw cases, run them on a target, judge them. The main job.

    Exit 1 if a case fails. If none does, exit 3 if cases could not be run because of a limit of this tool, and 4 if the run
    could not have seen what --require names.
    """
    if options.manager is not None:
        from attn_parity.commands.fuzz import managers

        managers.check_options(click.get_current_context())
        return managers.fuzz(options.manager, options.max_examples, options.seed)
    if len(options.names) > 1 and not options.keep_going:
        raise click.UsageError("--target: several targets take turns in a run with --keep-going")
    if wrong := gaps.unknown(options.required):
        raise click.UsageError(f"--require: got {wrong}")
    check_writable(options.json_file, made=options.folder)
    with machines.chosen(options) as chosen:
        check_exact(bool(options.exactly), chosen.device)
        targets = _targets(options.names)
        in_modes = {name: _modes_of(name, options, chosen) for name in targets}
        check_malformed(
            options.malformed, targets.values(), fence=options.fenced, exact=options.exactly, sanitize=options.sanitize
        )
        if options.address is None:  # a node of Ray says for itself what it cannot do
            check_fence(options.fenced, targets.values(), chosen.device)
        say_what_runs_kernels(chosen.device, targets.values())
        options.folder.mkdir(parents=True, exist_ok=True)
        all_targets = targets | {name: registry.load(name) for names in in_modes.values() for name in names}
        until, plans = options.until(), _plans(options, chosen, all_targets)
        failures_of = database.connect(options.database) if options.database else None
        keys = {name: database.key(name, chosen.device_name) for name in plans}
        corpora = {name: options.past if name in targets else "none" for name in plans}
        past = {name: _past(corpora[name], failures_of, keys[name], name, chosen.supports[name]) for name in plans}
        begun = Begun(options, chosen, plans, targets, in_modes, past)
        runs, errors = begun.keep_going(until, options.max_minutes) if options.keep_going else begun.until_failure()
        if failures_of is not None:
            for run in runs.values():
                _store(failures_of, keys, run.failures, errors)
        return begun.reported(runs, options.json_file, options.report_folder, errors)


def _targets(names: Sequence[str]) -> dict[str, Target]:
    targets = {name: registry.load(name) for name in names}
    named = Counter(targets[name].name for name in names)
    if repeated := [name for name, count in named.items() if count > 1]:
        raise click.UsageError(f"--target: got {repeated[0]} more than once, expected targets of different names")
    return targets


def _modes_of(name: str, options: Options, chosen: Machines) -> list[str]:
    """The target in each of the modes that its run goes through."""
    goes = options.in_modes and not options.exactly and not options.malformed
    return [each for each in chosen.supports if goes and each.startswith(f"{name}@")]


def _plans(options: Options, chosen: Machines, targets: Mapping[str, Target]) -> dict[str, FuzzPlan]:
    """The plan of each target."""
    plan = FuzzPlan(
        target="",
        device=chosen.device,
        examples=options.max_examples,
        seed=secrets.randbelow(1 << 31) if options.seed is None else options.seed,
        folder=options.folder,
        case_seconds=options.case_seconds,
        until=options.until(DRAWING if options.keep_going else 1),
        fenced=options.fenced,
        malformed=options.malformed,
        on_failure="go on" if options.keep_going else "shrink",
    )
    every = options.exactly
    return {
        name: msgspec.structs.replace(
            plan,
            target=name,
            sanitize=sanitizes(options.sanitize, target, chosen.device) and not options.malformed,
            exact_every=0 if options.malformed else shard.exact_every(target, chosen.device) if every is None else int(every),
        )
        for name, target in targets.items()
    }


def _store(failures_of: ExampleDatabase, keys: Mapping[str, bytes], failures: Sequence[Found], errors: list[str]) -> None:
    """Add failing cases to the database. A case that cannot be added adds an error."""
    for found in failures:
        try:
            database.save(failures_of, keys[found.failure.case.target], found.failure.case)
        except database.DatabaseError as error:
            errors.append(str(error))


def _past(
    corpus: str | None, failures_of: ExampleDatabase | None, key: bytes, target: str, support: Support
) -> dict[Case, str]:
    """The past cases that the target supports, each with its name. They run before cases are drawn."""
    cases = files.chosen(corpus)
    if failures_of is not None:
        stored, skipped = database.fetch(failures_of, key)
        cases |= {f"database case {name}": case for name, case in stored.items()}
        for reason in skipped:
            notes.print(f"skipped: {reason}")
    admitted = files.admitted(cases, target, support)
    if admitted.sentence:
        notes.print(admitted.sentence)
    return admitted.cases

"""`attn-parity mutate`: mutants that operators make, a sample by seed, and how many of them the fuzzer finds."""

from pathlib import Path

import click
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run import campaign, reach
from attn_fuzz.run.campaign import Ledger
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_fuzz.zoo import generate
from attn_fuzz.zoo.generate import PACKAGE
from attn_parity.fuzz import FOLDER, PROFILES
from attn_parity.options import (
    Positive,
    Seed,
    default_workers,
    device_option,
    limit_option,
    notes,
    results,
    sigterm_interrupts,
    use_device,
    workers_option,
)

SAMPLE = 600
RECORDED = 150


@click.command("mutate")
@click.option("--sample", type=Positive, default=SAMPLE, show_default=True, help="Number of mutants to draw.")
@click.option("--sample-seed", type=Seed, default=0, show_default=True, help="The same seed draws the same mutants.")
@click.option("--only", multiple=True, metavar="NAME", help="Run only this mutant; may be given more than once.")
@click.option("--list", "lists", is_flag=True, help="Run nothing; list the mutants and what they change.")
@click.option("--profile", type=click.Choice(["ci", "nightly"]), default="ci", show_default=True, help="As of `fuzz`.")
@click.option("--examples", type=Positive, help="Cases for each mutant, seed and target, instead of the profile's.")
@click.option("--seed", type=Seed, default=0, show_default=True, help="The first seed of cases.")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Number of seeds, counted up from the first."
)
@click.option("--target", "chosen", multiple=True, metavar="T", help="Use only this target; default: all that can run here.")
@click.option(
    "--recorded",
    type=Positive,
    default=RECORDED,
    show_default=True,
    help="Cases of each target that are run first to learn which statements the target runs.",
)
@click.option(
    "--ledger",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=FOLDER / "mutants.jsonl",
    show_default=True,
    help="The file of results. A second call with the same file goes on where the first ended.",
)
@workers_option
@limit_option
@device_option
@sigterm_interrupts()
def command(
    sample: int,
    sample_seed: int,
    only: tuple[str, ...],
    lists: bool,
    profile: str,
    examples: int | None,
    seed: int,
    seeds: int,
    chosen: tuple[str, ...],
    recorded: int,
    path: Path,
    workers: int | None,
    limit: float,
    device: str,
) -> int:
    """Make mutants by operators, and count those that the fuzzer finds."""
    mutants = generate.by_name(only) if only else generate.sample(sample, sample_seed)
    if lists:
        for mutant in mutants:
            results.print(f"{mutant.name}  {mutant.change}", soft_wrap=True)
        return 0
    device = use_device(device)
    ledger = Ledger(path, device, PACKAGE)
    plan = FuzzPlan(
        target="", device=device, examples=examples or PROFILES[profile], seed=seed, folder=path.parent, limit=limit
    )
    try:
        _record(ledger, _usable(chosen, device), recorded, plan)
        outcome = campaign.run(
            mutants, range(seed, seed + seeds), plan, PROFILES["ci"], ledger, workers or default_workers(device), _report
        )
    except KeyboardInterrupt:
        return 130
    if outcome.error:
        raise ExecutorError(outcome.error)
    return 130 if outcome.interrupted else 0


def _usable(chosen: tuple[str, ...], device: str) -> list[str]:
    """The targets that can run here, on the CPU as well: there their lines are recorded."""
    found = []
    for name in chosen or registry.names():
        try:
            registry.usable(name, device)
            registry.usable(name, "cpu")
        except UnknownTargetError as error:
            if chosen:
                raise
            notes.print(f"left out: {error}", soft_wrap=True)
        else:
            found.append(name)
    return found


def _record(ledger: Ledger, targets: list[str], examples: int, plan: FuzzPlan) -> None:
    """Record what the targets run, unless the ledger knows it."""
    for name in targets:
        if name not in ledger.reaches:
            part = FuzzPlan(target=name, device="cpu", examples=examples, seed=plan.seed, folder=plan.folder)
            ledger.add(reach.record(part, PACKAGE))
            notes.print(f"recorded: {name}, {ledger.reaches[name].seconds:.2f} s for a case")


def _report(ledger: Ledger) -> None:
    trial = list(ledger.trials.values())[-1]
    notes.print(f"{trial.key.mutant} {trial.key.target} {trial.examples} {trial.by or ''} {trial.message[:100]}", soft_wrap=True)

"""`attn-parity fuzz --manager`: play traffic against a cache manager, and judge the keys that attention would read."""

import contextlib
import secrets
from collections.abc import Callable

import click
from attn_fuzz import managers, report
from attn_fuzz.errors import FaultError, InputError, LimitError
from attn_fuzz.serving.managed import ManagedEngine, ManagerFaultError, shortened
from attn_fuzz.serving.manager import Manager
from attn_fuzz.serving.scheduler import Traffic, explore
from attn_parity.console import results
from click.core import ParameterSource
from hypothesis import Verbosity

ACTIONS = 30
OPTIONS = ("manager", "examples", "seed", "profile")
"""The options of `fuzz` that a manager takes."""


def check_options(context: click.Context) -> None:
    """Refuse options that have no meaning for a manager."""
    given = (name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE)
    for name in given:
        if name not in OPTIONS:
            option = next(each.opts[0] for each in context.command.params if each.name == name)
            raise click.UsageError(f"{option}: not with --manager, which takes --examples, --profile and --seed")


def fuzz(name: str, examples: int, seed: int | None) -> int:
    """Fuzz a manager, and print the shortest trace that fails. Exit 1 if one fails, and 130 after an interruption.

    Raises:
        InputError: the manager is not found, is not made, or breaks the protocol.
    """
    return fuzz_made(name, managers.load(name), examples, secrets.randbelow(1 << 31) if seed is None else seed)


def fuzz_made(name: str, make: Callable[[], Manager], examples: int, seed: int) -> int:
    """Fuzz the manager that `make` returns.

    Raises:
        FaultError: this tool fails.
    """
    failures: list[ManagerFaultError] = []
    tried, interrupted = 0, False

    def traffic() -> Traffic:
        nonlocal tried
        tried += 1
        return Traffic(ManagedEngine(make, failures.append))

    results.print(f"manager {name}, {examples} examples of up to {ACTIONS} actions, --seed {seed}")
    try:
        explore(traffic, seed=seed, sequences=examples, actions=ACTIONS, verbosity=Verbosity.quiet)
    except ManagerFaultError:
        pass
    except KeyboardInterrupt:
        interrupted = True
    except (InputError, LimitError):
        raise
    except Exception as error:  # after a failure: Hypothesis says that it does not come again
        if not failures:
            raise FaultError(f"manager {name}: {type(error).__name__}: {error}") from error
    if not failures:
        results.print(f"interrupted after {tried} traces, no fault" if interrupted else f"{examples} examples, no fault")
        return 130 if interrupted else 0
    shortest = min(failures, key=lambda fault: len(fault.steps))
    with contextlib.suppress(KeyboardInterrupt):
        shortest = shortened(make, shortest)
    for step in shortest.steps:
        results.print(f"  {step}")
    results.print(f"{shortest.kind}: {shortest}")
    again = ["attn-parity", "fuzz", "--manager", name, "--examples", str(examples), "--seed", str(seed)]
    results.print(f"again: {report.pasted(again)}")
    return 1

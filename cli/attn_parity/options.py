"""Options that commands share, and their types."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from attn_parity.cpus import usable_cpus

PROFILES = {"ci": 300, "nightly": 40_000, "soak": 1_000_000}
"""The numbers of examples that have a name."""
Record = TypeVar("Record")


def record_of(kind: type[Record]) -> Callable[[Callable[[Record], int | None]], Callable[..., int | None]]:
    """A command gets its options as one record of this dataclass, which has a field for each."""

    def of_command(command: Callable[[Record], int | None]) -> Callable[..., int | None]:
        return functools.wraps(command)(lambda **given: command(kind(**given)))

    return of_command


def together(*options: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """Options that several commands have, in the order of --help."""
    return lambda command: functools.reduce(lambda found, option: option(found), reversed(options), command)


class _Duration(click.FloatRange):
    """A positive number of seconds or minutes, at most the number of seconds in a day. NaN is refused."""

    def __init__(self) -> None:
        super().__init__(min=0, max=86_400, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value} is not a number.", param, ctx)


class Shard(click.ParamType):
    """K/N, the k-th of n shards, from 1."""

    name = "K/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        shard = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= shard[0] <= shard[1]:
            self.fail(f"got {value!r}, expected K/N with K from 1 to N, such as 3/8", param, ctx)
        return shard


Positive = click.IntRange(min=1, max=10**9)
Seed = click.IntRange(min=0, max=(1 << 63) - 1)
Duration = _Duration()

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="auto: a GPU if there is one. AMD GPUs are cuda, too.",
)
_Workers = click.IntRange(min=1, max=256)
workers_option = click.option(
    "--workers",
    type=_Workers,
    help="Number of processes; default: one for each CPU that this process may use, and on a GPU for each 2 GiB of memory.",
)
cpu_workers_option = click.option(
    "--workers",
    type=_Workers,
    default=usable_cpus,
    help="Number of processes; default: one for each CPU that this process may use.",
)


def seconds_option(name: str, default: float, words: str) -> Callable[[Callable], Callable]:
    return click.option(name, type=Duration, default=default, show_default=True, help=words)


CASE_SECONDS = 60.0
case_seconds_option = seconds_option("--case-seconds", CASE_SECONDS, "Seconds that a case may take, compilation included.")
sanitize_option = click.option(
    "--sanitize/--no-sanitize",
    default=None,
    help="Check every address that interpreted kernels access; default: on for this project's kernels on a CPU.",
)
exact_option = click.option(
    "--exact",
    "exactly",
    is_flag=True,
    help="Follow interpreted kernels and torch in exact arithmetic, and compare outputs with the formula without a tolerance.",
)
fence_option = click.option(
    "--fence",
    "fenced",
    is_flag=True,
    help="Make the calls of each case twice more, with each tensor against an unmapped page: after its end, and before its "
    "beginning. A read there is a failure.",
)
malformed_option = click.option(
    "--malformed",
    is_flag=True,
    help="Corrupt a dtype, shape, stride, device, length, table, scale or alias in one call of each case. The target must "
    "promise checks (Target.checks_arguments).",
)
json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result into this file as JSON."
)
corpus_option = click.option(
    "--corpus",
    metavar="FOLDER|FILE|none",
    help="A file or folder of cases to run first; default: those that come with the fuzzer; none: no cases.",
)


ray_option = click.option(
    "--ray", "address", metavar="auto|HOST:PORT", help="Run on this Ray cluster; auto: the one that this machine is a node of."
)
needs_option = click.option(
    "--needs", "resources", multiple=True, metavar="NAME", help="With --ray: a resource that a node must have, such as gfx942."
)
working_dir_option = click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --ray: nodes get a copy of this folder, for the module of a target.",
)

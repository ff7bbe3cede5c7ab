"""Options that several benchmarks have, and the choice of cases by their names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from attn_parity.files import check_writable
from attn_parity.options import Positive, Seed


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def json_option(when: str) -> Option:
    """`json_file`, which can be written or is None."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=lambda _, __, path: check_writable(path) or path,
        help=f"Write the results into this file {when}.",
    )


def only_option(of_what: str) -> Option:
    words = f"Only {of_what} whose name contains TEXT; repeatable. Default: all."
    return click.option("--only", multiple=True, metavar="TEXT", help=words)


def tiny_option(words: str) -> Option:
    return click.option("--tiny", is_flag=True, help=f"{words}. No result has any value.")


vllm_option = click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
aiter_option = click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
commit_option = click.option("--commit", help="The commit to record; default: that of the git checkout.")


def drawn_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`number` and `seed`, both or none of them; see `check_drawn`."""
    words = "Instead of the fixed cases, draw this number of cases from models and traffic."
    seed = click.option("--seed", type=Seed, help="The seed of the drawn cases.")
    return click.option("--drawn", "number", type=Positive, help=words)(seed(command))


def check_drawn(number: int | None, seed: int | None) -> None:
    if (number is None) != (seed is None):
        raise click.UsageError("--drawn and --seed go together: a number of cases is drawn from a seed")


def cases_named(cases: Sequence[T], only: Sequence[str]) -> list[T]:
    """The cases whose name holds one of these texts; all if no text is given.

    Raises:
        click.BadParameter: there is none.
    """
    chosen = [case for case in cases if not only or any(text in case.name for text in only)]
    if not chosen:
        raise click.BadParameter(f"no case has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    return chosen

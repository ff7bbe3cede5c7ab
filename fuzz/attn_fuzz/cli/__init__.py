"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 130 interrupted with nothing found."""

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from attn_fuzz.case import CaseError
from attn_fuzz.cli import fuzz, machine, matrix, replay, zoo
from attn_fuzz.cli.options import notes
from attn_fuzz.executor import ExecutorError
from attn_fuzz.targets import UnknownTargetError
from attn_fuzz.zoo.mutants import MutantError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that proves they agree."""


for command in (fuzz.command, replay.command, zoo.command, matrix.command, machine.list_targets, machine.doctor):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every foreseeable error is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.path.append(os.getcwd())  # a target given as module:attribute is often a file of this folder
        code = cli.main(arguments, prog_name="attn-parity", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        notes.print(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.Abort:
        sys.exit(130)
    except (CaseError, MutantError, UnknownTargetError) as error:
        _fail(str(error))
    except ExecutorError as error:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    notes.print(f"attn-parity: {' '.join(message.split())}", soft_wrap=True)
    sys.exit(2)

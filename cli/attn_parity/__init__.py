"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 130 interrupted with nothing found."""

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from attn_fuzz.cases.case import CaseError
from attn_fuzz.corpus.database import DatabaseError
from attn_fuzz.run.executor import ExecutorError
from attn_fuzz.targets.registry import UnknownTargetError
from attn_fuzz.zoo.mutants import MutantError
from attn_parity import fuzz, matrix, replay, select, show, targets, zoo
from attn_parity.binaries.command import compile_launches
from attn_parity.doctor.command import doctor
from attn_parity.options import notes


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that proves they agree."""


for command in (
    fuzz.command,
    replay.command,
    show.command,
    zoo.command,
    compile_launches,
    matrix.command,
    select.command,
    targets.list_targets,
    doctor,
):
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
    except (CaseError, DatabaseError, MutantError, UnknownTargetError) as error:
        _fail(str(error))
    except ExecutorError as error:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        _fail("this needs Triton, which is missing: pip install 'attn-parity[cpu]', or a torch build for GPUs, which brings it")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    # it may quote a stranger's file, which may hold what controls terminals
    line = "".join(character if character.isprintable() else "?" for character in " ".join(message.split()))
    notes.print(f"attn-parity: {line}", soft_wrap=True)
    sys.exit(2)

"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 130 interrupted with nothing found."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from attn_fuzz.errors import ExecutorError, InputError
from attn_parity.options import FUZZ_EXTRA, INSTALL_FUZZ, notes

COMMANDS = {
    "fuzz": "Draw cases, run them on a target, judge them. The main job.",
    "replay": "Run cases again.",
    "show": "Draw a case: masks, block table, allocation, error against bound.",
    "zoo": "Put real bugs back, one at a time, and see whether the fuzzer finds each.",
    "mutate": "Make mutants by operators, and count those that the fuzzer finds.",
    "compile": "Compile every kernel that ships: registers, spills, LDS, matrix instructions.",
    "emulate": "Run saved launches on the emulator, for a comparison with hardware bit by bit.",
    "matrix": "Write the tables of what is supported and what the fuzzer draws.",
    "select": "Say which backend serves a layer, or each layer of a model.",
    "targets": "List what can be fuzzed here.",
    "doctor": "Say what this machine has, and what to install for the rest.",
}
"""What `attn-parity --help` lists. Command NAME is `command` of the module attn_parity.NAME, imported when it is asked for:
`select` needs nothing of what `fuzz` imports."""

_INSTALLED_BY = {
    **dict.fromkeys(FUZZ_EXTRA, INSTALL_FUZZ),
    "yaml": "pip install 'attn-parity[emulated]'",
    "triton": "pip install 'attn-parity[cpu]', or a torch build for GPUs, which brings it",
}


class _Commands(click.Group):
    """The commands of COMMANDS, each imported when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"attn_parity.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attn-parity", prog_name="attn-parity")
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that proves they agree."""


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
    except InputError as error:
        _fail(str(error))
    except ExecutorError as error:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _INSTALLED_BY:
            raise
        _fail(f"this needs {package}, which is missing: {_INSTALLED_BY[package]}")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    # the message may quote a file from elsewhere, which may hold characters that control a terminal
    line = "".join(character if character.isprintable() else "?" for character in " ".join(message.split()))
    notes.print(f"attn-parity: {line}", soft_wrap=True)
    sys.exit(2)

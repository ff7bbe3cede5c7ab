"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 3 a limit of this tool, 130 interrupted
with nothing found, 141 nobody reads what is printed."""

from attn_fuzz import current_folder

current_folder.leave()  # before anything is imported that looks for optional modules

import importlib
import io
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

import click
from attn_fuzz import extras
from attn_fuzz.errors import ExecutorError, InputError
from attn_fuzz.text import one_line
from attn_parity import defaults
from attn_parity.console import BROKEN_PIPE, is_read, notes, results
from attn_parity.options import ignore_signals, interrupts_end_the_process, sigterm_interrupts
from click.shell_completion import CompletionItem

COMMANDS = {
    "fuzz": "Draw cases, run them on a target, judge them. The main job.",
    "hunt": "Go on past each new failure, and end with a table of distinct failures.",
    "exhaust": "Run every call of a scope on a target, without sampling.",
    "replay": "Run cases again.",
    "bisect": "Find the commit of a kernel's repository since which a case fails.",
    "show": "Draw a case: masks, block table, allocation, error against bound.",
    "zoo": "Put real bugs back, one at a time, and see whether the fuzzer finds each.",
    "mutate": "Make mutants by operators, and count those that the fuzzer finds.",
    "prove": "Prove theorems about the source of the kernels, for all lengths.",
    "compile": "Compile every kernel that ships: registers, spills, LDS, matrix instructions.",
    "emulate": "Run saved launches on the emulator, for a comparison with hardware bit by bit.",
    "matrix": "Write the tables of what is supported and what the fuzzer draws.",
    "select": "Say which backend serves a layer, or each layer of a model.",
    "targets": "List what can be fuzzed here.",
    "examples": "Write the files that the guides use into a folder.",
    "doctor": "Say what this machine has, and what to install for the rest.",
}
"""What `attn-parity --help` lists. Command NAME is `command` of the module attn_parity.NAME, imported when it is asked for:
`select` needs nothing of what `fuzz` imports."""
MAINTAINERS = ("mutate", "matrix")
"""Commands whose results are this project's own pages."""

ENDED = "a process of this run ended before it had answered: it was killed, or memory is short"
MESSAGE = 1500
"""The most characters of an error: it may quote a file."""


class _Commands(click.Group):
    """The commands of COMMANDS, each imported when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with interrupts_end_the_process():
            return importlib.import_module(f"attn_parity.{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        """click would make an interruption of an EOFError, and a mismatch, exit code 1, of a broken pipe."""
        try:
            return super().invoke(ctx)
        except (EOFError, BrokenExecutor, BrokenPipeError) as error:
            if isinstance(error, BrokenPipeError) and not is_read(sys.__stdout__):
                raise
            raise ExecutorError(ENDED) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([entry for entry in COMMANDS.items() if entry[0] not in MAINTAINERS])
        with formatter.section("Commands for maintainers of attn-parity"):
            formatter.write_dl([entry for entry in COMMANDS.items() if entry[0] in MAINTAINERS])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name. It gets its defaults of pyproject.toml, which are printed."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            values = defaults.table(COMMANDS).get(name, {})
            ctx.default_map = {name: defaults.of_command(values, command)}
            if values:
                words = ", ".join(f"{option} = {value!r}" for option, value in values.items())
                notes.print(f"defaults of {defaults.FILE}: {words}", soft_wrap=True)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and their help, of COMMANDS: no command is imported."""
        found = [CompletionItem(name, help=what) for name, what in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attn-parity", prog_name="attn-parity")
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that proves they agree."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every foreseeable error is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _code(arguments)
    if results.lost == BROKEN_PIPE and code == 0:
        code = 128 + signal.SIGPIPE
    elif results.lost is not None and code == 0:
        notes.print(f"attn-parity: stdout: {results.lost}")
        code = 2
    ignore_signals()  # a signal that comes while Python ends would change the exit code
    sys.exit(code)


def _code(arguments: Sequence[str] | None) -> int:
    """Run the command, print its error, and return the exit code."""
    try:
        with sigterm_interrupts():
            code = cli.main(arguments, prog_name="attn-parity", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        notes.print(error.format_message())
    except click.ClickException as error:
        _tell(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit:  # click's, when nobody reads its help
        if is_read(sys.__stdout__):
            raise
        results.on_broken_pipe()
        return 0
    except InputError as error:
        _tell(str(error))
    except ExecutorError as error:
        notes.print(f"attn-parity: {error}", soft_wrap=True)
    except ModuleNotFoundError as error:
        sentence = extras.missing((error.name or "").split(".")[0])
        if sentence is None:
            raise
        _tell(sentence)
    except OSError as error:
        _tell(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 2


def _tell(message: str) -> None:
    notes.print(f"attn-parity: {one_line(message, MESSAGE)}", soft_wrap=True)

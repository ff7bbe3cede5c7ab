"""The command `attn-parity`. Exit codes: 0 agreement, 1 a mismatch, 2 usage or set-up, 3 a limit of this tool, 130 interrupted
with nothing found, 141 the reader of the output has closed its pipe."""

from attn_fuzz import current_folder, errors
from attn_parity.signals import ignore_signals, interrupts_end_the_process, sigterm_interrupts

errors.end_with_own_exit_code()
current_folder.leave()  # before anything is imported that looks for optional modules

with interrupts_end_the_process():
    import importlib
    import io
    import signal
    import sys
    from collections.abc import Mapping, Sequence
    from concurrent.futures import BrokenExecutor
    from typing import Any

    import click
    from attn_fuzz import extras
    from attn_fuzz.errors import EXIT_LIMIT, ExecutorError, InputError, LimitError
    from attn_fuzz.text import nearest, one_line
    from attn_parity import defaults
    from attn_parity.console import BROKEN_PIPE, is_read, notes, open_closed_streams, results
    from click.shell_completion import CompletionItem

GROUPS = {
    "Commands to begin with": {
        "fuzz": "Draw cases, run them on a target, judge them. The main job.",
        "replay": "Run cases again.",
        "explain": "Say which mistake gives exactly the output of a failing case.",
        "show": "Draw a case: masks, block table, allocation, error against bound.",
        "targets": "List what can be fuzzed here.",
        "select": "Say which backend serves a layer, or each layer of a model.",
        "doctor": "Say what this machine has, and what to install for the rest.",
    },
    "Compiled code": {
        "compile": "Compile every kernel that ships, or those of a target: registers, spills, LDS, matrix instructions.",
    },
    "Files": {"examples": "Write the files that the guides use into a folder."},
}
"""The list of `attn-parity --help`. Command NAME is `command` of the module attn_parity.commands.NAME, imported when it is
used: `select` needs nothing of what `fuzz` imports."""

ENDED = "a process of this run ended before it had answered: it was killed, or memory is short"
MAX_ERROR_CHARACTERS = 1500
"""The most characters of an error, which may quote a file."""


class Commands(click.Group):
    """Commands, each imported when it runs.

    Args:
        groups: the commands' names and what they do, in groups with titles.
        module: the name of a command's module, whose `command` it is, with {} for the command's name.
    """

    def __init__(self, *args: Any, groups: Mapping[str, Mapping[str, str]], module: str, **rest: Any):
        super().__init__(*args, **rest)
        self.groups, self.module = groups, module
        self.words = {name: words for group in groups.values() for name, words in group.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.words)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.words:
            return None
        with interrupts_end_the_process():
            return importlib.import_module(self.module.format(cmd_name.replace("-", "_"))).command

    def invoke(self, ctx: click.Context) -> Any:
        """click would make an interruption of an EOFError, and a mismatch, exit code 1, of a broken pipe."""
        try:
            return super().invoke(ctx)
        except (EOFError, BrokenExecutor, BrokenPipeError) as error:
            if isinstance(error, BrokenPipeError) and not is_read(sys.__stdout__):
                raise
            raise ExecutorError(ENDED) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in self.groups.items():
            with formatter.section(title):
                formatter.write_dl([*group.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.words and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]}{nearest(args[0], self.words)}; --help lists them")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and their help: no command is imported."""
        found = [CompletionItem(name, help=what) for name, what in self.words.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


class _UsersCommands(Commands):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name. Its defaults in pyproject.toml apply, and are printed."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            values = defaults.table(self.words).get(name, {})
            ctx.default_map = {name: defaults.of_command(values, command)}
            if values:
                words = ", ".join(f"{option} = {value!r}" for option, value in values.items())
                notes.print(f"defaults of {defaults.FILE}: {words}")
        return name, command, rest


HELP = {"help_option_names": ["-h", "--help"]}


@click.group(cls=_UsersCommands, groups=GROUPS, module="attn_parity.commands.{}", context_settings=HELP)
@click.version_option(package_name="attn-parity", prog_name="attn-parity")
def cli() -> None:
    """Two implementations of one attention contract, and a fuzzer that looks for disagreements."""


def main(arguments: Sequence[str] | None = None, commands: click.Group = cli, name: str = "attn-parity") -> None:
    """Run the command line; every foreseeable error is one line and exit code 2, or 3 if it tells a limit of this tool."""
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _code(arguments, commands, name)
    if results.lost == BROKEN_PIPE and code == 0:
        code = 128 + signal.SIGPIPE
    elif results.lost is not None and code == 0:
        notes.print(f"{name}: stdout: {results.lost}")
        code = 2
    ignore_signals()  # a signal that comes while Python ends would change the exit code
    sys.exit(code)


def _code(arguments: Sequence[str] | None, commands: click.Group, name: str) -> int:
    """Run the command, print its error, and return the exit code."""
    try:
        with sigterm_interrupts():
            code = commands.main(arguments, prog_name=name, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        notes.print(error.format_message())
    except click.ClickException as error:
        _tell(name, error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit:  # click's, when nobody reads its help
        if is_read(sys.__stdout__):
            raise
        results.on_broken_pipe()
        return 0
    except InputError as error:
        _tell(name, str(error))
        return error.exit_code
    except LimitError as error:
        _tell(name, f"not run, by a limit of this tool: {error.sentence}")
        return EXIT_LIMIT
    except ExecutorError as error:
        notes.print(f"{name}: {error}")
    except ModuleNotFoundError as error:
        sentence = extras.missing((error.name or "").split(".")[0])
        if sentence is None:
            raise
        _tell(name, sentence)
    except OSError as error:
        _tell(name, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 2


def _tell(name: str, message: str) -> None:
    notes.print(f"{name}: {one_line(message, MAX_ERROR_CHARACTERS)}")

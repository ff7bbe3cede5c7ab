"""Defaults of options in the table [tool.attn-parity] of pyproject.toml, in the folder in which a command starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from attn_fuzz import inputs

FILE = Path("pyproject.toml")
_TABLE = "tool.attn-parity"


def table(commands: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """The values of options by command and option. It is empty if there is no file, or no such table in the file.

    Raises:
        InputError: the file is no TOML.
        click.UsageError: an entry of the table is no table of a command.
    """
    if not FILE.is_file():
        return {}
    tools = inputs.read_toml(FILE).get("tool", {})
    if not isinstance(tools, dict):
        raise click.UsageError(f"{FILE}: tool: expected a table")
    found = tools.get("attn-parity", {})
    if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
        raise click.UsageError(f"{FILE}: [{_TABLE}]: expected a table for each command")
    if unknown := [name for name in found if name not in commands]:
        raise click.UsageError(f"{FILE}: [{_TABLE}.{unknown[0]}]: expected one of {', '.join(commands)}")
    return found


def of_command(values: Mapping[str, Any], command: click.Command) -> dict[str, Any]:
    """The values by the names of a command's parameters, as click's `default_map` wants them.

    Raises:
        click.UsageError: the command has no such option, or the option does not take the value.
    """
    options = {
        name.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }
    found = {}
    for name, value in values.items():
        where = f"{FILE}: [{_TABLE}.{command.name}] {name}"
        if name not in options:
            raise click.UsageError(f"{where}: expected one of {', '.join(sorted(options))}")
        found[options[name].name] = _checked(options[name], value, where)
    return found


def _checked(option: click.Option, value: Any, where: str) -> Any:
    """The value as the command line would have it. An error names the file."""
    kinds, expected = (str, int, float), "a string or a number"
    if option.is_flag:
        kinds, expected = (bool,), "true or false"
    elif option.multiple or option.nargs != 1:
        kinds, expected = (list,), "a list"
        value = [value] if option.multiple and isinstance(value, str) else value
    if not isinstance(value, kinds) or isinstance(value, bool) != option.is_flag:
        raise click.UsageError(f"{where}: got {value!r}, expected {expected}")
    if option.is_flag:
        return value
    words = [str(item) for item in value] if isinstance(value, list) else str(value)
    try:
        option.type_cast_value(click.Context(click.Command(None)), words)
    except click.BadParameter as error:
        raise click.UsageError(f"{where}: {error.message}") from None
    return words

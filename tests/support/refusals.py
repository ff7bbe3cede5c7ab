"""Refusals as data: files of lines that say what is changed in a right call, and how the error begins."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from attn_contract import AttentionType, Layout


def every_other(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, with stride 2 in the last dimension."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


NAMES: dict[str, Any] = {
    **{made.__name__: made for made in (torch.zeros, torch.ones, torch.tensor, torch.full, every_other)},
    "np": np,
    "torch": torch,
    **Layout.__members__,
    **AttentionType.__members__,
}
"""Names that each edit may use, besides those of its test's module."""


class Refusal(NamedTuple):
    """A line of a file: `edit -> message`, in the section of a call. The edit may name the right call's arguments.

    A line without a message is an edit that leaves the call right.
    """

    call: str
    edit: str
    message: str

    def changed(self, arguments: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
        """The right call's arguments with the edit, which may use the names, too."""
        known = {**NAMES, **names, **arguments, "arguments": arguments}
        return {**arguments, **eval(f"dict({self.edit})", known)}

    def check(self, error: Exception) -> None:
        """Check that an error begins with the message, and names the argument that the message names."""
        assert str(error).startswith(self.message)
        assert getattr(error, "argument", None) == self.message.split(":")[0]


def of(module: str, name: str = "refusals.txt") -> Iterator[Refusal]:
    """The refusals of a file beside a test module. A section begins with the call in brackets, and a comment with a hash."""
    call = ""
    for line in filter(None, Path(module).with_name(name).read_text().splitlines()):
        if line.startswith("["):
            call = line.strip("[]")
        elif not line.startswith("#"):
            edit, _, message = line.partition(" -> ")
            yield Refusal(call, edit, message)


def parametrize(refusals: list[Refusal]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("refusal", refusals, ids=[f"{one.call}: {one.message}" for one in refusals])

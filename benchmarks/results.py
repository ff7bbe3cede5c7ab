"""The head of the JSON results of `speed` and `tune`, and how they are written."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from attn_fuzz import outputs
from attn_parity.console import results
from attn_parity.device import device_name


class Head(msgspec.Struct, kw_only=True):
    """The origin of the results of a run of any command.

    Attributes:
        of_value: True if the figures mean anything: of full sizes, and measured on a GPU or derived from binaries.
        commit: the commit of the code that was measured.
    """

    schema: str
    of_value: bool
    machine: str
    versions: dict[str, str]
    command: str
    commit: str

    @classmethod
    def begun(
        cls,
        device: torch.device,
        peers: Mapping[str, str],
        commit: str | None = None,
        *,
        tiny: bool,
        derived: bool = False,
        **fields: Any,
    ) -> Self:
        """A run that begins here and now. The machine and the versions are printed.

        Args:
            peers: versions of the other participants, by name.
            commit: None: as git says.
            derived: True if the results are derived from binaries, for which no GPU is needed.
            fields: those that a command has beside these.
        """
        run = cls(
            of_value=not tiny and (derived or device.type == "cuda"),
            machine=device_name(device.type),
            versions=versions(peers),
            command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            commit=commit or _commit(),
            **fields,
        )
        results.print(f"{run.machine}, {in_words(run.versions)}")
        return run

    def write(self, path: Path | None) -> None:
        """Whole or not at all: an interrupt leaves the last one. Without a path, nothing is written."""
        if path is not None:
            outputs.write(path, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def versions(peers: Mapping[str, str]) -> dict[str, str]:
    ours = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {**ours, "triton": importlib.metadata.version("triton"), **peers}


def in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _commit() -> str:
    """Git's description of the code that is measured."""
    ended = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else "unknown"

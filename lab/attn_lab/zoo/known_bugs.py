"""Known bugs in TOML files, each with a mutant that puts it back.

    name = "seed-40176"
    origin = "vllm-project/vllm#40176"
    class = "softmax"  # one of BugKind
    what = "what went wrong, in a sentence or two"
    trigger = "what a batch must have for it to matter"
    target = "triton"
    # needs_gpu = true where no interpreter can show it
    # raises = "a part of the message" where the bug shows itself as an exception that is no refusal; a list where as several
    # not_emulated = "why no run on an emulated GPU shows it"

    [[patch]]  # see attn_fuzz.patches.source
    in = "attn_optimized.kernels.visibility.in_window"
    find = "an expression or statements, as they stand in that function"
    replace = "what the bug made of them"

A known bug has to run: an exception that is no refusal, and that its `raises` does not announce, is a fault of the mutant, and
finds nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from attn_fuzz import inputs
from attn_fuzz.patches.mutant import Mutant, MutantError
from attn_fuzz.patches.source import patched_sources

FOLDER = Path(__file__).with_name("bugs")

BugKind = Literal[
    "mask",
    "softmax",
    "window",
    "sinks",
    "logits",
    "block table",
    "layout",
    "dtype",
    "int32",
    "head mapping",
    "ragged batch",
    "cross-attention",
    "rotary",
    "selection",
    "aliasing",
    "determinism",
    "state",
]
"""The classes of bugs: the parts of attention that go wrong."""

KERNELS = "attn_optimized.kernels."
"""The package of the kernels' sources."""
KERNEL_TARGET = "triton"
"""The target whose bugs `on_target` takes to another one."""


class KnownBug(Mutant, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"kind": "class", "patches": "patch"}):
    """A bug of the zoo, and the mutant that puts it back. The module's docstring says what the fields hold.

    Attributes:
        not_emulated: why no run on an emulated GPU shows it; empty if one does, or if its target cannot be compiled for one.
    """

    origin: str
    kind: BugKind
    what: str
    trigger: str
    target: str
    needs_gpu: bool = False
    not_emulated: str = ""

    @property
    def mutant(self) -> Mutant:
        """The part of the record that a run needs."""
        return Mutant(name=self.name, patches=self.patches, raises=self.raises)

    @property
    def in_kernel(self) -> bool:
        """True if it changes the source of a kernel, and so what a compiler makes of the kernel."""
        return any(patch.place.startswith(KERNELS) for patch in self.patches)


def on_target(bugs: Sequence[KnownBug], target: str, *, compiles: bool) -> list[KnownBug]:
    """The bugs of kernels of the target `triton`, on a target that runs the same kernels in another way.

    Args:
        compiles: True if it runs what a compiler makes of the kernels. Then no bug needs a GPU.
    """
    return [
        msgspec.structs.replace(bug, target=target, needs_gpu=bug.needs_gpu and not compiles)
        for bug in bugs
        if bug.in_kernel and bug.target == KERNEL_TARGET
    ]


def compiled_for(bugs: Sequence[KnownBug], architecture: str) -> list[KnownBug]:
    """The bugs of kernels, each on its target with the kernels compiled for an architecture of AMD, and emulated."""
    return [
        msgspec.structs.replace(
            bug,
            target=f"{bug.target}@{architecture}",
            needs_gpu=False,
        )
        for bug in bugs
        if bug.in_kernel
    ]


def read(path: Path) -> KnownBug:
    """Read a bug's file. Whether its patches apply is not known then.

    Raises:
        InputError: it is not TOML, lacks a field or has an unknown one.
    """
    bug = inputs.read_toml_as(path, KnownBug)
    if not bug.patches:
        raise MutantError(f"{path}: it has no [[patch]]")
    return bug


def load(path: Path) -> KnownBug:
    """Read a bug's file and check that its patches apply.

    Raises:
        InputError: it holds no bug, or a patch does not apply.
    """
    bug = read(path)
    try:
        patched_sources(bug.patches)
    except (ValueError, RecursionError) as error:
        raise MutantError(f"{path}: {error}") from None
    return bug


def load_all(folder: Path = FOLDER) -> list[KnownBug]:
    """The bugs of a folder, by file name.

    Raises:
        InputError: the folder has none, or one of them cannot be loaded.
    """
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise MutantError(f"{folder}: no bugs (*.toml) there")
    return [load(path) for path in paths]

"""The instructions that AMD's compilers make of other people's kernels, and those that the emulator does not know."""

import hashlib
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from attn_amdgcn import AmdgcnError, instructions, load, prepare
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.errors import MALFORMED
from attn_amdgcn.instructions.control import BARRIERS, BRANCHES, ENDS
from attn_fuzz.emulated.jobs import Pointer
from attn_parity.binaries import target_calls
from attn_parity.binaries.build import LIMIT, build
from attn_parity.binaries.target_calls import Recorded

MOST_ALIKE = 2
"""Launches of a kernel with the same dtypes of pointers that are compiled."""


class Text(NamedTuple):
    """What was compiled of a launch.

    Attributes:
        forms: its instructions, as `form` writes them.
        unknown: why each form that the emulator does not know has no meaning; by "" what is wrong with the whole text.
    """

    kernel: str
    architecture: str
    digest: str
    forms: frozenset[str]
    unknown: dict[str, str]


def texts(target: str, architecture: str, *, seed: int, examples: int, workers: int) -> tuple[list[Text], list[str]]:
    """Compile launches of drawn calls of a target, two of each kernel with the same dtypes, and read their texts.

    Returns:
        The texts, and what the compiler said of launches that it refused.
    """
    with tempfile.TemporaryDirectory() as scratch:
        recording = target_calls.recorded(target, architecture, seed, examples, LIMIT, Path(scratch))
    launches = dict(_chosen(recording.launches))
    others = ("attn_parity.binaries.target_calls", pickle.dumps({architecture: launches}))
    outcome = build([(architecture, name) for name in launches], workers, launches=others)
    found = [read(launches[name].job.kernel, one, binary.assembly) for (one, name), binary in outcome.binaries.items()]
    return found, [f"{' '.join(job)}: {error}" for job, error in outcome.errors.items()]


def _chosen(launches: Mapping[str, Recorded]) -> Iterator[tuple[str, Recorded]]:
    seen: dict[object, int] = {}
    for name, each in launches.items():
        dtypes = [str(value.dtype) for value in each.job.arguments.values() if isinstance(value, Pointer)]
        key = (each.job.kernel, *dtypes)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= MOST_ALIKE:
            yield name, each


def read(name: str, architecture: str, text: str) -> Text:
    """The forms of a text, and those that the emulator does not know."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        kernel = load(text)
    except AmdgcnError as error:
        return Text(name, architecture, digest, frozenset(), {"": str(error)})
    found = {form(instruction): instruction for instruction in kernel.instructions}
    unknown = {each: why for each, instruction in found.items() if (why := why_unknown(instruction, kernel))}
    if not unknown:
        try:
            prepare(kernel)
        except AmdgcnError as error:
            unknown = {"": str(error)}
    return Text(name, architecture, digest, frozenset(found), unknown)


def why_unknown(instruction: Instruction, kernel: Kernel) -> str | None:
    """Why the emulator has no meaning for an instruction, or None."""
    if instruction.name in (*BRANCHES, *ENDS, *BARRIERS):
        return None
    try:
        instructions.step(instruction, kernel)
    except (AmdgcnError, *MALFORMED) as error:
        return f"{type(error).__name__}: {error}"
    return None


def form(instruction: Instruction) -> str:
    """An instruction with the first registers of their banks, and one number for all of a kind."""
    text = re.sub(r"\b(v|s|a|ttmp)\[(\d+):(\d+)\]", lambda at: f"{at[1]}[0:{int(at[3]) - int(at[2])}]", instruction.text)
    text = re.sub(r"\b(v|s|a|ttmp)\d+\b", r"\g<1>0", text)
    text = re.sub(r"\b(offset[01]?):\d+", r"\g<1>:8", text)
    text = re.sub(r"(?<=[ ,(])-?0x[0-9a-f]+\b", "0x1000", text)
    text = re.sub(r"(?<=[ ,(])-?\d+(?=,|$| )", "1", text)
    text = re.sub(r"(?<=[ ,|])-?\d+\.\d+", "1.0", text)
    return re.sub(r"\.L\w+", ".L", text)


def mnemonics(forms: Iterable[str]) -> set[str]:
    """The names of instructions, without their encodings."""
    return {re.sub(r"(_e64_dpp|_e32|_e64|_dpp|_sdwa)$", "", half.split()[0]) for each in forms for half in each.split(" :: ")}

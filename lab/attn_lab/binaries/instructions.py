"""The instructions that Triton made of the kernels of other packages, and those that the emulator does not know.

Texts are those of Triton's cache, which `attn-parity compile TARGET --arch ARCHITECTURE` fills, and emulated targets do.
"""

import csv
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
from attn_amdgcn import AmdgcnError, instructions, load
from attn_amdgcn.assembly import Instruction, Kernel
from attn_amdgcn.errors import MALFORMED
from attn_amdgcn.instructions.control import BARRIERS, BRANCHES, ENDS
from attn_amdgcn.program import ARCHITECTURES
from attn_fuzz import inputs

FILE = Path("tests/emulated/instructions.txt")
TABLE = Path("tests/emulated/kernels.csv")
COLUMNS = ("package", "triton", "architecture", "kernels", "texts", "mnemonics", "cases", "ran", "agree")
PACKAGES = ("vllm", "sglang", "lmdeploy", "aiter", "conch", "flag_gems")
_FILE = re.compile(rf'\.file\s+\d+\s+"[^"]*/({"|".join(PACKAGES)})/')
_WAITS = ("s_delay_alu", "s_waitcnt", "s_waitcnt_depctr", "s_wait_alu")
BY_NAME = (*BRANCHES, *BARRIERS, *ENDS, *_WAITS)
"""Instructions that `attn_amdgcn.prepare` knows by their names alone."""
_SETS_MODES = "s_setreg_imm32_b32"
"""An instruction of which the rest of the kernel decides whether it is known."""
Forms = Mapping[str, frozenset[str]]
"""Instructions as `form` writes them, each with its architectures."""


class Text(NamedTuple):
    """A text of Triton's cache: whose it is, what it is of, and its assembly."""

    package: str
    kernel: str
    architecture: str
    triton: str
    assembly: str


class Run(NamedTuple):
    """The cases of a package's kernels on an architecture: drawn, run, and in agreement or failing only by known findings."""

    of: "Of"
    cases: int
    ran: int
    agree: int


class Of(NamedTuple):
    """The origin of texts: a package's kernels, a version of Triton, and an architecture."""

    package: str
    triton: str
    architecture: str


@dataclass
class Made:
    """The texts that Triton made of a package's kernels for an architecture. `unknown` has the reasons by form."""

    kernels: set[str] = field(default_factory=set)
    texts: int = 0
    mnemonics: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)


def texts(folders: Iterable[Path]) -> Iterator[Text]:
    """The texts of caches whose kernels are of PACKAGES, each once."""
    seen: set[int] = set()
    for path in sorted(path for folder in folders for path in folder.rglob("*.amdgcn")):
        assembly = path.read_text()
        found, described = _FILE.search(assembly), path.with_suffix(".json")
        if found is None or hash(assembly) in seen or not described.is_file():
            continue
        seen.add(hash(assembly))
        about = msgspec.json.decode(described.read_bytes())
        if about["arch"] in ARCHITECTURES:  # names of kernels may hold their constants, in capitals
            kernel = re.split(r"_(?=[A-Z]{2}|num_|kv_group|logit_cap)", about["name"])[0]
            yield Text(found[1], kernel, about["arch"], about["triton_version"], assembly)


def runs(folders: Iterable[Path]) -> Iterator[Run]:
    """Runs of targets PACKAGE-...@ARCHITECTURE, from files of `attn-parity fuzz --json` in folders."""
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        record = inputs.read_json(path)
        for run in record.get("runs", [record]):
            name, _, architecture = run["target"].partition("@")
            ran = run["examples"] - run["refused"] - sum(run["limits"].values())
            failing = sum(1 + failure.get("later", 0) for failure in run["failures"])
            of = Of(name.partition("-")[0], run["versions"]["triton"], architecture)
            yield Run(of, run["examples"], ran, ran - failing)


def read(found: Iterable[Text]) -> tuple[dict[Of, Made], Forms]:
    """The forms of instructions in texts, by origin, and all forms that the emulator knows."""
    made: dict[Of, Made] = defaultdict(Made)
    whys: dict[tuple[str, str], str | None] = {}
    for text in found:
        each = made[Of(text.package, text.triton, text.architecture)]
        each.kernels.add(text.kernel)
        each.texts += 1
        try:
            kernel = load(text.assembly)
        except AmdgcnError as error:  # a text that is too long
            each.unknown[text.kernel] = str(error)
            continue
        for instruction in kernel.instructions:
            each.mnemonics |= {instruction.name} | ({instruction.second.name} if instruction.second else set())
            if instruction.name == _SETS_MODES and (why := _why_unknown_in(kernel, instruction)):
                each.unknown[instruction.text] = why
            if instruction.name in (*BY_NAME, _SETS_MODES):
                continue
            key = form(instruction), text.architecture
            if key not in whys:
                whys[key] = why_unknown(instruction, text.architecture)
            if why := whys[key]:
                each.unknown[key[0]] = why
    forms: dict[str, set[str]] = defaultdict(set)
    for (each, architecture), why in whys.items():
        if not why:
            forms[each].add(architecture)
    return dict(made), {each: frozenset(architectures) for each, architectures in forms.items()}


def why_unknown(instruction: Instruction, architecture: str) -> str | None:
    """The reason why the emulator has no meaning for an instruction, or None."""
    lanes = 64 if architecture.startswith("gfx9") else 32
    settings = {"next_free_vgpr": 512, "accum_offset": 256} if lanes == 64 else {"next_free_vgpr": 1024}
    return _why_unknown_in(Kernel("", architecture, (), {}, (), 0, lanes, lanes, 0, 1024, settings), instruction)


def _why_unknown_in(kernel: Kernel, instruction: Instruction) -> str | None:
    try:
        instructions.step(instruction, kernel)
    except (AmdgcnError, *MALFORMED) as error:
        return str(error)
    return None


def form(instruction: Instruction) -> str:
    """An instruction with the first registers of their banks, and one number for all of a kind."""
    if instruction.name.startswith("v_") and "swap" in instruction.name:  # of two registers
        return re.sub(r"v\d+, v\d+", "v0, v1", instruction.text)
    text = re.sub(r"\b(v|s|a|ttmp)\[(\d+):(\d+)\]", lambda at: f"{at[1]}[0:{int(at[3]) - int(at[2])}]", instruction.text)
    text = re.sub(r"\b(v|s|a|ttmp)\d+\b", r"\g<1>0", text)
    text = re.sub(r"\b(offset[01]?):\w+\b(?!\()", r"\g<1>:8", text)
    text = re.sub(r"(?<=[ ,(])-?0x[0-9a-f]{3,}\b", "0x1000", text)
    return re.sub(r"(?<=, )-?\d+(?=,|$| )", "1", text)


def chosen(forms: Forms) -> dict[str, frozenset[str]]:
    """The longest form of each mnemonic with the same modifiers, on each architecture."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in forms:
        alike[(each.split()[0], *re.findall(r" ([a-z]\w*(?::\S+)?)(?= |$)", each.rpartition(",")[2][2:]))].append(each)
    found = {}
    for some in alike.values():
        left = frozenset.union(*(forms[each] for each in some))
        for each in sorted(some, key=lambda each: (-len(each), each)):
            if architectures := forms[each] & left:
                found[each], left = architectures, left - architectures
    return found


def stored() -> dict[str, frozenset[str]]:
    """The forms that `write` stored, by architecture."""
    found = {}
    for paragraph in FILE.read_text(encoding="utf-8").split("\n\n"):
        architectures, _, text = paragraph.partition(":\n")
        found |= dict.fromkeys(" ".join(text.split()).split("; "), frozenset(architectures.split()))
    return found


def write(forms: Forms) -> None:
    """Add forms to those that are stored."""
    known = stored()
    forms = {each: forms.get(each, frozenset()) | known.get(each, frozenset()) for each in {*forms, *known}}
    by_architectures: dict[str, list[str]] = defaultdict(list)
    for each, architectures in sorted(chosen(forms).items()):
        by_architectures[" ".join(sorted(architectures))].append(each)
    paragraphs = (
        f"{architectures}:\n" + textwrap.fill("; ".join(some), 128, break_long_words=False, break_on_hyphens=False)
        for architectures, some in sorted(by_architectures.items())
    )
    FILE.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def rows(made: Mapping[Of, Made], runs: Iterable[Run]) -> Iterator[tuple[str | int, ...]]:
    """The lines of the table: what texts hold, and how many cases were drawn, ran and agree."""
    ran: dict[Of, list[Run]] = defaultdict(list)
    for run in runs:
        ran[run.of].append(run)
    for of in sorted({*made, *ran}):
        each = made.get(of, Made())
        counts = (sum(getattr(run, name) for run in ran[of]) for name in ("cases", "ran", "agree"))
        yield *of, len(each.kernels), each.texts, len(each.mnemonics), *counts


def stored_rows() -> list[dict[str, str]]:
    """The lines of the table that is stored, each as a dict by column."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def write_rows(lines: Iterable[Sequence[str | int]]) -> None:
    """Write lines into the table, in the places of those of the same package, Triton and architecture."""
    kept = {tuple(line.values())[:3]: tuple(line.values()) for line in (stored_rows() if TABLE.exists() else [])}
    kept |= {tuple(line[:3]): tuple(line) for line in lines}
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(line for _, line in sorted(kept.items()))])

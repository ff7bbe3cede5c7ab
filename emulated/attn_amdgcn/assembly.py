"""Triton's `asm["amdgcn"]`: the text of one kernel, read into instructions, labels and the description of a launch.

The syntax is LLVM's (AMDGPU Operand Syntax, AMDGPU Modifier Syntax, User Guide for AMDGPU Backend: Code Object V5 metadata).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

try:
    import yaml
except ModuleNotFoundError as error:
    reason = "attn_amdgcn needs yaml, which is missing: pip install 'attn-parity[emulated]'"
    raise ModuleNotFoundError(reason, name=error.name) from None
from attn_amdgcn.collector import collector_paused
from attn_amdgcn.errors import AssemblyError

_ENCODING = re.compile(r"(_e64_dpp|_e32|_e64|_dpp|_sdwa)$")
_REGISTER = re.compile(r"(v|a|s|ttmp)(?:(\d+)|\[(\d+):(\d+)\])(\.[lh])?")
_WRITTEN_OUT = re.compile(r"v(?:\d+|\[\d+:\d+\])(?:\.[lh])? /\*(.*?)\*/")
"""gfx1250: an instruction names the register without the upper bits that s_set_vgpr_msb sets, and a comment names it whole."""
_LONG_BRANCH = re.compile(
    r"s_getpc_b64 s\[(\d+):(\d+)\]\n(\S+):\n"
    r"(?:\s*s_wait_alu .+\n)?"
    r"\s*s_add(?:_co)?_u32 s\1, s\1, \((\S+)-\3\)&4294967295\n"
    r"\s*s_add(?:c|_co_ci)_u32 s\2, s\2, \(\4-\3\)>>32\n"
    r"(?:\s*s_wait_alu .+\n)?"
    r"\s*s_setpc_b64 s\[\1:\2\]"
)
"""A branch beyond the reach of `s_branch`, as LLVM writes it: insertIndirectBranch of SIInstrInfo. Here its registers stay."""
_NUMBER = re.compile(r"-?(0x[0-9a-f]+|\d+)")
_FLOAT = re.compile(r"-?\d+\.\d+(e[+-]?\d+)?")
_CALL = re.compile(r"(\w+)\((.*)\)")
_SPECIAL = {"vcc": 2, "vcc_lo": 1, "vcc_hi": 1, "exec": 2, "exec_lo": 1, "exec_hi": 1, "m0": 1, "scc": 1, "null": 1}
_NEEDED = ("next_free_vgpr", "user_sgpr_count")
"""Directives without which a launch does not know its registers."""


@dataclass(frozen=True)
class Register:
    """One register or several in a row.

    Attributes:
        bank: "v" (vector), "a" (accumulation), "s" (scalar), "ttmp" (trap temporaries), or the name of a special register.
        index: the first register's number.
        count: how many registers of 32 bits. `vcc` and `exec` are two in every kernel: one with 32 lanes writes vcc_lo.
        half: "l" or "h" where gfx11 and later name one half of a vector register.
    """

    bank: str
    index: int
    count: int
    half: str = ""


@dataclass(frozen=True)
class Literal:
    """A number in the text. An integer stands for its bits, and a number with a point for a float of the operand's width."""

    number: int | float


@dataclass(frozen=True)
class Named:
    """A label, or an operand that is a word: `off`, `MSG_DEALLOC_VGPRS`, `vmcnt(0)`."""

    text: str


@dataclass(frozen=True)
class Operand:
    """What stands between two commas, with the modifiers that are written around it: `-v1`, `|v1|`, `sext(v1)`."""

    of: Register | Literal | Named
    neg: bool = False
    abs: bool = False
    sext: bool = False


Modifiers = Mapping[str, bool | int | str | tuple[int, ...]]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: the mnemonic without its encoding.
        encoding: "e32", "e64", "dpp", "e64_dpp", "sdwa" or empty.
        operands: in the order of the text, results first.
        modifiers: what follows the operands: `offen` is True, `offset:16` is 16, `op_sel:[0,1]` is (0, 1), and `dst_sel:BYTE_0`
            is a text.
        text: the whole line.
        line: its number in the text.
        source: "file:line" of the kernel's source.
        second: the other half of an instruction that issues two (`v_dual_... :: v_dual_...`).
    """

    name: str
    encoding: str
    operands: tuple[Operand, ...]
    modifiers: Modifiers
    text: str
    line: int
    source: str
    second: "Instruction | None" = None


@dataclass(frozen=True)
class Argument:
    """One entry of the kernel's arguments in memory: "global_buffer", "by_value", or a kind that begins with "hidden_"."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: of the function.
        architecture: "gfx942" and its like.
        instructions: in the order of the text.
        labels: the number of the instruction behind each label.
        arguments: what lies in the memory that the kernel's first scalar registers point to.
        argument_bytes: of that memory.
        wave_size: lanes of a wave, 32 or 64.
        threads: lanes of a workgroup.
        lds_bytes: static LDS; Triton gives its LDS at the launch, so it is 0.
        scratch_bytes: of one lane.
        settings: the `.amdhsa_` directives, without that prefix.
    """

    name: str
    architecture: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    arguments: tuple[Argument, ...]
    argument_bytes: int
    wave_size: int
    threads: int
    lds_bytes: int
    scratch_bytes: int
    settings: dict[str, int] = field(repr=False)


@collector_paused()
def load(text: str) -> Kernel:
    """Read a kernel.

    Args:
        text: `asm["amdgcn"]` of a binary that Triton compiled, with one kernel.

    Raises:
        AssemblyError: the text is something else.
    """
    if not isinstance(text, str):
        raise AssemblyError(f"the text is of type {type(text).__name__}, and str is expected")
    architecture, described = _metadata(text)
    instructions, labels = code_of(text)
    settings = {name: int(value, 0) for name, value in re.findall(r"^\s*\.amdhsa_(\w+) (-?\d\w*)$", text, re.MULTILINE)}
    if missing := [name for name in _NEEDED if name not in settings]:
        raise AssemblyError(f"the text has no .amdhsa_{missing[0]}")
    try:
        return Kernel(
            name=described[".name"],
            architecture=architecture,
            instructions=tuple(instructions),
            labels=labels,
            arguments=tuple(Argument(each[".offset"], each[".size"], each[".value_kind"]) for each in described[".args"]),
            argument_bytes=described[".kernarg_segment_size"],
            wave_size=described[".wavefront_size"],
            threads=described[".max_flat_workgroup_size"],
            lds_bytes=described[".group_segment_fixed_size"],
            scratch_bytes=described[".private_segment_fixed_size"],
            settings=settings,
        )
    except (KeyError, TypeError) as error:
        raise AssemblyError(f".amdgpu_metadata describes the kernel incompletely: {type(error).__name__}: {error}") from None


def _metadata(text: str) -> tuple[str, dict]:
    """The architecture and the description of the one kernel."""
    found = re.findall(r"^\s*\.amdgpu_metadata\n(.*?)^\s*\.end_amdgpu_metadata", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise AssemblyError("the text has no .amdgpu_metadata: it is no assembly of a kernel for AMD, or not all of it")
    if len(found) > 1:
        raise AssemblyError(f"the text has .amdgpu_metadata {len(found)} times: one kernel is expected")
    try:
        metadata = yaml.load(found[0], _Metadata)
        target, kernels = metadata["amdhsa.target"], metadata["amdhsa.kernels"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise AssemblyError(
            f".amdgpu_metadata cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if len(kernels) != 1:
        raise AssemblyError(f"the text holds {len(kernels)} kernels, and 1 is expected")
    return target.rpartition("-")[2].partition(":")[0], kernels[0]


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Metadata(_Loader):
    """YAML as LLVM writes it: an argument's name that YAML reads as something else, such as `n`, has the tag `!str`."""


_Metadata.add_constructor("!str", _Metadata.construct_scalar)


def code_of(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions before the description of the kernel, and the labels among them."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    files: dict[str, str] = {}
    source = ""
    text = _LONG_BRANCH.sub(lambda found: f"s_branch {found[4]}" + "\n" * found[0].count("\n"), text)  # as many lines
    for number, line in enumerate(text.splitlines(), 1):
        code = _WRITTEN_OUT.sub(r"\1", line.partition(";")[0].strip())
        if code.startswith(".file") and (found := re.fullmatch(r'\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)".*', code)):
            files[found[1]] = found[2]
        elif code.startswith(".loc") and (found := re.match(r"\.loc\s+(\d+)\s+(\d+)", code)):
            source = f"{files.get(found[1], '?')}:{found[2]}"
        elif code.startswith(".amdhsa_kernel") or (code.startswith(".section") and instructions):
            break
        elif code.endswith(":"):
            labels[code[:-1]] = len(instructions)
        elif code and not code.startswith("."):
            instructions.append(_instruction(code, number, source))
    if not instructions:
        raise AssemblyError("the text holds no instruction")
    return instructions, labels


def _instruction(code: str, line: int, source: str) -> Instruction:
    try:
        name, encoding, operands, modifiers, other = _read(code)
    except ValueError as error:
        raise AssemblyError(f"line {line}: `{code}`: {error}") from None
    second = _instruction(other, line, source) if other else None
    return Instruction(name, encoding, operands, modifiers, code, line, source, second)


@lru_cache(maxsize=1 << 16)
def _read(code: str) -> tuple[str, str, tuple[Operand, ...], Modifiers, str]:
    """The name, encoding, operands and modifiers of an instruction, and the other half's text. Kernels share most texts."""
    first, _, other = code.partition(" :: ")
    name, _, rest = first.partition(" ")
    found = _ENCODING.search(name)
    encoding = found[1][1:] if found else ""
    base = name[: found.start()] if found else name
    if base in ("s_waitcnt", "s_delay_alu", "s_waitcnt_depctr"):  # their operands are a language of their own
        return base, "", tuple(Operand(Named(word)) for word in rest.split() if word != "|"), {}, ""
    operands, modifiers = _rest(rest.strip())
    return base, encoding, tuple(operands), modifiers, other.strip()


def _rest(text: str) -> tuple[list[Operand], dict]:
    """What follows a mnemonic: operands with commas between them, and modifiers with spaces before them."""
    pieces = list(_pieces(text, ","))
    words = list(_pieces(pieces.pop(), " ")) if pieces else []
    if words and not _is_modifier(words[0]):
        pieces.append(words.pop(0))
    return [_operand(piece) for piece in pieces], dict(_modifier(word) for word in words)


def _pieces(text: str, separator: str) -> Iterator[str]:
    """Cut a text where the separator stands outside brackets."""
    depth, begin = 0, 0
    for i, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == separator and depth == 0:
            if piece := text[begin:i].strip():
                yield piece
            begin = i + 1
    if piece := text[begin:].strip():
        yield piece


def _is_modifier(word: str) -> bool:
    return ":" in word and not _REGISTER.fullmatch(word.strip("-|")) and not word.startswith(("-", "|", "sext("))


def _modifier(word: str) -> tuple[str, bool | int | str | tuple[int, ...]]:
    name, given, value = word.partition(":")
    if not given:
        return name, True
    if value.startswith("["):
        return name, tuple(int(number) for number in value[1:-1].split(","))
    return name, int(value, 0) if _NUMBER.fullmatch(value) else value


def _operand(text: str) -> Operand:
    neg = abs_ = sext = False
    if text.startswith("-") and not (_NUMBER.fullmatch(text) or _FLOAT.fullmatch(text)):
        neg, text = True, text[1:]
    if found := _CALL.fullmatch(text):
        if found[1] in ("sext", "neg", "abs"):
            neg, abs_, sext = neg or found[1] == "neg", found[1] == "abs", found[1] == "sext"
            text = found[2]
        elif found[1] == "lit":
            text = found[2]
    if text.startswith("|"):
        abs_, text = True, text.strip("|")
    return Operand(_plain(text), neg, abs_, sext)


def _plain(text: str) -> Register | Literal | Named:
    if found := _REGISTER.fullmatch(text):
        bank, single, first, last, half = found.groups()
        index = int(single or first)
        return Register(bank, index, 1 if single else int(last) - index + 1, (half or "")[1:])
    if text in _SPECIAL:
        return Register(text, 0, _SPECIAL[text])
    if _NUMBER.fullmatch(text):
        return Literal(int(text, 0))
    if _FLOAT.fullmatch(text):
        return Literal(float(text))
    if re.fullmatch(r"[.\w$]+", text) or _CALL.fullmatch(text):
        return Named(text)
    raise ValueError(f"{text!r} is no operand")

"""Triton's `asm["amdgcn"]`: the text of one kernel, read into instructions, labels and the description of a launch.

The syntax is LLVM's (AMDGPU Operand Syntax, AMDGPU Modifier Syntax, User Guide for AMDGPU Backend: Code Object V5 metadata).
A stranger may have written the text: each number is checked against the limits of architectures before it is used as a size.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

try:
    import yaml
except ModuleNotFoundError as error:
    reason = "attn_amdgcn needs yaml, which is missing: pip install 'attn-parity[emulated]'"
    raise ModuleNotFoundError(reason, name=error.name) from None
from attn_amdgcn.collector import collector_paused
from attn_amdgcn.errors import AssemblyError, shown

_ENCODING = re.compile(r"(_e64_dpp|_e32|_e64|_dpp|_sdwa)$")
_REGISTER = re.compile(r"(v|a|s|ttmp)(?:(\d+)|\[(\d+):(\d+)\])(\.[lh])?")
_WRITTEN_OUT = re.compile(r"v(?:\d+|\[\d+:\d+\])(?:\.[lh])? /\*([^*]*+)\*/")
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
_SETTING = re.compile(r"\.amdhsa_(\w+)[ \t]+(-?[0-9]\w*)")
_NEEDED = ("next_free_vgpr", "user_sgpr_count")
"""The directives that a launch needs to know its registers."""
MAX_TEXT, MAX_METADATA, MAX_LINE = 1 << 23, 1 << 16, 1000
"""The most characters of a text, of its metadata and of a line. Triton's largest texts have a tenth of that."""
MAX_DEPTH = 32
_REGISTERS = {"v": 1024, "a": 256, "s": 106, "ttmp": 16}
"""The number of registers of each bank, on the architecture that has most."""
_MAX_IN_A_ROW = 32
VECTORS = {"gfx90a": 512, "gfx942": 512, "gfx950": 512, "gfx1100": 256, "gfx1201": 256}
"""The vector registers of a lane, with accumulation registers; 1024 on gfx1250."""
LDS_BYTES = {"gfx950": 160 << 10, "gfx1250": 320 << 10}
"""The bytes of LDS of a workgroup, if not 64 KiB (LLVM: AddressableLocalMemorySize in AMDGPU's features)."""
MAX_THREADS = 1024
MAX_SCRATCH = 1 << 17
"""The most bytes of scratch of a lane: a wave has 8 MiB (COMPUTE_TMPRING_SIZE.WAVESIZE)."""


@dataclass(frozen=True)
class Register:
    """One register or several in a row.

    Attributes:
        bank: "v" (vector), "a" (accumulation), "s" (scalar), "ttmp" (trap temporaries), or the name of a special register.
        index: the first register's number.
        count: the number of registers of 32 bits. `vcc` and `exec` are two in every kernel: one with 32 lanes writes vcc_lo.
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
    """An operand, with the modifiers that are written around it: `-v1`, `|v1|`, `sext(v1)`."""

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
        modifiers: the words after the operands: `offen` is True, `offset:16` is 16, `op_sel:[0,1]` is (0, 1), and
            `dst_sel:BYTE_0` is a text.
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
    """One entry of the kernel's arguments in memory: "global_buffer", "by_value", or a kind that begins with "hidden_".

    Its name may be empty.
    """

    offset: int
    size: int
    kind: str
    name: str = ""


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: the name of the function.
        architecture: "gfx942" and its like.
        instructions: in the order of the text.
        labels: the number of the instruction after each label.
        arguments: the contents of the memory to which the kernel's first scalar registers point.
        argument_bytes: the number of bytes of that memory.
        wave_size: lanes of a wave, 32 or 64.
        threads: lanes of a workgroup.
        lds_bytes: static LDS; Triton gives its LDS at the launch, so it is 0.
        scratch_bytes: the bytes of scratch of one lane.
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
def load(text: str, name: str | None = None) -> Kernel:
    """Read a kernel.

    Args:
        text: `asm["amdgcn"]` of a binary that Triton compiled, or the assembly that clang wrote for a GPU.
        name: the name of the kernel, where the text has several, as clang's may.

    Raises:
        AssemblyError: the text is something else.
    """
    if not isinstance(text, str):
        raise AssemblyError(f"the text is of type {type(text).__name__}, and str is expected")
    if len(text) > MAX_TEXT:
        raise AssemblyError(f"the text has {len(text)} characters, and at most {MAX_TEXT} are expected")
    lines = text.split("\n")
    architecture, described = _metadata(lines, name)
    if name is not None:
        lines = _lines_of(lines, name)
    instructions, labels = code_of("\n".join(lines))
    settings = _settings(lines, architecture)
    wave_size = _number(described, ".wavefront_size", 32, 64)
    if wave_size not in (32, 64):
        raise AssemblyError(f".amdgpu_metadata: .wavefront_size: got {wave_size}, expected 32 or 64")
    argument_bytes = _number(described, ".kernarg_segment_size", 0, 1 << 16)
    return Kernel(
        name=_field(described, ".name", str),
        architecture=architecture,
        instructions=tuple(instructions),
        labels=labels,
        arguments=tuple(_argument(each, argument_bytes) for each in _field(described, ".args", list)),
        argument_bytes=argument_bytes,
        wave_size=wave_size,
        threads=_number(described, ".max_flat_workgroup_size", 1, MAX_THREADS),
        lds_bytes=_number(described, ".group_segment_fixed_size", 0, LDS_BYTES.get(architecture, 64 << 10)),
        scratch_bytes=_number(described, ".private_segment_fixed_size", 0, MAX_SCRATCH),
        settings=settings,
    )


def _argument(described: Any, argument_bytes: int) -> Argument:
    size = _number(described, ".size", 1, argument_bytes)
    offset, name = _number(described, ".offset", 0, argument_bytes - size), described.get(".name")
    return Argument(offset, size, _field(described, ".value_kind", str), name if isinstance(name, str) else "")


def _settings(lines: Sequence[str], architecture: str) -> dict[str, int]:
    """The `.amdhsa_` directives that are numbers."""
    vectors = VECTORS.get(architecture, 1024)
    bounds = {"next_free_vgpr": (1, vectors), "accum_offset": (4, 256), "user_sgpr_count": (0, 32)}
    settings: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not (found := _SETTING.fullmatch(line.strip())):
            continue
        name, value = found[1], _int(found[2])
        least, most = bounds.get(name, (0, (1 << 32) - 1))
        if value is None or not least <= value <= most or name in settings:
            got = f"{shown(found[2])}{' after another one' * (name in settings)}"
            raise AssemblyError(f"line {number}: .amdhsa_{shown(name)}: got {got}, expected one from {least} to {most}")
        settings[name] = value
    if missing := [name for name in _NEEDED if name not in settings]:
        raise AssemblyError(f"the text has no .amdhsa_{missing[0]}")
    return settings


def _lines_of(lines: Sequence[str], name: str) -> list[str]:
    """The lines of a kernel at their places, from its label to the end of its description. Other lines are empty."""
    begins = [number for number, line in enumerate(lines) if line.partition(";")[0].strip() == f"{name}:"]
    ends = [number for number, line in enumerate(lines) if line.strip() == ".end_amdhsa_kernel"]
    end = next((end for end in ends if begins and end > begins[0]), None)
    if end is None:
        raise AssemblyError(f"the text has no label {shown(name)} before an .end_amdhsa_kernel")
    return ["" if number < begins[0] or number > end else line for number, line in enumerate(lines)]


def _metadata(lines: Sequence[str], name: str | None) -> tuple[str, dict]:
    """The architecture, and the description of the kernel of this name, or of the one kernel."""
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == f".{name}amdgpu_metadata"] for name in ("", "end_"))
    if not begins or not ends:
        raise AssemblyError("the text has no .amdgpu_metadata: it is no assembly of a kernel for AMD, or not all of it")
    if len(begins) > 1:
        raise AssemblyError(f"the text has .amdgpu_metadata {len(begins)} times: one kernel is expected")
    text = "\n".join(lines[begins[0] + 1 : ends[0]])
    if len(text) > MAX_METADATA:
        raise AssemblyError(f".amdgpu_metadata has {len(text)} characters, and at most {MAX_METADATA} are expected")
    try:
        _check_events(text)
        metadata = yaml.load(text, _Metadata)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise AssemblyError(f".amdgpu_metadata cannot be read: {type(error).__name__}: {shown(str(error))}") from None
    kernels, target = _field(metadata, "amdhsa.kernels", list), _field(metadata, "amdhsa.target", str)
    if name is not None:
        kernels = [each for each in kernels if isinstance(each, dict) and each.get(".name") == name]
    if len(kernels) != 1:
        which = "" if name is None else f" of the name {shown(name)}"
        raise AssemblyError(f"the text holds {len(kernels)} kernels{which}, and 1 is expected")
    return target.rpartition("-")[2].partition(":")[0], kernels[0]


def _field(described: Any, name: str, kind: type) -> Any:
    found = described.get(name) if isinstance(described, dict) else None
    if type(found) is not kind or (isinstance(found, str) and len(found) > MAX_LINE):
        got = "nothing" if found is None else shown(repr(found) if isinstance(found, str) else found)
        raise AssemblyError(f".amdgpu_metadata: {name}: got {got}, expected {_KINDS[kind]}")
    return found


_KINDS = {str: f"a text of at most {MAX_LINE} characters", list: "a list", int: "an integer"}


def _number(described: Any, name: str, least: int, most: int) -> int:
    if not least <= (found := _field(described, name, int)) <= most:
        raise AssemblyError(f".amdgpu_metadata: {name}: got {shown(found)}, expected an integer from {least} to {most}")
    return found


def _int(text: str) -> int | None:
    """The number that a text is; None if it is none, or has more digits than Python reads."""
    try:
        return int(text, 0)
    except ValueError:
        return None


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Metadata(_Loader):
    """YAML as LLVM writes it: an argument's name that YAML reads as something else, such as `n`, has the tag `!str`."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        names = [key.value if isinstance(key, yaml.ScalarNode) else "<<" for key, _ in node.value]
        if "<<" in names or len(set(names)) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "a key is no plain text, or is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Metadata.add_constructor("!str", _Metadata.construct_scalar)


def _check_events(text: str) -> None:
    """Refuse what LLVM does not write, and what would make much of a short text.

    Raises:
        ValueError: an anchor, an alias, or more than MAX_DEPTH levels.
    """
    depth = 0
    for event in yaml.parse(text, _Metadata):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "anchor", None) is not None:
            raise ValueError(f"line {event.start_mark.line + 1} of it has an anchor or an alias")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def code_of(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions before the description of the kernel, and the labels among them."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    files: dict[str, str] = {}
    source = ""
    text = _LONG_BRANCH.sub(lambda found: f"s_branch {found[4]}" + "\n" * found[0].count("\n"), text)  # as many lines
    for number, line in enumerate(text.splitlines(), 1):
        if len(code := line.partition(";")[0].strip()) > MAX_LINE:
            raise AssemblyError(f"line {number}: it has {len(code)} characters, and at most {MAX_LINE} are expected")
        code = _WRITTEN_OUT.sub(r"\1", code)
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
    if " :: " in other:
        raise ValueError("two instructions at once are expected at most")
    name, _, rest = first.partition(" ")
    found = _ENCODING.search(name)
    encoding = found[1][1:] if found else ""
    base = name[: found.start()] if found else name
    if base in ("s_waitcnt", "s_delay_alu", "s_waitcnt_depctr"):  # their operands are a language of their own
        return base, "", tuple(Operand(Named(word)) for word in rest.split() if word != "|"), {}, ""
    operands, modifiers = _rest(rest.strip())
    return base, encoding, tuple(operands), modifiers, other.strip()


def _rest(text: str) -> tuple[list[Operand], dict]:
    """The operands and the modifiers of an instruction: commas separate operands, and spaces precede modifiers."""
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
        return name, tuple(_bits(number.strip()) for number in value[1:-1].split(","))
    return name, _bits(value) if _NUMBER.fullmatch(value) else value


def _bits(text: str) -> int:
    """A number of at most 64 bits."""
    number = _int(text)
    if number is None or not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"{shown(text)}: a number of at most 64 bits is expected")
    return number


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
        begin, end = _bits(single or first), _bits(single or last)
        if not begin <= end < min(_REGISTERS[bank], begin + _MAX_IN_A_ROW):
            numbers = f"0 to {_REGISTERS[bank] - 1}, at most {_MAX_IN_A_ROW} in a row"
            raise ValueError(f"{text}: registers {bank} have the numbers {numbers}, the first one before the last")
        return Register(bank, begin, end - begin + 1, (half or "")[1:])
    if text in _SPECIAL:
        return Register(text, 0, _SPECIAL[text])
    if _NUMBER.fullmatch(text):
        return Literal(_bits(text))
    if _FLOAT.fullmatch(text):
        return Literal(float(text))
    if re.fullmatch(r"[.\w$]+", text) or _CALL.fullmatch(text):
        return Named(text)
    raise ValueError(f"{text!r} is no operand")

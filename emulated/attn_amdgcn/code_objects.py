"""A code object for an AMD GPU, such as a file `.co` or `.hsaco`, as the text of assembly that `attn_amdgcn.load` reads.

LLVM's tools read the file: its header (the architecture), its note (arguments and sizes), its kernel descriptor (registers and
modes), and its code. A file may hold anything: what the tools cannot say stops here, with the file's name.

Source: ELF Code Object, Kernel Descriptor and Code Object Metadata in LLVM's User Guide for AMDGPU Backend.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from attn_amdgcn import gfx950_words
from attn_amdgcn.assembly import MAX_TEXT
from attn_amdgcn.errors import AmdgcnError, AssemblyError, shown
from attn_amdgcn.gfx950_words import NOP, instruction_of

OLDEST, NEWEST = 19, 40
"""The versions of LLVM's tools to look for. LLVM 18 names fewer of a descriptor's directives."""
SECONDS = 60
"""The time that a tool may take for a file."""
_FIRST_WITH_GFX950 = 20
_LINE = re.compile(r"\t(\S[^\n]*?)\s*// ([0-9A-F]{12}): ((?:[0-9A-F]{8} ?)+)")
_SYMBOL = re.compile(r"([0-9a-f]{16}) <(\S+)>:")
_BRANCH = re.compile(r"s_(?:cbranch_\w+|branch) (\S+)")
_MACHINES = {0x3F: "gfx90a", 0x4C: "gfx942", 0x4F: "gfx950", 0x41: "gfx1100", 0x4E: "gfx1201", 0x49: "gfx1250"}
"""Architectures by EF_AMDGPU_MACH, the low byte of the header's flags."""
_USER_SGPR_COUNT = 0x34
"""The place of COMPUTE_PGM_RSRC2 in a descriptor: bits 5:1 say how many scalar registers are set at the start."""


class ToolError(AmdgcnError):
    """LLVM's tools are not here, or one of them has ended with an error."""


def text_of(file: Path | str, kernel: str | None = None) -> str:
    """The assembly of one kernel of a code object.

    Each branch leads to a label, each number stands where LLVM's assembler takes it, and a comment after each instruction has
    its address in the file and its words.

    Args:
        file: the code object.
        kernel: the symbol of its function; None: the only kernel of the file.

    Raises:
        AssemblyError: the file is no code object for an AMD GPU, has other kernels, or has words that LLVM does not know.
        ToolError: LLVM's tools are not here, or are too old for the file's architecture.
        OSError: the file cannot be read.
    """
    os.stat(file)  # LLVM's tools name a file that is not here as one that is no code object
    file = str(file)
    architecture = _architecture(file)
    note = _note(file)
    name = _kernel(file, note, kernel)
    code = "\n".join(_code(file, name, architecture))
    directives = "\n".join(_directives(file, name, architecture))
    metadata = f"amdhsa.target: amdgcn-amd-amdhsa--{architecture}\n{_only(note, name)}"
    text = f"{code}\n.amdhsa_kernel {name}\n{directives}\n.end_amdhsa_kernel\n"
    return f"{text}\t.amdgpu_metadata\n---\n{metadata}...\n\t.end_amdgpu_metadata\n"


def reader() -> str:
    """The version of the reader: releases of LLVM's tools, and a digest of this package's own code.

    Raises:
        ToolError: LLVM's tools are not here.
    """
    own = b"".join(Path(module).read_bytes() for module in (__file__, gfx950_words.__file__))
    return f"{_tool('llvm-objdump')} {_tool('llvm-readelf')} {sha256(own).hexdigest()}"


def missing() -> str | None:
    """The reason why no code object can be read here; None if they can."""
    try:
        _tool("llvm-objdump")
        _tool("llvm-readelf")
    except ToolError as error:
        return str(error)
    return None


@cache
def _tool(name: str) -> tuple[str, int, str]:
    """The path of a tool, LLVM's version, and what the tool says of it: ROCm's own, or the newest on PATH."""
    rocm = Path(os.environ.get("ROCM_PATH", "/opt/rocm")) / "llvm" / "bin" / name
    numbered = (f"{name}-{version}" for version in range(NEWEST, OLDEST - 1, -1))
    for each in (str(rocm), *numbered, name):
        if (path := shutil.which(each)) is None:
            continue
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False).stdout
        if (found := re.search(r"LLVM version (\d+)", output)) and int(found[1]) >= OLDEST:
            return path, int(found[1]), output
    reason = f"{name} of LLVM {OLDEST} or later is needed to read a code object, and is not here"
    raise ToolError(f"{reason}: ROCm has it, or `apt install llvm-{OLDEST}`")


def _output(name: str, *arguments: str) -> str:
    path = _tool(name)[0]
    try:
        done = subprocess.run([path, *arguments], capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ToolError(f"{path} {shown(' '.join(arguments))}: no end in {SECONDS} s") from None
    if done.returncode or len(done.stdout) > 2 * MAX_TEXT:
        what = (
            done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode} and {len(done.stdout)} characters"
        )
        raise AssemblyError(f"{arguments[-1]} is no code object that {name} reads: {shown(what)}")
    return done.stdout.decode(errors="replace")


def _architecture(file: str) -> str:
    header = _output("llvm-readelf", "--file-header", file)
    found = re.search(r"Flags:\s+0x([0-9a-fA-F]+)", header)
    machine = int(found[1], 16) & 0xFF if found and "EM_AMDGPU" in header else None
    if machine not in _MACHINES:
        raise AssemblyError(f"{file}: its header names none of {', '.join(_MACHINES.values())}")
    return _MACHINES[machine]


def _note(file: str) -> str:
    """The metadata in the note, as YAML from `amdhsa.kernels:` on."""
    output = _output("llvm-readelf", "--notes", file)
    begin = output.find("amdhsa.kernels:")
    if begin < 0:
        raise AssemblyError(f"{file}: it has no note about kernels")
    return output[begin : output.find("\n...", begin) + 1]


def _kernel(file: str, note: str, kernel: str | None) -> str:
    names = re.findall(r"^ +\.symbol: +'?([^\s']+)\.kd'?$", note, re.MULTILINE)
    if kernel is None and len(names) == 1:
        return names[0]
    if kernel is None or kernel not in names:
        raise AssemblyError(f"{file}: kernel {shown(repr(kernel))}: the file has {shown(', '.join(names)) or 'none'}")
    return kernel


def _only(note: str, name: str) -> str:
    """The note with one kernel alone."""
    heading, *kernels = re.split(r"^(?=  - )", note, flags=re.MULTILINE)
    own = [each for each in kernels if re.search(rf"\.symbol: +'?{re.escape(name)}\.kd", each)]
    end = kernels[-1].find("\namdhsa.") + 1 if kernels else 0
    body = own[0]
    if own[0] is kernels[-1] and end:
        body = body[:end]
    return heading + body


def _code(file: str, name: str, architecture: str) -> Iterator[str]:
    """Labels and instructions. Addresses that branches lead to get labels of their own."""
    lines = list(_lines(file, name, architecture))
    targets = {target for code, address, words in lines if (target := _target(code, address, words)) is not None}
    for code, address, words in lines:
        if address in targets:
            yield f"at_{address:x}:"
        if (target := _target(code, address, words)) is not None:
            code = f"{code.split()[0]} at_{target:x}"
        yield f"\t{code} ; {address:x}: {words}"


def _lines(file: str, name: str, architecture: str) -> Iterator[tuple[str, int, str]]:
    """The instructions of a function, with their addresses and words."""
    version = _tool("llvm-objdump")[1]
    reads = _read_as(architecture)
    output = _output("llvm-objdump", "-d", "--triple=amdgcn-amd-amdhsa", f"--mcpu={reads}", file)
    further: dict[int, tuple[str, str]] = {}
    if reads != architecture:
        output, further = _read_further(file, output, reads)
    inside, end = False, 0
    for line in output.splitlines():
        if found := _SYMBOL.fullmatch(line):
            inside = found[2] == name or (inside and _is_label(found[2]))
        elif inside and (found := _LINE.match(line)):
            code, address, words = found[1], int(found[2], 16), found[3].strip()
            if address < end:
                continue
            if address in further:
                code, words = further[address]
                end = address + 4 * len(words.split())
            if code.startswith(".long"):
                known = f", which LLVM {version} reads as {reads}" if reads != architecture else ""
                raise ToolError(f"{file}: address {address:#x}: LLVM {version} does not know {words} of {architecture}{known}")
            yield code, address, words


def _read_as(architecture: str) -> str:
    """The architecture as which LLVM reads a file.

    LLVM 19 knows no gfx950. Its words that gfx942 has, too, mean the same; some others are in `gfx950_words`.
    """
    return "gfx942" if architecture == "gfx950" and _tool("llvm-objdump")[1] < _FIRST_WITH_GFX950 else architecture


def _read_further(file: str, output: str, reads: str) -> tuple[str, dict[int, tuple[str, str]]]:
    """LLVM's text of a copy of the file in which s_nop replaces words of `gfx950_words`, and these words by address.

    LLVM takes the second word of an instruction that it does not know for another one's first. So a copy may show new ones.
    """
    further: dict[int, tuple[str, str]] = {}
    content = bytearray(Path(file).read_bytes())
    begin, offset = _section(file, ".text")
    while True:
        end, before = 0, len(further)
        for line in output.splitlines():
            if not (found := _LINE.match(line)) or not found[1].startswith(".long") or int(found[2], 16) < end:
                continue
            address = int(found[2], 16)
            place = address - begin + offset
            first, second = (int.from_bytes(content[place + i : place + i + 4], "little") for i in (0, 4))
            if (one := instruction_of(first, second)) is None:
                continue
            text, size = one
            further[address] = text, " ".join(f"{word:08X}" for word in (first, second)[:size])
            content[place : place + 4 * size] = NOP.to_bytes(4, "little") * size
            end = address + 4 * size + 8  # LLVM may have lost its place
        if len(further) == before:
            return output, further
        with tempfile.NamedTemporaryFile(suffix=".co") as copy:
            copy.write(content)
            copy.flush()
            output = _output("llvm-objdump", "-d", "--triple=amdgcn-amd-amdhsa", f"--mcpu={reads}", copy.name)


def _section(file: str, name: str) -> tuple[int, int]:
    """The address of a section, and its place in the file."""
    output = _output("llvm-readelf", "--section-headers", "--wide", file)
    found = re.search(rf"\] {re.escape(name)} +\w+ +([0-9a-f]+) ([0-9a-f]+) ", output)
    if found is None:
        raise AssemblyError(f"{file}: it has no section {name}")
    return int(found[1], 16), int(found[2], 16)


def _is_label(symbol: str) -> bool:
    """True if a symbol is a place within a function: assemblers name them so."""
    return bool(re.match(r"(label|L|BB|\.L)[_\d]", symbol))


def _target(code: str, address: int, words: str) -> int | None:
    """The address to which a branch leads: the low 16 bits of its word count words from the next one on."""
    if not _BRANCH.match(code):
        return None
    offset = int(words.split()[0], 16) & 0xFFFF
    return address + 4 + 4 * (offset - (offset >> 15 << 16))


def _directives(file: str, name: str, architecture: str) -> Iterator[str]:
    """The descriptor as directives, and how many scalar registers are set at the start, which LLVM's tool leaves out."""
    output = _output(
        "llvm-objdump", "-D", "-j", ".rodata", "--triple=amdgcn-amd-amdhsa", f"--mcpu={_read_as(architecture)}", file
    )
    found = re.search(rf"([0-9a-f]{{16}}) <{re.escape(name)}\.kd>:\n\.amdhsa_kernel .*\n((?:\t\.amdhsa_.*\n)+)", output)
    if found is None:
        raise AssemblyError(f"{file}: LLVM cannot read the descriptor of {name}")
    yield from found[2].splitlines()
    yield f"\t.amdhsa_user_sgpr_count {_word(file, int(found[1], 16) + _USER_SGPR_COUNT) >> 1 & 31}"


def _word(file: str, address: int) -> int:
    """The word of .rodata at an address."""
    for line in _output("llvm-objdump", "-s", "-j", ".rodata", file).splitlines():
        found = re.match(r" ([0-9a-f]+) ((?:[0-9a-f]{8} )+)", line)
        if found and (number := (address - int(found[1], 16)) // 4) in range(len(found[2].split())):
            return int.from_bytes(bytes.fromhex(found[2].split()[number]), "little")
    raise AssemblyError(f"{file}: .rodata has no word at {address:#x}")

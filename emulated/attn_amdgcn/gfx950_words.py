"""Words of gfx950 that LLVM 19, which reads them as gfx942's, does not know: the instructions that AITER's assembly has.

A table, and no disassembler. What it makes of a word is proved by an assembler that knows gfx950:
`tests/emulated/test_gfx950_words.py` assembles whole files again and compares all of their words.

Source: "Microcode Formats" in AMD's CDNA4 ISA.
"""

from collections.abc import Callable

NOP = 0xBF800000


def instruction_of(first: int, second: int) -> tuple[str, int] | None:
    """An instruction's text and the number of its words; None if the table has none that begins with these words."""
    for mask, value, zeros, size, text in _TABLE:
        if first & mask == value and not second & zeros:
            return text(first, second), size
    return None


def _registers(bank: str, first: int, count: int) -> str:
    return f"{bank}{first}" if count == 1 else f"{bank}[{first}:{first + count - 1}]"


def _vector(source: int, count: int = 1, bank: str = "v") -> str:
    """A source of 9 bits: a vector register, or an integer from 0 to 64."""
    return _registers(bank, source - 256, count) if source >= 256 else str(source - 128)


def _scalar(source: int) -> str:
    """A scalar source of 8 bits: a register, M0 or an integer from 0 to 64."""
    return f"s{source}" if source < 102 else "m0" if source == 124 else str(source - 128)


def _read_transposed(bits: int) -> Callable[[int, int], str]:
    def text(first: int, second: int) -> str:
        offset = f" offset:{first & 0xFFFF}" if first & 0xFFFF else ""
        bank = "a" if first >> 25 & 1 else "v"
        return f"ds_read_b64_tr_b{bits} {_registers(bank, second >> 24, 2)}, v{second & 255}{offset}"

    return text


def _mfma(shape: str, results: int, registers: int) -> Callable[[int, int], str]:
    def text(first: int, second: int) -> str:
        banks = ["a" if second >> bit & 1 else "v" for bit in (27, 28)]
        sources = [_vector(second & 511, registers, banks[0]), _vector(second >> 9 & 511, registers, banks[1])]
        operands = [_registers("v", first & 255, results), *sources, _vector(second >> 18 & 511, results)]
        return f"v_mfma_f32_{shape} {', '.join(operands)}"

    return text


def _convert_pair(first: int, second: int) -> str:
    return f"v_cvt_pk_bf16_f32 v{first & 255}, {_vector(second & 511)}, {_vector(second >> 9 & 511)}"


def _load_into_lds(first: int, second: int) -> str:
    flags = [name for bit, name in ((12, "offen"), (13, "idxen")) if first >> bit & 1]
    flags += [f"offset:{first & 0xFFF}"] * bool(first & 0xFFF)
    resource = _registers("s", 4 * (second >> 16 & 31), 4)
    return " ".join([f"buffer_load_dwordx4 v{second & 255}, {resource}, {_scalar(second >> 24)}", *flags, "lds"])


def _global_load_into_lds(first: int, second: int) -> str:
    offset, base = (first & 0x1FFF ^ 0x1000) - 0x1000, second >> 16 & 127
    address, saddr = (
        (_vector((second & 255) + 256, 2), "off") if base == 0x7F else (f"v{second & 255}", _registers("s", base, 2))
    )
    return f"global_load_lds_dwordx4 {address}, {saddr}" + f" offset:{offset}" * bool(offset)


def _swap(lanes: int) -> Callable[[int, int], str]:
    return lambda first, second: f"v_permlane{lanes}_swap_b32_e32 v{first >> 17 & 255}, {_vector(first & 511)}"


_TABLE = (
    (0xFDFF0000, 0xD9C40000, 0x00FFFF00, 2, _read_transposed(8)),
    (0xFDFF0000, 0xD9C60000, 0x00FFFF00, 2, _read_transposed(16)),
    (0xFFFFFF00, 0xD3AD0000, 0xE0000000, 2, _mfma("16x16x128_f8f6f4", 4, 8)),
    (0xFFFFFF00, 0xD3AE0000, 0xE0000000, 2, _mfma("32x32x64_f8f6f4", 16, 8)),
    (0xFFFFFF00, 0xD3B50000, 0xE0000000, 2, _mfma("16x16x32_bf16", 4, 4)),
    (0xFFFFFF00, 0xD3B70000, 0xE0000000, 2, _mfma("32x32x16_bf16", 16, 4)),
    (0xFFFFFF00, 0xD2680000, 0xFFFC0000, 2, _convert_pair),
    (0xFFFFC000, 0xE05D0000, 0x00E0FF00, 2, _load_into_lds),
    (0xFFFFE000, 0xDDF48000, 0xFF80FF00, 2, _global_load_into_lds),
    (0xFE01FE00, 0x7E00B200, 0x00000000, 1, _swap(16)),
    (0xFE01FE00, 0x7E00B400, 0x00000000, 1, _swap(32)),
)
"""Bits of the first word and their values, bits of the second word that are 0, how many words an instruction has, and its text.
Modifiers that no table entry has are other words. f8f6f4 has e4m3 in both sources where its modifiers are 0."""

"""The least cycles for which an instruction of AMD's assembly keeps a unit of the GPU busy, by AMD's published rates.

MI300X (gfx942), by AMD's data sheet and the white paper "AMD CDNA 3 Architecture": 304 compute units of four SIMDs at 2.1 GHz.
Dense products: 1307.4 TFLOP/s of float16 and bfloat16, 2614.9 of float8 and int8, 653.7 of xf32, 163.4 of float32. FLOPS has
them for a SIMD and a cycle. 163.4 TFLOP/s of float32 without the matrix unit are an instruction of 64 lanes in 4 cycles, in
which each lane does two packed multiply-adds. The LDS gives 128 bytes a cycle to the four SIMDs, and so does the vector L1
cache, by the peak of ROCm's profiler (rocprofiler-compute). HBM has 5.3 TB/s. A transcendental function and a product of
integers of 32 bits take four times as long as an addition.
"""

import re
from typing import NamedTuple

RATED = ("gfx942",)
"""Architectures whose rates these are."""
LANES = 64
SIMDS = 4
HBM_BYTES = 5.3e12 / (304 * 2.1e9)
"""In a cycle, for each compute unit."""
FLOPS = {"bf16": 512, "f16": 512, "fp8": 1024, "bf8": 1024, "i8": 1024, "xf32": 256, "f32": 64}
"""FLOPs of a SIMD's matrix unit in a cycle, by the type of the operands."""
VECTOR_CYCLES, SLOW_CYCLES = 4, 16
LDS_BYTES = L1_BYTES = 128
"""In a cycle, for the four SIMDs of a compute unit."""

_MATRIX = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?_?(\w+)")
_SLOW = re.compile(r"v_(?:exp|log|rcp|rsq|sqrt|sin|cos|mul_lo|mul_hi|mad_u64|mad_i64)_")
_LDS_WIDTH = re.compile(r"ds_(?:read|write|load|store)(2?)(?:st64)?_b(\d+)")
_MEMORY = re.compile(r"(global|buffer|flat|scratch)_(load|store)_(?:lds_)?(\w+)")
_OF_CDNA = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1, "byte": 1}
_OF_RDNA = {"b128": 16, "b64": 8, "b32": 4, "b16": 2, "u16": 2, "i16": 2, "d16": 2, "b8": 1, "u8": 1, "i8": 1}
_WIDTHS = _OF_CDNA | _OF_RDNA


class Cost(NamedTuple):
    """The cost of instructions of one wave.

    Attributes:
        instructions: their number.
        matrix: the number of matrix instructions.
        matrix_cycles, vector_cycles: cycles of the SIMD's matrix unit and of its vector unit.
        lds_bytes, l1_bytes: bytes of all lanes.
        loaded_bytes: the bytes that come from global memory into registers or LDS.
    """

    instructions: int = 0
    matrix: int = 0
    matrix_cycles: float = 0
    vector_cycles: float = 0
    lds_bytes: int = 0
    l1_bytes: int = 0
    loaded_bytes: int = 0

    def __add__(self, other: tuple) -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class UnknownRateError(ValueError):
    """An instruction has no published rate here."""


def cost_of(mnemonic: str) -> Cost:
    """
    Raises:
        UnknownRateError: it is a matrix instruction, or an access to memory, of a kind that no kernel here has.
    """
    if "mfma" in mnemonic:  # of sparse products, smfmac, no rate is here
        return Cost(instructions=1, matrix=1, matrix_cycles=_matrix_cycles(mnemonic))
    if mnemonic.startswith("v_"):
        cycles = SLOW_CYCLES if _SLOW.match(mnemonic) else VECTOR_CYCLES
        return Cost(instructions=1, vector_cycles=cycles)
    if mnemonic.startswith("ds_"):
        return Cost(instructions=1, lds_bytes=LANES * _lds_width(mnemonic))
    if mnemonic.startswith(("global_", "buffer_", "flat_", "scratch_")):
        return _of_memory(mnemonic)
    if not mnemonic.startswith("s_"):
        raise UnknownRateError(mnemonic)
    return Cost(instructions=1)


def _matrix_cycles(mnemonic: str) -> float:
    found = _MATRIX.match(mnemonic)
    rate = None if found is None else next((flops for name, flops in FLOPS.items() if found[5].startswith(name)), None)
    if found is None or rate is None:
        raise UnknownRateError(mnemonic)
    m, n, k = (int(found[i]) for i in (1, 2, 3))
    return 2 * m * n * k * int(found[4] or 1) / rate


def _lds_width(mnemonic: str) -> int:
    """Bytes of a lane."""
    found = _LDS_WIDTH.match(mnemonic)
    if found is not None:
        return int(found[2]) // 8 * (2 if found[1] else 1)
    if mnemonic.startswith(("ds_bpermute_b32", "ds_permute_b32", "ds_swizzle_b32")):
        return 4
    narrow = re.match(r"ds_(?:read|write)_[ui]?(\d+)", mnemonic)
    if narrow is None:
        raise UnknownRateError(mnemonic)
    return int(narrow[1]) // 8


def _of_memory(mnemonic: str) -> Cost:
    found = _MEMORY.match(mnemonic)
    width = None if found is None else next((n for name, n in _WIDTHS.items() if found[3].startswith(name)), None)
    if found is None or width is None:
        raise UnknownRateError(mnemonic)
    # spilled registers are in the L1 cache, and are not read from HBM
    is_loaded = found[2] == "load" and found[1] != "scratch"
    return Cost(instructions=1, l1_bytes=LANES * width, loaded_bytes=LANES * width if is_loaded else 0)

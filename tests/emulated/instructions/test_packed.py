"""Packed instructions: each half against the instruction that is not packed."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attn_amdgcn import UnknownInstructionError

from tests.emulated.floats import (
    EDGES16,
    EDGES32,
    bits16,
    bits32,
    columns,
    f16,
    f32,
    is_same16,
    is_same32,
    plain_sum,
    product,
    product_sum,
)
from tests.emulated.lines import JUNK, ran

LOW, HIGH = [1.5, -2.0, 3.25], [0.5, 7.0, -4.0]
"""The halves of v[0:1], v[2:3] and v[4:5], and of s[10:11], s[12:13] and s[14:15]."""
VECTORS = {2 * i + half: np.float32(values[i]) for half, values in enumerate((LOW, HIGH)) for i in range(3)}
SCALARS = {10 + 2 * i + half: bits32(values[i]) for half, values in enumerate((LOW, HIGH)) for i in range(3)}


def pair(text: str, architecture: str = "gfx942") -> tuple[float, float]:
    after = ran(text, architecture, v=VECTORS, s=SCALARS)
    return f32(int(after.vector[8, 0, 5])), f32(int(after.vector[9, 0, 5]))


def test_the_halves_that_op_sel_names_and_their_signs():
    both = (LOW, HIGH)
    for low, high in itertools.product(itertools.product((0, 1), repeat=3), repeat=2):
        text = f"v_pk_fma_f32 v[8:9], v[0:1], v[2:3], v[4:5] op_sel:{list(low)} op_sel_hi:{list(high)}"
        signs = f"{text} neg_lo:[1,0,1] neg_hi:[0,1,0]"
        a, b, c = ([both[half][i] for half in (low[i], high[i])] for i in range(3))
        assert pair(text) == (a[0] * b[0] + c[0], a[1] * b[1] + c[1]), text
        assert pair(signs) == (-a[0] * b[0] - c[0], a[1] * -b[1] + c[1]), signs


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        ("v_pk_mul_f32 v[8:9], v[0:1], v[2:3]", "gfx942", (-3.0, 3.5)),
        ("v_pk_add_f32 v[8:9], v[0:1], v[2:3] op_sel_hi:[1,0]", "gfx942", (-0.5, -1.5)),
        ("v_pk_add_f32 v[8:9], v[0:1], 1.0 op_sel_hi:[1,0] neg_lo:[1,0] neg_hi:[1,0]", "gfx942", (-0.5, 0.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13]", "gfx942", (-3.0, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13] op_sel_hi:[1,0]", "gfx950", (-3.0, -1.0)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13] op_sel:[0,1]", "gfx942", (10.5, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], s[12:13]", "gfx1250", (-3.0, -1.0)),
        ("v_pk_fma_f32 v[8:9], 0x3f000000, v[0:1], s[14:15] op_sel_hi:[0,1,0]", "gfx1250", (4.0, 3.5)),
        ("v_pk_mul_f32 v[8:9], v[0:1], v[2:3] clamp", "gfx942", (0.0, 1.0)),
        ("v_pk_add_f32 v[0:1], v[0:1], v[0:1]\nv_pk_mov_b32 v[8:9], v[0:1], v[0:1] op_sel:[0,1]", "gfx942", (3.0, 1.0)),
        ("v_pk_mov_b32 v[8:9], v[0:1], v[2:3] op_sel:[1,0]", "gfx942", (0.5, -2.0)),
        ("v_pk_mov_b32 v[8:9], v[0:1], s[12:13] op_sel:[0,1]", "gfx942", (1.5, 7.0)),
        ("v_pk_mov_b32 v[8:9], 0, 0", "gfx90a", (0.0, 0.0)),
        ("v_mov_b32_e32 v8, v0\nv_mov_b32_e32 v9, v1\nv_pk_mov_b32 v[8:9], v[8:9], v[8:9] op_sel:[1,0]", "gfx942", (0.5, 1.5)),
    ],
)
def test_forms(text, architecture, expected):
    assert pair(text, architecture) == expected


def test_edge_values_and_lanes_that_are_off():
    rows, (a, b) = columns(EDGES32, EDGES32)
    for name, compute in (("add", plain_sum), ("mul", product)):
        after = ran(f"v_pk_{name}_f32 v[8:9], v[0:1], v[2:3]", v={0: a, 1: b, 2: b, 3: a}, num_waves=len(a))
        for (x, y), low, high in zip(rows, after.vector[8].ravel().tolist(), after.vector[9].ravel().tolist(), strict=False):
            assert is_same32(low, compute(f32(x), f32(y), "f32"))
            assert is_same32(high, compute(f32(y), f32(x), "f32"))
    off = ran("v_pk_mul_f32 v[8:9], v[0:1], v[2:3]\nv_pk_mov_b32 v[10:11], v[0:1], v[0:1]", v=VECTORS, exec=2)
    assert off.vector[8:12, 0, 0].tolist() == [JUNK] * 4
    assert off.vector[8:10, 0, 1].view(np.float32).tolist() == [-3.0, 3.5]


def test_what_is_not_defined_is_refused():
    with pytest.raises(UnknownInstructionError, match="upper half of a constant"):
        pair("v_pk_mul_f32 v[8:9], v[0:1], 1.0")
    with pytest.raises(UnknownInstructionError, match="upper half of a constant"):
        pair("v_pk_add_u16 v8, v0, 1")
    with pytest.raises(UnknownInstructionError, match="mul"):
        pair("v_pk_mul_f32 v[8:9], v[0:1], v[2:3] mul:2")


def _signed(bits: int) -> int:
    return bits - (bits >> 15 << 16)


INTEGERS: dict[str, tuple[int, Callable[..., int]]] = {
    "add_u16": (2, lambda a, b: a + b),
    "sub_i16": (2, lambda a, b: a - b),
    "mul_lo_u16": (2, lambda a, b: a * b),
    "max_u16": (2, max),
    "min_u16": (2, min),
    "max_i16": (2, lambda a, b: max(_signed(a), _signed(b))),
    "min_i16": (2, lambda a, b: min(_signed(a), _signed(b))),
    "mad_u16": (3, lambda a, b, c: a * b + c),
    "lshlrev_b16": (2, lambda a, b: b << (a & 15)),
    "lshrrev_b16": (2, lambda a, b: b >> (a & 15)),
    "ashrrev_i16": (2, lambda a, b: _signed(b) >> (a & 15)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    sources, compute = INTEGERS[name]
    _, arrays = columns(*[[0, 1, 0x7FFF, 0x8000, 0xFFFF, 17]] * 3)
    low, high = arrays, [arrays[1], arrays[2], arrays[0]]
    v = {i: low[i] | high[i] << np.uint32(16) for i in range(3)}
    operands = ", ".join(f"v{i}" for i in range(sources))
    after = ran(f"v_pk_{name} v9, {operands}", v=v, num_waves=len(low[0])).vector[9].ravel().tolist()
    for i, found in enumerate(after):
        halves = [[int(array.ravel()[i]) for array in part[:sources]] for part in (low, high)]
        assert (found & 0xFFFF, found >> 16) == tuple(compute(*half) & 0xFFFF for half in halves)


def test_float16():
    rows, (a, b) = columns(EDGES16, EDGES16)
    v = {0: a | b << np.uint32(16), 1: b | a << np.uint32(16)}
    sums = {"add": plain_sum, "mul": product, "fma": lambda x, y, name: product_sum(x, y, x, name)}
    for name, compute in sums.items():
        text = f"v_pk_{name}_f16 v9, v0, v1{', v0' * (name == 'fma')}"
        for (x, y), found in zip(rows, ran(text, v=v, num_waves=len(a)).vector[9].ravel().tolist(), strict=False):
            assert is_same16(found & 0xFFFF, compute(f16(x), f16(y), "f16"))
            assert is_same16(found >> 16, compute(f16(y), f16(x), "f16"))
    one = bits16(1.5) | bits16(-3.0) << 16
    text = "v_pk_add_f16 v9, v0, v0 op_sel:[1,0] op_sel_hi:[0,1] neg_lo:[0,1]"
    assert ran(text, v={0: one}).vector[9, 0, 0] == bits16(-4.5) | bits16(-1.5) << 16
    assert ran("v_pk_max_f16 v9, v0, 0", v={0: one}).vector[9, 0, 0] == bits16(1.5)
    assert ran("v_pk_mul_f16 v9, v0, 2.0 op_sel_hi:[1,0]", v={0: one}).vector[9, 0, 0] == bits16(3.0) | bits16(-6.0) << 16


def test_bfloat16_against_torch():
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 1 << 32, (3, 8, 32), dtype=np.uint32) & np.uint32(0xBFFFBFFF)
    a, b, c = (torch.from_numpy(part.view(np.int16).copy()).view(torch.bfloat16).double() for part in bits)
    for text, expected in (
        ("v_pk_add_bf16 v9, v0, v1", (a + b).bfloat16()),
        ("v_pk_mul_bf16 v9, v0, v1", (a * b).bfloat16()),
        ("v_pk_fma_bf16 v9, v0, v1, v2", (a * b + c).bfloat16()),
    ):
        found = ran(text, "gfx1250", v=dict(enumerate(bits)), num_waves=8).vector[9]
        assert torch.equal(torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16), expected), text

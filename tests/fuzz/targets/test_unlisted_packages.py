"""Kernels of packages that have no target here, by small adapters: each pair of kernel and dtype, and the known defects."""

import os

import pytest
import triton
from attn_fuzz.targets import registry

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
PAIRS = [
    *(f"conch_targets:{kernel}{dtype}" for kernel in ("VARLEN", "PAGED") for dtype in ("", "_FP16", "_BF16")),
    "flag_gems_targets:FP16",
    "flag_gems_targets:BF16",
]
FIVE = ("--examples", 5, "--seed", 1, "--workers", 1, "--corpus", "none")


def needs(name):
    package = name.partition("_targets")[0].upper()
    if not os.environ.get(f"ATTN_PARITY_{package}"):
        pytest.skip(f"ATTN_PARITY_{package} names no folder")
    if package == "FLAG_GEMS" and TRITON >= (3, 9):
        pytest.skip("FlagGems 5.0.2 makes block pointers, which this Triton does not have")


@pytest.mark.parametrize("name", [*PAIRS, "conch_targets:TOP_LEFT", "flag_gems_targets:BLOCKS", "flag_gems_targets:SWAPPED"])
def test_it_declares_without_its_package(name):
    assert registry.load(name).support("cpu").dtypes


@pytest.mark.parametrize(
    "way", ["", *(pytest.param(f"@{each}", marks=pytest.mark.nightly) for each in ("gfx942", "gfx950", "gfx1201"))]
)
@pytest.mark.parametrize("name", PAIRS)
def test_each_kernel_agrees_in_each_dtype(name, way, attn_parity):
    needs(name)
    run = attn_parity("fuzz", "--target", name + way, *FIVE)
    assert run.code == 0, run.out + run.err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("conch_targets:TOP_LEFT", "explanation: the causal mask is aligned with the first key (top left)"),
        ("flag_gems_targets:BLOCKS", "wrong in out"),
        ("flag_gems_targets:SWAPPED", "wrong in lse"),
    ],
)
def test_a_known_defect_is_found(name, told, attn_parity):
    needs(name)
    run = attn_parity("fuzz", "--target", name, "--examples", 40, *FIVE[2:])
    assert run.code == 1
    assert told in run.out

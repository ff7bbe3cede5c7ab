"""Tensors that reach beyond 2^31 elements take no memory, hold what they are copies of, and show offsets of 32 bits."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from attn_fuzz.targets import registry
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.modes.far import REACH, spread

SEEDS = range(6)
PROGRAM = "tl.program_id(0)"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 16), (100, 2, 64), (5, 1, 16)], ids=str)
def test_half_of_the_rows_lie_where_32_bits_do_not_reach(seed, dtype, shape):
    tensor = torch.randint(-9, 9, shape).to(dtype)
    before = resident_bytes()
    with spread(random.Random(seed)) as copies:
        rows = copies.rows(tensor)
        assert rows.shape == tensor.shape
        assert rows.stride(2) == 1
        assert torch.equal(rows.view(torch.uint8), tensor.view(torch.uint8))
        apart, size = max(zip(rows.stride()[:2], shape[:2], strict=True))
        unit = 16 // dtype.itemsize if apart % (16 // dtype.itemsize) == 0 else 1
        assert 0.9 * REACH < apart // unit * size < 1.1 * REACH
        assert resident_bytes() - before < 100 << 20


def _write_and_raise(a: torch.Tensor, b: torch.Tensor) -> None:
    with spread(random.Random(0)) as copies:
        first = copies.rows(a)
        assert first is copies.rows(a.view_as(a)), "an output that is an input must stay one"
        first[3] = copies.rows(b)[3] + 1
        raise ValueError("late")


def test_written_tensors_come_back_also_from_a_call_that_raises():
    a, b = torch.zeros(4, 2, 8), torch.ones(4, 2, 8)
    with pytest.raises(ValueError, match="late"):
        _write_and_raise(a, b)
    assert a.sum() == 2 * b[3].sum() == 2 * 16


def test_a_tensor_without_two_rows_stays_where_it_is():
    tensor, nothing, of_bytes = torch.zeros(1, 8), torch.zeros(0, 2, 8), torch.zeros(0, 2, 8, dtype=torch.int8)
    with spread(random.Random(0)) as copies:
        assert copies.rows(tensor) is tensor
        assert copies.rows(nothing) is nothing
        assert copies.rows(of_bytes) is of_bytes
        assert copies.rows(None) is None


def test_a_pool_has_rows_that_32_bits_do_not_reach_and_is_full_of_nan_otherwise(monkeypatch):
    like, before = torch.zeros(2, 3, 512, dtype=torch.bfloat16), resident_bytes()
    assert far.pool(5, like).isnan().sum() == 5 * 512
    monkeypatch.setattr(far, "is_far", True)
    rows = far.pool(5, like)
    rows[-1] = 1
    assert (rows.shape, rows.dtype, rows.stride()) == ((REACH // 512, 512), like.dtype, (512, 1))
    assert rows.storage_offset() == REACH // 2  # a row that is read 2^31 elements before its place is memory
    assert rows[-1].sum() == 512
    assert resident_bytes() - before < 100 << 20


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("target", "place", "find", "replace"),
    [
        ("triton@far", "kernels.store.store_output", "rows.row.to(tl.int64)", "rows.row"),
        ("triton@far", "kernels.write_kv_cache.write_kv_cache_kernel", f"{PROGRAM}.to(tl.int64)", PROGRAM),
        ("triton-merge", "kernels.merge_attn_states.merge_attn_states_kernel", f"{PROGRAM}.to(tl.int64)", PROGRAM),
        ("triton-latent@far", "kernels.key_rest.load_rest_of_queries", "rows.row.to(tl.int64)", "rows.row.to(tl.int32)"),
        (
            "triton-latent@scaled@far",
            "kernels.write_scaled_latent_cache.write_scaled_latent_cache_kernel",
            f"{PROGRAM}.to(tl.int64)",
            PROGRAM,
        ),
    ],
)
def test_an_offset_of_32_bits_is_found(target, place, find, replace, finds_fault):
    finds_fault(target, f"attn_optimized.{place}", find, replace, examples=150)


def test_compiled_kernels_run_on_such_tensors_on_the_emulator(fuzz_apart):
    progress = fuzz_apart("triton@far@gfx942", examples=2, seed=3, on_failure="stop")
    assert (progress.failure, progress.limits, progress.examples) == (None, {}, 2)


def test_a_system_without_such_memory_says_so(monkeypatch):
    def none(size):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(far, "reserved_memory", none)
    far.missing_memory.cache_clear()
    assert "Cannot allocate memory" in (registry.load("triton@far").unavailable("cpu") or "")
    far.missing_memory.cache_clear()


def test_rows_of_parts_lie_apart_in_this_mode_alone_and_meet_where_offsets_have_32_bits():
    cpu, (rows, heads, splits, width) = torch.device("cpu"), (5, 2, 3, 96)
    assert far.parts((rows, heads, splits, width), cpu).is_contiguous()
    found: list[torch.Tensor] = []

    def write(*arguments):
        found.extend((far.parts((rows, heads, splits, width), cpu), far.parts((rows, heads, splits), cpu, width=width)))

    target = far.in_a_large_cache(dataclasses.replace(registry.load("vllm-triton-mla"), write_latent_cache=write))
    target.write_latent_cache(None, None, None, None, torch.zeros(0, dtype=torch.int64))
    outs, lses = found
    assert outs.isnan().all()
    assert lses.isnan().all()
    assert outs.stride(0) == width * lses.stride(0)
    assert abs(4 * outs.stride(0) - 2**32) < heads * splits * width, "rows 0 and 4 overlap modulo 2^32"

"""Reads beside a tensor whose numbers reach no output: they fault where the page beside the tensor is unmapped."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
import torch
from attn_contract import Layout
from attn_fuzz.cases import case_file, tensors
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.cases.poison import bits
from attn_fuzz.run.case import fence, unmapped
from attn_fuzz.run.case.fence import Fence
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.strategies import cases
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.verdict.verdict import FENCED
from hypothesis import given, settings

from tests.fuzz.cases.test_devices import all_tensors

SMALL = dataclasses.replace(EVERYTHING, head_sizes=(16, 32), block_sizes=(16, 1, 4, 48), max_tokens=32, max_seq_len=64)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXAMPLES = Path(__file__).parents[3] / "examples"
BUFFERS = ("out_buffer", "lse_buffer", "kv_cache", "k_scale_cache", "v_scale_cache")


def decode(num_requests: int) -> Case:
    """One query of each request on 3 keys. Tensors with a multiple of 4 requests end at a multiple of 16 bytes."""
    return Case(
        target="reference-fp32",
        head_size=16,
        group_size=2,
        num_kv_heads=2,
        alibi_slopes=True,
        lse=True,
        requests=tuple(Request(query_len=1, seq_len=3, blocks=(block,), causal=True) for block in range(num_requests)),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=4, num_blocks=num_requests),
    )


@given(cases("anything", SMALL))
@settings(max_examples=30, deadline=None, database=None)
def test_tensors_beside_unmapped_pages_hold_the_same_elements(case):
    built = tensors.build(case)
    for each in (*fence.EVERYTHING, *list(fence.each_alone(case))[:2]):
        there = fence.sent(built, case, DEVICE, each)
        first, second = all_tensors(built), all_tensors(there)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            other = second[name]
            if name.partition(" of ")[0] in BUFFERS:
                continue
            assert (tensor.shape, tensor.stride(), tensor.dtype) == (other.shape, other.stride(), other.dtype), name
            assert torch.equal(bits(tensor), bits(other).cpu()), name
            assert other.data_ptr() % fence.ALIGNMENT == 0 or tensor.data_ptr() % fence.ALIGNMENT, name
            assert other.storage_offset() == tensor.storage_offset() or each.side == "beginning", name
        for write, other in zip(built.writes, there.writes, strict=True):
            assert built.raw is not None
            assert there.raw is not None
            assert torch.equal(bits(write.view.tensor(built.raw)), bits(other.view.tensor(there.raw)).cpu())


@pytest.mark.parametrize("side", ["end", "beginning"])
@pytest.mark.parametrize("size", [1, 4096, 4097, 3 << 20])
def test_memory_lies_flush_against_an_unmapped_page(size, side):
    pool = unmapped.Pool(unmapped.HostPages())
    memory = pool.tensor(size, side)
    memory.fill_(7)
    edge = memory.data_ptr() + (size if side == "end" else 0)
    assert edge % unmapped.HostPages.size == 0
    assert pool.tensor(size, side).data_ptr() != memory.data_ptr()
    pool.give_back()
    assert memory.data_ptr() in {pool.tensor(size, side).data_ptr() for _ in range(2)}, "it is used again"


@pytest.mark.parametrize(
    ("target", "num_requests", "where"),
    [
        ("END_OF_Q", 4, "past the end of q"),
        ("END_OF_KV_CACHE", 4, "past the end of kv_cache"),
        ("END_OF_BLOCK_TABLE", 3, "past the end of block_table"),
        ("END_OF_SLOT_MAPPING", 4, "past the end of slot_mapping"),
        ("END_OF_LSE", 4, "past the end of lse"),
        ("START_OF_KV_CACHE", 3, "before the beginning of kv_cache"),
        pytest.param("END_OF_SEQ_LENS", 4, "past the end of seq_lens", marks=pytest.mark.nightly),
        pytest.param("END_OF_QUERY_START_LOC", 3, "past the end of query_start_loc", marks=pytest.mark.nightly),
        pytest.param("END_OF_ALIBI_SLOPES", 4, "past the end of alibi_slopes", marks=pytest.mark.nightly),
        pytest.param("END_OF_K", 4, "past the end of k", marks=pytest.mark.nightly),
        pytest.param("END_OF_OUT", 4, "past the end of out", marks=pytest.mark.nightly),
        pytest.param("START_OF_Q", 3, "before the beginning of q", marks=pytest.mark.nightly),
        pytest.param("START_OF_BLOCK_TABLE", 3, "before the beginning of block_table", marks=pytest.mark.nightly),
        pytest.param("START_OF_SEQ_LENS", 3, "before the beginning of seq_lens", marks=pytest.mark.nightly),
    ],
)
def test_a_read_of_one_element_beside_a_tensor_is_told_with_tensor_and_side(target, num_requests, where, tmp_path):
    case = decode(num_requests)
    with Executor(f"planted_fence:{target}", DEVICE, 120.0, tmp_path / "ahead.json", fenced=True) as executor:
        verdict = executor.run(case)
    assert (verdict.kind, verdict.about) == ("fence", where), verdict


def test_a_case_without_the_read_agrees_after_a_fault_and_so_does_every_case_without_a_fence(tmp_path):
    without_lse = msgspec.structs.replace(decode(4), lse=False)
    with Executor("planted_fence:END_OF_LSE", DEVICE, 120.0, tmp_path / "ahead.json", fenced=True) as executor:
        assert executor.run(decode(4)).kind == "fence"
        after = executor.run(without_lse)
        assert (after.kind, after.events) == ("agree", (FENCED,))
        executor.fenced = False
        plain = executor.run(decode(4))
        assert (plain.kind, plain.events) == ("agree", ())


def test_tensors_of_one_allocation_have_one_fence():
    case = msgspec.structs.replace(decode(4), fused_qkv=True)
    assert Fence("end", "q, k, v") in set(fence.each_alone(case))


def test_a_load_without_a_mask_is_found(attn_parity, tmp_path):
    """Ids of blocks behind the last key are read. The masks of the keys hide the effect."""
    source = (EXAMPLES / "my_unified_attention.py").read_text()
    planted = source.replace("mask=in_range, other=0).to(tl.int64)", "mask=key >= 0, other=0).to(tl.int64)")
    assert planted != source
    (tmp_path / "my_unified_attention.py").write_text(planted)
    (tmp_path / "my_target.py").write_text((EXAMPLES / "my_target.py").read_text())
    command = ("fuzz", "--target", "my_target:TARGET", "--device", DEVICE, "--workers", 1, "--corpus", "none", "--seed", 2)
    assert attn_parity(*command, "--examples", 20).code == 0
    run = attn_parity(*command, "--examples", 20, "--fence")
    assert run.code == 1, run
    if DEVICE == "cuda":
        assert "fence: it touches memory past the end of block_table" in run.out
    else:
        assert "sanitizer: with unmapped pages past the end of a tensor: load at my_unified_attention.py:" in run.out
    assert "--fence" in run.out.partition("again: ")[2], "what agreed without the fence agrees again"


@pytest.mark.nightly
def test_a_run_shrinks_a_read_and_its_replay_needs_the_fence(attn_parity, tmp_path):
    options = ("--target", "planted_fence:END_OF_KV_CACHE", "--device", DEVICE)
    run = attn_parity("fuzz", *options, "--fence", "--examples", 30, "--seed", 1, "--workers", 1, "--corpus", "none")
    assert run.code == 1, run
    assert "touches memory past the end of kv_cache: " in run.out
    [smallest] = tmp_path.glob("attn-parity-runs/end-of-kv_cache-1.json")
    assert not case_file.load(smallest).requests, "the read depends on nothing else"
    assert f"again: attn-parity replay attn-parity-runs/{smallest.name} --target" in run.out
    assert "--fence" in run.out.partition("again: ")[2]
    assert attn_parity("replay", smallest, *options).code == 0
    again = attn_parity("replay", smallest, *options, "--fence")
    assert (again.code, ": fence, " in again.out) == (1, True), again


class Driver:
    """Stands in for the library of a GPU's driver: it reserves addresses from 1 GiB on, and notes what is mapped."""

    def __init__(self, prefix: str, code: int = 0) -> None:
        self.mapped: list[tuple[int, int]] = []
        for name in ("MemGetAllocationGranularity", "MemAddressReserve", "MemCreate", "MemMap", "MemSetAccess"):
            setattr(self, f"{prefix}{name}", lambda *given, name=name: getattr(self, name, lambda *given: code)(*given))

    def MemGetAllocationGranularity(self, size, properties, option) -> int:  # noqa: N802 - the driver's name
        assert (properties._obj.type, properties._obj.location.type, option) == (1, 1, 0)
        size._obj.value = 2 << 20
        return 0

    def MemAddressReserve(self, address, size, alignment, at, flags) -> int:  # noqa: N802
        address._obj.value, self.reserved = 1 << 30, size.value
        return 0

    def MemMap(self, address, size, offset, handle, flags) -> int:  # noqa: N802
        self.mapped.append((address.value, size.value))
        return 0


@pytest.fixture
def driver(monkeypatch):
    def use(prefix: str, code: int = 0) -> Driver:
        made = Driver(prefix, code)
        monkeypatch.setattr(torch.version, "hip", "7.0" if prefix == "hip" else None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr("ctypes.CDLL", lambda name: made)
        return made

    return use


@pytest.mark.parametrize("prefix", ["cu", "hip"])
def test_a_gpu_maps_memory_in_the_middle_of_what_is_reserved(prefix, driver):
    library = driver(prefix)
    made = unmapped.DevicePages()
    address = made.mapped(4 << 20)
    assert library.mapped == [(address, 4 << 20)]
    assert address - (1 << 30) >= unmapped.UNMAPPED
    assert (1 << 30) + library.reserved - (address + (4 << 20)) >= unmapped.UNMAPPED


@pytest.mark.parametrize(("code", "error"), [(2, torch.OutOfMemoryError), (801, unmapped.NoPagesError)])
def test_an_allocation_that_a_driver_refuses_is_named(code, error, driver):
    driver("cu", code)
    with pytest.raises(error, match="cuMemCreate"):
        unmapped.DevicePages().mapped(2 << 20)


def test_a_driver_without_these_functions_is_named(driver):
    driver("another")
    with pytest.raises(unmapped.NoPagesError, match="the driver has no cuMemGetAllocationGranularity"):
        unmapped.DevicePages()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("reference-fp32", "mprotect refuses to protect 8388608 bytes"),
        ("triton@gfx942", "the kernels of triton@gfx942 are emulated, where every address is checked"),
    ],
)
def test_where_there_are_no_unmapped_pages_nothing_runs(target, message, attn_parity, monkeypatch):
    monkeypatch.setattr(unmapped, "pool", unmapped.pool.__wrapped__)
    monkeypatch.setattr(unmapped.HostPages, "__init__", _refused)
    run = attn_parity("fuzz", "--fence", "--target", target, "--device", "cpu")
    assert (run.code, run.out) == (2, ""), run
    assert f"--fence: {message}" in run.err


def _refused(self: unmapped.HostPages) -> None:
    self._maps = []
    self._protect = lambda *given: -1  # pyright: ignore[reportAttributeAccessIssue]

"""Whatever a kernel has no business with is poison or canary, and a case means the same tensors every time."""

import dataclasses

import msgspec
import torch
from attn_contract import same_elements, same_footprint
from attn_fuzz import tensors
from attn_fuzz.case import Case, written_slots
from attn_fuzz.strategies import cases
from attn_fuzz.targets import Support
from attn_fuzz.tensors import CANARY, GUARD, POISON, Step, bits
from hypothesis import given, settings

SMALL = Support(head_sizes=(16, 32), max_tokens=32, max_seq_len=64)
each_case = given(cases("anything", SMALL))
few = settings(max_examples=100, deadline=None, database=None)


def is_poison(tensor: torch.Tensor) -> torch.Tensor:
    return bits(tensor) == bits(tensors.poison((1,), tensor.dtype, "cpu"))


def all_tensors(step: Step) -> dict[str, torch.Tensor]:
    written = {
        f"writes[{i}].{name}": getattr(w, name) for i, w in enumerate(step.writes) for name in ("k", "v", "slot_mapping")
    }
    return {**step.inputs(), **written, "out_buffer": step.out_buffer, "lse_buffer": step.lse_buffer}


def slots_of_keys(case: Case) -> set[int]:
    assert case.cache is not None
    size = case.cache.block_size
    return {r.blocks[j // size] * size + j % size for r in case.requests for j in range(r.seq_len)}


def test_canary_and_poison_are_different_nans():
    for dtype in POISON:
        assert POISON[dtype] != CANARY[dtype]
        for filled in (tensors.poison((2,), dtype, "cpu"), tensors.canary((2,), dtype, "cpu")):
            assert filled.isnan().all()
        assert not is_poison(tensors.canary((2,), dtype, "cpu")).any()


@few
@each_case
def test_a_case_always_means_the_same_tensors(case):
    once, again = tensors.build(case), tensors.build(msgspec.structs.replace(case, target="another"))
    for (name, a), b in zip(all_tensors(once).items(), all_tensors(again).values(), strict=True):
        assert torch.equal(bits(a), bits(b)), name


@few
@each_case
def test_rows_that_no_request_owns_are_poison(case):
    step = tensors.build(case)
    owned = case.query_start_loc[-1]
    assert step.q.isfinite()[:owned].all()
    assert is_poison(step.q[owned:]).all()
    for rows in (step.k, step.v):
        if rows is None:
            continue
        used = owned if case.cache is None else len(written_slots(case))
        assert len(rows) == (case.num_rows if case.cache is None else used) + case.kv_rows_past
        assert is_poison(rows[used:]).all()


@few
@each_case
def test_only_keys_that_a_query_may_read_are_in_the_cache(case):
    """Before the write: neither this step's slots, nor unused ones, nor padding, nor what lies around the cache."""
    step = tensors.build(case)
    if step.raw is None:
        return
    before = slots_of_keys(case) - set(written_slots(case))
    held = torch.zeros(len(step.raw), dtype=torch.bool)
    if before:
        slot = torch.tensor(sorted(before)).view(-1, 1, 1)
        head, dim = torch.arange(case.num_kv_heads).view(-1, 1), torch.arange(case.head_size)
        for kv in (0, 1):
            held[step.view.element(kv, slot // step.view.block_size, slot % step.view.block_size, head, dim)] = True
    assert is_poison(step.raw)[~held].all()
    assert step.raw[held].isfinite().all() or case.recycled
    assert step.view.offset > 0
    assert len(step.raw) > step.view.end


@few
@each_case
def test_what_is_written_is_finite_where_it_is_read(case):
    step = tensors.build(case)
    for i, write in enumerate(step.writes):
        kept = write.slot_mapping >= 0
        rows = write.k[: len(kept)], write.v[: len(kept)]
        assert all(x[kept].isfinite().all() for x in rows)
        assert all(x[~kept].isnan().all() for x in rows)
        if i == 1 or not written_slots(case):
            assert not set(write.slot_mapping.tolist()) & slots_of_keys(case)


@few
@each_case
def test_outputs_start_as_canaries_and_are_inside_their_buffers(case):
    step = tensors.build(case)
    for buffer in (step.out_buffer, step.lse_buffer):
        assert (bits(buffer) == bits(tensors.canary((1,), buffer.dtype, "cpu"))).all()
    step.out.fill_(0)
    width = case.num_heads * case.head_size
    assert int((step.out_buffer == 0).sum()) == case.num_rows * width
    assert step.out_buffer[:GUARD].isnan().all()
    assert step.out_buffer[GUARD + case.num_rows :].isnan().all()
    assert step.out_buffer[:, width:].isnan().all()


@few
@each_case
def test_unused_entries_of_the_block_table_are_garbage(case):
    step = tensors.build(case)
    if case.cache is None:
        return
    table = step.batch.block_table
    for r, request in enumerate(case.requests):
        assert table[r, : len(request.blocks)].tolist() == list(request.blocks)
        assert set(table[r, len(request.blocks) :].tolist()) <= {-1, 2**31 - 1, case.cache.num_blocks, 0}


@few
@each_case
def test_views_of_one_allocation_are_related_as_the_contract_asks(case):
    if case.cache is None:
        return
    view = tensors.cache_view(case, case.cache)
    step = tensors.build(case)
    if case.cache.neighbour is not None:
        assert same_footprint(view, tensors.cache_view(case, case.cache, case.cache.neighbour))
    if written_slots(case):
        writer = step.writes[0].view
        assert writer.layout == (case.cache.writer or case.cache.layout)
        assert same_elements(view, writer)
        assert same_elements(view, dataclasses.replace(view, layout=writer.layout))

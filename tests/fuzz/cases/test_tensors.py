"""Whatever a kernel has no business with is poison or canary, and a case means the same tensors every time."""

import dataclasses

import attn_reference
import msgspec
import pytest
import torch
from attn_contract import AttentionType, KVCacheView, Layout, PhysicalOrder, same_elements, same_footprint
from attn_fuzz.cases import allocations, contents, tensors
from attn_fuzz.cases.case import CHOICES, Cache, Case, Request, Rope, Values, written_slots
from attn_fuzz.cases.contradictions import ROWS, X_PACKED, neighbours, writers
from attn_fuzz.cases.idle_strides import IDLE_STRIDES
from attn_fuzz.cases.poison import CANARY, POISON, bits, canary, poison
from attn_fuzz.cases.tensors import GUARD, Step
from attn_fuzz.strategies import cases
from attn_fuzz.targets.support import EVERYTHING
from hypothesis import given, settings

replace = msgspec.structs.replace
SMALL = dataclasses.replace(EVERYTHING, head_sizes=(16, 32), block_sizes=(16, 1, 4, 48), max_tokens=32, max_seq_len=64)
each_case = given(cases("anything", SMALL))
few = settings(max_examples=25, deadline=None, database=None)


def is_poison(tensor: torch.Tensor) -> torch.Tensor:
    return bits(tensor) == bits(poison((1,), tensor.dtype, "cpu"))


def logits_of(case: Case) -> torch.Tensor:
    """[rows, slots], where there is one head."""
    generator = torch.Generator().manual_seed(case.values.seed)
    queries, direction = contents.queries(case, generator)
    keys, _ = contents.keys_and_values(case, direction, generator)
    return case.scale * torch.einsum("qhd,khd->qk", queries, keys)


@pytest.mark.parametrize("scale", [0.1, 1.0, -0.25])
@pytest.mark.parametrize("head_size", [16, 128])
class TestFarLogits:
    def test_extreme_ones_lie_beyond_100_on_both_sides(self, head_size, scale, step_case):
        """Whatever the head size and scale; under a cap of 1 they are more than 100 times the cap."""
        logits = logits_of(replace(step_case, head_size=head_size, scale=scale, values=Values("extreme")))
        assert logits.max() > 100
        assert logits.min() < -100

    def test_those_below_have_no_weight_beside_a_logit_of_0_and_are_not_alike(self, head_size, scale, step_case):
        logits = logits_of(replace(step_case, head_size=head_size, scale=scale, values=Values("below")))
        assert (logits.exp() == 0).all()
        assert logits.softmax(1).max() < 0.99999
        assert (logits.std(0) > 0.5).all()
        assert (logits.std(1) > 0.5).all()


def seed_of(what: str, count: int, form: int) -> int:
    """A seed with which something has one of its forms."""
    return next(seed for seed in range(CHOICES) if Values(seed=seed).choice(what, count) == form)


def ends_of_storages_are_drawn(case: Case) -> bool:
    return case.values.choice("storage", 6) == 5


def all_tensors(step: Step) -> dict[str, torch.Tensor]:
    return {**step.inputs(), "out_buffer": step.out_buffer, "lse_buffer": step.lse_buffer}


def slots_of_keys(case: Case) -> set[int]:
    assert case.cache is not None
    size = case.cache.block_size
    return {r.blocks[j // size] * size + j % size for r in case.requests for j in range(r.seq_len // (case.key_unit or 1))}


def test_poison_and_canary_are_nan_and_differ_where_a_dtype_has_room():
    for dtype in CANARY:
        for filled in (poison((2,), dtype, "cpu"), canary((2,), dtype, "cpu")):
            assert filled.isnan().all()
        assert (POISON[dtype] == CANARY[dtype]) == (dtype.itemsize == 1)


def test_no_write_makes_the_poison_of_a_quantized_cache():
    """But e4m3fnuz has one NaN only."""
    numbers = torch.cat([torch.linspace(-1e4, 1e4, 10_001), torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])])
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8):
        stored = attn_reference.quantize(numbers, torch.ones(1), dtype)
        assert is_poison(stored).sum() == (dtype == torch.float8_e4m3fnuz)


@few
@each_case
def test_a_case_always_means_the_same_tensors(case):
    once, again = tensors.build(case), tensors.build(replace(case, target="another"))
    for (name, a), b in zip(all_tensors(once).items(), all_tensors(again).values(), strict=True):
        assert torch.equal(bits(a), bits(b)), name


@few
@each_case
def test_rows_that_no_request_owns_are_poison(case):
    step = tensors.build(case)
    owned = case.query_start_loc[-1]
    assert step.q.float().isfinite()[:owned].all()
    unowned = step.q[owned:]
    # a rotation of NaN would be NaN, whoever rotates
    assert unowned.isfinite().all() if case.rope else is_poison(unowned).all()
    for rows in (step.k, step.v):
        if rows is None:
            continue
        used = owned if case.cache is None else len(written_slots(case))
        assert len(rows) == (case.num_rows if case.cache is None else used) + case.kv_rows_past
        assert is_poison(rows[used:]).all()


def seen_slots(case: Case) -> set[int]:
    """Slots of keys that some query sees: position by position, from the specification's formula."""
    slots = set()
    left, right = case.window
    batch = tensors.build(case).batch
    ancestors, unit = batch.qq_bias, case.selection_unit
    for r, request in enumerate(case.requests):
        for i in range(request.query_len):
            units = set() if unit is None else set(batch.selected[:, case.query_start_loc[r] + i].flatten().tolist())
            p = request.context_len + i
            for c in range(request.seq_len // (case.key_unit or 1)):
                j = c if case.key_unit is None else (c + 1) * case.key_unit - 1
                window = (left < 0 or p - j <= left) and (right < 0 or j - p <= right)
                chunk = case.chunked_local is None or p // case.chunked_local == j // case.chunked_local
                base = (not request.causal or j <= p) and (window or j < case.sink_tokens) and chunk
                clamped = case.ranges_clamped and 0 <= left < p - j
                together = any(a <= p <= b and a <= j <= b for a, b in request.bidirectional_ranges) and not clamped
                key = j - request.context_len
                hidden = ancestors is not None and key >= 0 and ancestors[i, key] == -torch.inf
                if (base or together) and not hidden and (unit is None or c // unit in units):
                    size = case.cache.block_size
                    slots.add(request.blocks[c // size] * size + c % size)
    return slots


@few
@each_case
def test_only_keys_that_a_query_may_read_are_in_the_cache(case):
    """Before the write: neither this step's slots, nor unused ones, nor holes in what is visible, nor padding, nor what lies
    around the cache."""
    step = tensors.build(case)
    if step.raw is None:
        return
    before = (seen_slots(case) if case.recycled else slots_of_keys(case)) - set(written_slots(case))
    view = step.view
    held = torch.zeros(len(step.raw), dtype=torch.bool)
    scales = {name: torch.zeros(buffer.shape, dtype=torch.bool) for name, buffer in step.scale_buffers.items()}
    if before:
        slot = torch.tensor(sorted(before)).view(-1, 1, 1)
        head, dim = torch.arange(case.num_kv_heads).view(-1, 1), torch.arange(view.row_size)
        for kv in (0, 1):
            held[view.element(kv, slot // view.block_size, slot % view.block_size, head, dim)] = True
        for buffer in scales.values():
            allocations.inside(buffer)[slot.flatten() // view.block_size, slot.flatten() % view.block_size] = True
    if not case.cache.layout.has_inline_scales:
        assert is_poison(step.raw)[~held].all()
        assert step.raw[held].float().isfinite().all()
    for name, buffer in step.scale_buffers.items():
        assert is_poison(buffer)[~scales[name]].all()
        assert buffer[scales[name]].isfinite().all()
    assert view.offset > 0
    assert len(step.raw) > view.end or ends_of_storages_are_drawn(case)


@few
@each_case
def test_finite_slots_hold_numbers_wherever_there_was_poison_in_the_cache(case):
    if case.cache is None:
        return
    poisoned, finite = tensors.build(case), tensors.build(replace(case, finite_slots=True))
    for name, tensor in poisoned.memory.items():
        if name == "kv_cache" and case.cache.layout.has_inline_scales:
            # a byte of a scale may be a NaN of the rows' type
            rows = finite.view.tensor(finite.raw).unflatten(-1, (2, -1)).contiguous()
            assert rows[..., : case.head_size].float().isfinite().all()
            assert rows.view(torch.uint8)[..., case.head_size :].contiguous().view(torch.float32).isfinite().all()
            continue
        unused = is_poison(tensor)
        assert finite.memory[name].float().isfinite().all()
        numbers = finite.memory[name].float()[unused]
        if name == "kv_cache":
            assert (numbers > 0).any() == (numbers < 0).any() == bool(len(numbers))
        else:  # scales of stale slots are unlike each other, so that the right slot's can be told from them
            assert numbers.all()
            assert len(numbers.unique()) > 1 or len(numbers) < 2
        assert torch.equal(bits(finite.memory[name])[~unused], bits(tensor)[~unused])


@few
@each_case
def test_whoever_reads_an_unwritten_row_reads_nan(case):
    """Dequantized: a byte of int8 is no NaN, but its scale is."""
    step = tensors.build(case)
    if case.cache is None:
        return
    written = slots_of_keys(case) if not case.recycled else seen_slots(case)
    unwritten = sorted(set(range(step.view.num_slots)) - (written - set(written_slots(case))))
    every_block = torch.arange(step.view.num_blocks, dtype=torch.int32)
    kv = attn_reference.gather_kv_cache(step.kv_cache, step.layer, every_block, step.view.num_slots, torch.float64)
    assert all(x[unwritten].isnan().all() for x in kv)


@few
@each_case
def test_written_rows_are_finite_where_they_are_read(case):
    """A neighbour's rows, which nobody reads in this step, hold what a write may stumble over."""
    step = tensors.build(case)
    for i, write in enumerate(step.writes):
        if i == 1 or not written_slots(case):
            assert not set(write.slot_mapping.tolist()) & slots_of_keys(case)
            continue
        kept = write.slot_mapping >= 0
        rows = write.k[: len(kept)], write.v[: len(kept)]
        assert not any(x[kept].isnan().any() for x in rows)
        assert all(x[kept].isfinite().all() for x in rows) or case.saturated
        assert all(x[~kept].isnan().all() for x in rows)


def test_a_neighbour_writes_every_kind_of_number(step_case):
    cache = replace(step_case.cache, neighbour=Layout.KV_FIRST_NHD, num_blocks=40)
    seen = torch.cat(
        [
            tensors.build(replace(step_case, cache=cache, values=Values("random", seed))).writes[1].k.flatten()
            for seed in range(100)
        ]
    )
    assert is_poison(seen).any()
    assert {torch.inf, -torch.inf, torch.finfo(torch.float32).max} <= set(seen.tolist())
    assert ((seen == 0) & seen.signbit()).any()
    assert ((seen != 0) & (seen.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e4m3fnuz", "int8"])
def test_among_them_quotients_that_are_ties(dtype, step_case):
    cache = replace(step_case.cache, neighbour=Layout.KV_FIRST_NHD, num_blocks=40, dtype=dtype, scales="token")
    write = tensors.build(replace(step_case, cache=cache, values=Values("random", 1))).writes[1]
    rows = write.k[write.k.isfinite().all(-1).all(-1)]
    quotients = rows / attn_reference.row_scales(rows, write.layer.kv_cache_dtype)
    if dtype == "int8":
        is_tie = quotients % 1 == 0.5
    else:
        mantissa = quotients.abs().frexp().mantissa * 32
        is_tie = (mantissa % 2 == 1) & (mantissa > 16)
    assert is_tie.float().mean() > 0.05


@few
@each_case
def test_outputs_start_as_canaries_and_are_inside_their_buffers(case):
    step = tensors.build(case)
    for buffer in (step.out_buffer, step.lse_buffer):
        assert (bits(buffer) == bits(canary((1,), buffer.dtype, "cpu"))).all()
    step.out.fill_(0)
    width = case.num_heads * case.head_size
    last = width if step.out.dim() == 2 or case.num_heads == 1 else step.out.stride(1) * (case.num_heads - 1) + case.head_size
    assert int((step.out_buffer.float() == 0).sum()) == case.num_rows * width
    assert step.out_buffer[:GUARD].isnan().all()
    assert step.out_buffer[GUARD + case.num_rows :].isnan().all()
    assert step.out_buffer[:, last:].isnan().all()


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
def test_the_range_and_the_bias_past_a_request_s_own_would_be_noticed(case):
    batch = tensors.build(case).batch
    if batch.bidirectional_ranges is not None:
        for r, request in enumerate(case.requests):
            first, last = batch.bidirectional_ranges[r].T
            own = len(request.bidirectional_ranges)
            assert list(zip(first[:own].tolist(), last[:own].tolist(), strict=True)) == list(request.bidirectional_ranges)
            assert (last[own:] < first[own:]).all()
    if batch.qq_bias is not None:
        longest = case.max_query_len - case.slack
        assert (batch.qq_bias[longest:] == tensors.contents.STRAY_BIAS).all()
        assert (batch.qq_bias[:, longest:] == tensors.contents.STRAY_BIAS).all()
        if case.qq_bias != "hiding":
            assert (batch.qq_bias.diagonal()[:longest] > -torch.inf).all(), "a token sees itself"


@few
@each_case
def test_fixed_scales_of_k_and_v_and_of_heads_differ(case):
    """Either may have one scale for all heads."""
    layer = tensors.build(case).layer
    if layer.k_scale is not None and layer.v_scale is not None:
        k_scale, v_scale = layer.k_scale.flatten(), layer.v_scale.flatten()
        assert [len(k_scale.unique()), len(v_scale.unique())] == [len(k_scale), len(v_scale)]
        assert (k_scale != v_scale).all()
        if case.values.kind == "exact":
            assert (torch.cat([k_scale, v_scale]).frexp().mantissa == 0.5).all()


def test_positions_of_a_rotation_are_rows_of_its_table_and_poison_lies_past_it(step_case):
    case = replace(step_case, rope=Rope(rotary_dim=4, all_rows=True), unowned_rows=1, rows_past=2)
    step = tensors.build(case)
    rotation = step.writes[0].rotation
    assert len(rotation.positions) == case.num_rows > len(step.writes[0].slot_mapping)
    assert rotation.positions.max() == len(rotation.cos_sin_cache) - 1
    table = rotation.cos_sin_cache
    for row in (-1, len(table)):
        assert is_poison(table.as_strided((1, 4), (1, 1), table.storage_offset() + row * table.stride(0))).all()


@few
@each_case
def test_every_tensor_lies_inside_a_larger_one(case):
    """Storages of inputs end past them with some seeds. Those of outputs never do."""
    step = tensors.build(case)
    inputs = {} if ends_of_storages_are_drawn(case) else step.inputs()
    for name, tensor in {**inputs, "out": step.out, "lse": step.lse}.items():
        if tensor is None or name in step.memory:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        assert tensor.numel() == 0 or 0 < tensor.storage_offset() <= elements - last - 2, name


def a_case(layout: Layout, dtype: str | None = None, **fields) -> Case:
    scales = "token" if dtype and not layout.has_inline_scales else None
    return Case(
        target="t",
        dtype="float32",
        num_kv_heads=3,
        head_size=16,
        requests=(Request(query_len=3, seq_len=20, blocks=(2, 0)),),
        cache=Cache(layout=layout, block_size=16, num_blocks=4, dtype=dtype, scales=scales, **fields),
    )


PACKED = ((Layout.CONTENT_PACKED, None), (Layout.CONTENT_PACKED, "int8"), (Layout.CONTENT_PACKED_SCALED, "int8"))
ALLOCATIONS = [
    *[
        {"layout": layout, "dtype": dtype, "planes": planes}
        for layout in ROWS + X_PACKED
        for dtype in (None, "int8")
        for planes in (False, True)
    ],
    *[
        {"layout": layout, "dtype": dtype, "order": order, "num_layers": 3, "layer": 2}
        for layout, dtype in PACKED
        for order in PhysicalOrder
    ],
]


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("fields", ALLOCATIONS, ids=lambda fields: " ".join(map(str, fields.values())))
def test_every_layout_has_writers_and_neighbours_that_are_related_as_the_contract_asks(fields, padding):
    layout = fields["layout"]
    case = a_case(padding=padding, **fields)
    view = allocations.cache_view(case, case.cache)
    assert layout in writers(case, case.cache)
    assert layout in neighbours(case, case.cache)
    for other in writers(case, case.cache):
        if "content" in other.dims and not case.cache.holds_content_rows:
            continue  # with that writer it is another allocation: the next test's
        assert same_elements(view, allocations.writer_view(case, replace(case.cache, writer=other)))
    for other in neighbours(case, case.cache):
        assert same_footprint(view, allocations.neighbour_view(case, case.cache, other)), other
    step = tensors.build(case)
    read_back = KVCacheView.of(step.kv_cache, layout, num_kv_heads=3, head_size=16)
    assert read_back == view


@pytest.mark.parametrize("layout", ROWS)
def test_rows_of_k_and_v_side_by_side_are_one_memory_in_every_layout_of_rows(layout):
    cache = a_case(layout).cache
    case = replace(a_case(layout), cache=replace(cache, writer=Layout.CONTENT_PACKED, order=PhysicalOrder.BHLNC, num_layers=2))
    step = tensors.build(case)
    assert step.writes[0].view.layout is Layout.CONTENT_PACKED
    assert same_elements(step.view, step.writes[0].view)


@pytest.mark.parametrize("order", PhysicalOrder)
@pytest.mark.parametrize("layout", [Layout.CONTENT_PACKED, Layout.CONTENT_PACKED_SCALED])
def test_without_padding_content_packed_strides_are_the_contract_s(layout, order):
    dtype = "int8" if layout.has_inline_scales else None
    case = a_case(layout, dtype, order=order, num_layers=3, layer=1)
    view = allocations.cache_view(case, case.cache)
    contract = KVCacheView.content_packed(
        layout,
        order,
        num_layers=3,
        layer=1,
        num_blocks=4,
        block_size=16,
        num_kv_heads=3,
        head_size=16,
        itemsize=1 if dtype else 4,
    )
    guard = allocations.cache_view(case, replace(case.cache, layer=0)).offset
    assert dataclasses.replace(contract, offset=contract.offset + guard) == view


@pytest.mark.parametrize(("kind", "sign"), [("above", 1), ("below", -1)])
@pytest.mark.parametrize(
    ("dtype", "narrow", "largest"), [("float32", False, 2.0**126), ("bfloat16", True, 2.0**126), ("float16", True, 2.0**15)]
)
def test_far_sinks_go_up_to_the_largest_logit_whatever_head_there_is(kind, sign, dtype, narrow, largest, step_case):
    case = replace(step_case, sinks=kind, dtype=dtype, narrow_sinks=narrow)
    drawn = set()
    for seed in range(3):
        seeded = replace(case, values=replace(case.values, seed=seed))
        drawn.add(float(tensors.build(seeded).layer.sinks[0]))
    assert drawn == {sign * 20.0, sign * 300.0, sign * largest}


def test_a_dimension_of_one_element_has_a_stride_that_nobody_would_give_it():
    case = Case(
        target="anything",
        requests=(Request(1, 1, (0,), True),),
        cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=1, num_blocks=1, dtype="int8", scales="token"),
        rope=Rope(rotary_dim=8),
        lse=True,
        unlike_strides=True,
    )
    of_one = {"q", "k", "v", "out", "lse", "kv_cache", "block_table", "k_scale_cache", "slot_mapping", "positions"}
    for seed, stride in enumerate(IDLE_STRIDES):
        step = tensors.build(replace(case, values=Values(seed=seed)))
        inputs = {**step.inputs(), **step.layer.tensors, "kv_cache": step.kv_cache, "out": step.out, "lse": step.lse}
        inputs |= {"positions": step.writes[0].rotation.positions}
        alone = {
            name: {step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size == 1}
            for name, tensor in inputs.items()
            if 1 in tensor.shape
        }
        assert alone.keys() >= of_one
        assert all(strides == {stride} for strides in alone.values()), alone


def extent(tensor: torch.Tensor) -> int:
    """One past the last byte of a tensor in its storage."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.storage_offset() + last + 1) * tensor.itemsize


@few
@each_case
def test_storages_of_inputs_end_past_their_last_element_with_some_seeds_and_hold_the_same(case):
    plain, ended = (replace(case, values=Values(seed=seed_of("storage", 6, form))) for form in (0, 5))
    step = tensors.build(ended)
    end_of: dict[int, int] = {}
    for tensor in step.inputs().values():
        key = tensor.untyped_storage().data_ptr()
        end_of[key] = max(end_of.get(key, 0), extent(tensor) if tensor.numel() else 0)
    for tensor in step.inputs().values():
        assert tensor.untyped_storage().nbytes() == end_of[tensor.untyped_storage().data_ptr()]
    if step.view is not None:
        views = [step.view, *(write.view for write in step.writes), *allocations.layer_views(case, case.cache)]
        assert len(step.raw) == max(view.end for view in views)
    assert tensors.build(plain).q.untyped_storage().nbytes() > extent(tensors.build(plain).q)


@pytest.mark.parametrize("writes", [True, False])
def test_heads_of_a_width_that_no_vector_divides_lie_in_rows_that_it_does(writes, step_case):
    case = replace(step_case, head_size=20, group_size=2, dtype="float16", unlike_strides=True)
    if not writes:
        case = replace(case, attn_type=AttentionType.ENCODER_ONLY, cache=None, requests=(Request(query_len=3, seq_len=3),))
    step = tensors.build(replace(case, values=Values(seed=seed_of("wide heads", 3, 1))))
    for tensor in (step.q, step.k, step.v, step.out):
        assert tensor.shape[-1] == 20
        assert all(stride % 16 == 0 for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1)
    assert step.v.stride(0) != step.k.stride(0)
    between = torch.ones_like(step.out_buffer, dtype=torch.bool)
    between.as_strided(step.out.shape, step.out.stride(), step.out.storage_offset())[...] = False
    assert (bits(step.out_buffer) == bits(canary((1,), torch.float16, "cpu")))[between].all()
    plain = tensors.build(case)
    assert (plain.q.is_contiguous(), plain.out.stride(1)) == (True, 20)


def test_blocks_of_dims_of_queries_are_unlike_in_half_of_the_rows_of_q(step_case):
    """Half of the dims are small: every other one, or every other block, of either parity."""
    case = replace(step_case, head_size=16, group_size=64, values=Values("random", seed_of("magnitudes of q", 4, 1)))
    queries, _ = contents.queries(case, torch.Generator().manual_seed(0))
    plain, _ = contents.queries(replace(case, values=Values("random")), torch.Generator().manual_seed(0))
    assert ((queries == plain) | (queries == plain * 2.0**-8)).all()
    small = [tuple(row) for row in (queries != plain).flatten(0, 1).tolist()]
    expected = {tuple((dim >> bit & 1) == odd for dim in range(16)) for bit in range(4) for odd in (0, 1)}
    assert {*small} == {(False,) * 16, *expected}
    assert 0.3 < small.count((False,) * 16) / len(small) < 0.7


@pytest.mark.parametrize("layout", ["LATENT_E8M0", "LATENT_E8M0_PLANES"])
@pytest.mark.parametrize(("form", "byte"), [(2, 0), (3, 254), (0, None)])
def test_scale_bytes_are_at_the_ends_of_their_range_with_some_seeds(layout, form, byte, step_case):
    """In one group of the slots before the step, whose own rows hold zeros there."""
    width, kept = (128, 64) if layout.endswith("PLANES") else (64, 0)
    cache = Cache(layout=Layout[layout], block_size=4, num_blocks=4, dtype="fp8_e4m3fn")
    case = replace(step_case, dtype="bfloat16", head_size=width + kept, head_size_v=width + kept, cache=cache)
    case = replace(case, values=Values(kind="random", seed=seed_of("scale bytes", 4, form)))
    step = tensors.build(case)
    attn_reference.write_latent_cache(*step.writes[0].latent_parts, step.kv_cache, step.layer, step.writes[0].slot_mapping)
    table, number = step.batch.block_table[0], torch.float64
    keys, _ = attn_reference.gather_kv_cache(step.kv_cache, step.layer, table, 7, number)
    group = case.values.choice("group with such a byte", width // case.latent_format.scale_dims)
    dims = slice(group * case.latent_format.scale_dims, (group + 1) * case.latent_format.scale_dims)
    largest = keys[:5, 0, dims].abs().max()
    if byte is None:
        assert largest > 1
    else:
        assert (0 < largest <= 448 * 2.0**-127) if byte == 0 else largest == 0
        assert not keys[5:, 0, dims].any()
    others = torch.ones(width, dtype=torch.bool)
    others[dims] = False
    assert (keys[:, 0, :width][:, others].abs().amax(1) > 0.5).all()

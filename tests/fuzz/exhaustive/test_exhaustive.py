"""Exhaustive runs: what is enumerated, that symmetric calls are alike, and that launches are judged as single calls are."""

import dataclasses
import itertools
import math
from collections import Counter

import msgspec
import planted_small
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import properties
from attn_fuzz.cases.case import Case, Request, written_slots
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.dimensions import Setting
from attn_fuzz.exhaustive import calls, judging, packing, run, scope, symmetry
from attn_fuzz.exhaustive.calls import LeftOut
from attn_fuzz.exhaustive.scope import FEW, SCOPES, Scope, ScopeChoice, ScopePart
from attn_fuzz.run.case.attempt import Attempt, call_attention
from attn_fuzz.targets import registry
from attn_fuzz.targets.triton import MODE_OF_FORMAT
from attn_fuzz.verdict.judge import judge

WINDOW = ScopeChoice("window", tuple(Setting({"window": (edge, -1)}, {}) for edge in (0, 1)))
SINKS = ScopeChoice("sinks", (Setting({"sinks": "near"}, {}),))
PAIR = ScopePart(
    what="two requests",
    num_requests=2,
    query_lens=(0, 1, 2),
    seq_lens=(0, 1, 3),
    block_sizes=(2,),
    choices=(ScopeChoice("causality", (Setting({}, {}, causality="per request"),)),),
)
ALONE = ScopePart(
    what="one request",
    num_requests=1,
    query_lens=(0, 1, 2, 3),
    seq_lens=(0, 1, 2, 3, 4, 5),
    block_sizes=(1, 2),
    choices=(WINDOW, SINKS, FEW["causality"]),
    pairs=True,
    packed=True,
)
TINY = Scope(name="tiny", what="for tests", parts=(ALONE, PAIR))


def enumerated(part: ScopePart, target=planted_small.RIGHT) -> list[calls.Group]:
    return list(calls.groups(part, calls.base("x", target, "cpu"), target, "cpu", LeftOut()))


def launches_of(of: Scope, target=planted_small.RIGHT, name: str = "planted_small:RIGHT") -> list[packing.PackedLaunch]:
    return [launch for _, launch in run.numbered(of, name, target, "cpu", [])]


def brute_force(part: ScopePart, flags: tuple[bool, ...], block_size: int, num_blocks: int) -> int:
    """The number of calls of two requests with labelled blocks, counted over all tables without a symmetry."""
    one = list(itertools.product(part.query_lens, part.seq_lens, flags))
    total = 0
    for (q_a, s_a, _), (q_b, s_b, _) in itertools.product(one, one):
        used = [math.ceil(s / block_size) for s in (s_a, s_b)]
        rows = [[row for row in itertools.product(range(num_blocks), repeat=n) if len(set(row)) == n] for n in used]
        for row_a, row_b in itertools.product(*rows):
            written = [
                row[position // block_size] * block_size + position % block_size
                for row, q, s in ((row_a, q_a, s_a), (row_b, q_b, s_b))
                for position in range(max(s - q, 0), s)
            ]
            total += len(set(written)) == len(written)
    return total


def orbit_size(batch: symmetry.Requests, num_blocks: int) -> int:
    """The number of batches in the orbit of a batch, in a cache of this number of blocks."""
    orders = itertools.permutations(batch) if all(r.query_len and r.seq_len for r in batch) else [batch]
    distinct = {symmetry.renamed(order) for order in orders}
    return len(distinct) * math.perm(num_blocks, len({block for request in batch for block in request.blocks}))


@pytest.mark.parametrize("num_blocks", [4, 5])
def test_orbits_cover_all_calls_of_two_requests(num_blocks):
    causal, per_request = enumerated(PAIR)
    for group, flags in ((causal, (True,)), (per_request, (True, False))):
        sizes = sum(orbit_size(batch, num_blocks) for batch in group.batches)
        assert sizes == brute_force(PAIR, flags, 2, num_blocks)
        assert len(group.batches) < sizes / 10


def test_a_representative_is_its_own_and_no_two_are_of_one_orbit():
    batches = [batch for group in enumerated(PAIR) for batch in group.batches]
    assert all(symmetry.canonical(batch) == batch for batch in batches)
    assert max(Counter((batch, len(batch)) for batch in batches).values()) <= 2  # at most one in each of the two layers


def test_layers_are_all_pairs_of_settings():
    alone = [choice.settings for choice in ALONE.choices]
    pairs = sum(len(one) * len(other) for one, other in itertools.combinations(alone, 2))
    found = [(setting.fields, setting.causality) for setting in calls.layers(ALONE)]
    assert len(found) == 1 + sum(map(len, alone)) + pairs
    assert all(found.count(each) == 1 for each in found)
    assert ({"window": (0, -1), "sinks": "near"}, None) in found
    assert ({"window": (1, -1)}, "per request") in found


def test_settings_of_one_field_do_not_meet():
    part = dataclasses.replace(ALONE, choices=(WINDOW, ScopeChoice("other", (Setting({"window": (2, -1)}, {}),))))
    assert max(len(setting.fields) for setting in calls.layers(part)) == 1


def test_one_request_has_every_length_flag_and_block_size():
    found = Counter(
        (group.template.window, group.template.sinks, group.template.cache.block_size, r.query_len, r.seq_len, r.causal)
        for group in enumerated(ALONE)
        for (r,) in group.batches
        if not group.template.per_request_causal
    )
    lengths = itertools.product((1, 2), range(4), range(6))
    assert set(found.values()) == {1}
    for block_size, query_len, seq_len in lengths:
        # window off, 0, 1; sinks off, on; causal or not: all but the layers that have all three
        of_lengths = [key for key in found if key[2:5] == (block_size, query_len, seq_len)]
        assert len(of_lengths) == 3 * 2 * 2 - 2


LATENT = {Layout.LATENT: "triton-latent", **{layout: f"triton-latent@{mode}" for layout, mode in MODE_OF_FORMAT.items()}}


def plainest(name: str) -> Case:
    return calls.base(name, registry.load(name), "cpu")


def contradictions(setting: Setting, part: ScopePart, of: Case) -> list[str]:
    """The contract's refusal of the plainest call of a target with a setting."""
    found: list[str | None] = []
    for template in calls.templates(setting, of, part.block_sizes):
        requests = calls.requests_of(part, template.attn_type, setting.causality, setting.ranges)
        own = [r for r in requests if r.query_len and r.seq_len][:1]
        (batch,) = symmetry.batches([own], template.cache.block_size if template.cache else 0, template.key_unit or 1)
        found.append(contradiction(calls.call(template, (batch,))))
    return [why for why in found if why is not None]


@pytest.mark.parametrize("name", SCOPES)
def test_each_setting_alone_is_a_call_of_the_contract(name):
    """A misspelled setting would else be counted as undefined, and run nowhere."""
    plain, *latent = map(plainest, ("reference-fp32", *LATENT.values()))
    for part in SCOPES[name].parts:
        for setting in itertools.chain.from_iterable(choice.settings for choice in part.choices):
            if wrong := contradictions(setting, part, plain):
                assert any("latent" in why or "each row has its own" in why for why in wrong), (setting, wrong)
                assert not all(contradictions(setting, part, of) for of in latent), setting


@pytest.mark.parametrize(("layout", "name"), LATENT.items())
def test_a_target_of_latent_caches_has_them_in_its_plainest_call(layout, name):
    case = plainest(name)
    assert case.cache.layout is layout
    form = layout.latent_format
    assert (case.head_size > case.head_size_v) == (form is None or form.kept_dims is None)  # others have no wider K
    target = registry.load(name)
    served = list(calls.groups(scope.RULES.parts[0], case, target, "cpu", LeftOut()))
    # rows of two widths are a setting, which the target without scales serves
    packed = {Layout.CONTENT_PACKED} if layout is Layout.LATENT else set()
    assert {group.template.cache.layout for group in served if group.template.cache} == {layout, *packed}
    assert {group.template.group_size for group in served} >= {1, 12, 71}
    paddings = {0} if layout.has_dense_pages else {0, 4}
    assert {group.template.cache.slot_padding for group in served if group.template.cache} == paddings


def test_the_scope_ci_splits_keys_over_tiles():
    pytest.importorskip("triton")
    part = SCOPES["ci"].parts[-1]
    own = Scope(name="x", what="", parts=(dataclasses.replace(part, choices=()),))
    found = {
        (request.query_len, request.seq_len): launch.case
        for launch in launches_of(own, registry.load("triton"), "triton")
        for request in launch.case.requests
    }
    assert {*found} == {*itertools.product(part.query_lens, part.seq_lens)}
    assert "split" in judging.try_launch(found[1, 65], registry.load("triton"), "cpu").events


def test_a_neighbour_in_a_layout_that_the_target_lacks_is_left_out():
    support = dataclasses.replace(planted_small.SMALL, layouts=(Layout.BLOCKS_FIRST_NHD, Layout.KV_FIRST_HND))
    target = dataclasses.replace(planted_small.RIGHT, support=lambda device: support)
    part = dataclasses.replace(ALONE, choices=(FEW["layout"],), pairs=False)
    left_out = LeftOut()
    found = list(calls.groups(part, calls.base("x", target, "cpu"), target, "cpu", left_out))
    views = {view for group in found for view in (group.template.cache.writer, group.template.cache.neighbour)}
    assert views == {None, Layout.KV_FIRST_HND}
    assert any(why.startswith("neighbour KV_FIRST_NHD") for why in left_out.not_served)


def test_ranges_are_all_that_touch_a_key():
    found = calls.ranges_of(2, 3, "all")
    assert {one for own in found if len(own) == 1 for one in own} == {
        *((a, b) for a in range(-1, 4) for b in range(-1, 4) if a <= b),
        (1, 0),
    }
    assert set(calls.ranges_of(2, 3, "edges")) <= set(found)


def test_blocks_descend_and_block_0_is_free():
    for launch in launches_of(TINY):
        blocks = [block for request in launch.case.requests for block in request.blocks]
        assert launch.case.cache.num_blocks > max(blocks, default=0)
        assert 0 not in blocks
        firsts = list(dict.fromkeys(blocks))
        assert firsts == sorted(firsts, reverse=True)
        assert len(set(written := [slot for slot in written_slots(launch.case) if slot >= 0])) == len(written)


def test_calls_of_one_query_are_packed_by_themselves():
    packed = [launch for launch in launches_of(Scope(name="x", what="", parts=(ALONE,))) if launch.num_calls > 1]
    assert packed
    for launch in packed:
        lengths = {request.query_len for request in launch.case.requests}
        assert launch.num_calls == len(launch.case.requests) <= packing.MAX_CALLS
        assert 1 not in lengths or lengths == {1}


def test_a_layer_with_more_calls_than_fit_is_several_launches(monkeypatch):
    monkeypatch.setattr(packing, "MAX_CALLS", 4)
    launches = launches_of(Scope(name="x", what="", parts=(ALONE,)))
    assert max(launch.num_calls for launch in launches) == 4
    assert sum(launch.num_calls for launch in launches) == sum(len(group.batches) for group in enumerated(ALONE))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_shards_partition_the_launches(num_shards):
    numbers = range(100)
    shards = [[i for i in numbers if run.in_shard(i, (k + 1, num_shards))] for k in range(num_shards)]
    assert sorted(itertools.chain(*shards)) == list(numbers)


SYMMETRIES = (properties.block_permutation(), properties.request_order())


def broken_symmetry(case: Case, target) -> str | None:
    """The symmetry that a target's outputs break, with the case's contents moved along; None if all hold."""
    attempt = Attempt(case, target, "cpu")
    assert attempt.error is None
    for each in SYMMETRIES:
        if message := each(attempt.called, lambda part: call_attention(part, target)):
            return f"{each.name}: {message}"
    return None


def orbits(target_name: str, every: int) -> list[Case]:
    target = registry.load(target_name)
    part = next(part for part in SCOPES["ci"].parts if part.num_requests == 2)
    own = Scope(name="x", what="", parts=(part,))
    return [launch.case for launch in launches_of(own, target, target_name)][::every]


def test_symmetric_calls_have_the_same_outputs():
    """Calls of the reference for some orbits: one with renamed blocks, and one with its requests in the other order."""
    target = registry.load("reference-fp32")
    assert not [message for case in orbits("reference-fp32", 7) if (message := broken_symmetry(case, target))]


@pytest.mark.parametrize("name", ["triton", "triton-cascade"])
def test_symmetric_calls_have_the_same_outputs_on_kernels(name):
    pytest.importorskip("triton")
    target = registry.load(name)
    assert not [message for case in orbits(name, 97) if (message := broken_symmetry(case, target))]


def test_packed_calls_in_another_order_have_the_same_outputs():
    target = planted_small.RIGHT
    packed = [launch.case for launch in launches_of(TINY) if launch.num_calls > 1][::5]
    assert packed
    assert not [message for case in packed if (message := broken_symmetry(case, target))]


@pytest.mark.parametrize("target", [planted_small.BLOCKS_IN_A_ROW, planted_small.FIRST_REQUEST_IS_SHORT])
def test_a_kernel_without_a_symmetry_is_noticed(target):
    shapes = (Request(query_len=1, seq_len=4, causal=True), Request(query_len=1, seq_len=3, causal=True))
    batch = next(symmetry.batches([[shapes[0]], [shapes[1]]], 2))
    case = calls.call(calls.base("x", target, "cpu"), (batch,))
    case = msgspec.structs.replace(case, cache=msgspec.structs.replace(case.cache, block_size=2))
    assert broken_symmetry(case, planted_small.RIGHT) is None
    assert broken_symmetry(case, target)


def launched_by_layer() -> list[Case]:
    """A packed launch of every layer with at most one choice, rules and formats."""
    part = scope.RULES.parts[0]
    target = registry.load("reference-fp32")
    own = Scope(name="x", what="", parts=(part,))
    return [launch.case for launch in launches_of(own, target, "reference-fp32")][1::2]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_judging_together_is_judging_one_by_one(every):
    target = registry.load("reference-fp32")
    rounding = target.rounding("cpu")
    for case in launched_by_layer()[::every]:
        step = Attempt(case, target, "cpu").step
        together, alone = judging.judge_together(case, step, rounding), judge(case, step, rounding)
        assert together.kind == alone.kind == "agree"
        for name, ratios in alone.of_bound.items():
            torch.testing.assert_close(together.of_bound[name], ratios, rtol=1e-6, atol=1e-9)


def test_a_wrong_element_of_a_launch_is_seen_where_it_is():
    target = registry.load("reference-fp32")
    case = launched_by_layer()[0]
    step = Attempt(case, target, "cpu").step
    row = case.query_start_loc[5]
    step.out[row, 0, 3] += 0.01
    judgement = judging.judge_together(case, step, target.rounding("cpu"))
    assert judgement.kind == "value"
    assert [(d.request, d.row, d.dim) for d in judgement.differences] == [(5, row, 3)]
    step.out[row, 0, 3] = torch.nan
    assert judging.judge_together(case, step, target.rounding("cpu")).kind == "nan"


def test_cross_attention_and_encoders_are_enumerated():
    types = Counter(group.template.attn_type for group in enumerated(scope.RULES.parts[0], registry.load("reference-fp32")))
    assert set(types) == set(AttentionType)

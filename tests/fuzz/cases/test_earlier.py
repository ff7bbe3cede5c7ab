"""Earlier calls change one thing and leave nothing behind, and a target that keeps too much between calls is found."""

import copy
import dataclasses
import itertools
import re
from pathlib import Path

import msgspec
import pytest
import torch
from attn_contract import RULES, AttentionType, Batch, Layer, Layout
from attn_contract.rules import held_rules
from attn_fuzz import report
from attn_fuzz.cases import earlier, earlier_writes, tensors
from attn_fuzz.cases.case import CHANGES, ILLEGAL, MODE, Cache, Case, Request, Values
from attn_fuzz.cases.contradictions import CaseError, check
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Step, Write
from attn_fuzz.run import runner, shard, shrink
from attn_fuzz.run.case.attempt import Attempt, NotRefusedError
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.strategies import cases, families
from attn_fuzz.targets import registry
from attn_fuzz.targets.backends import plain as backends
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.triton import TRITON
from hypothesis import HealthCheck, given, settings
from planted import SMALL

replace = msgspec.structs.replace
few = settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def memory_of(step: Step) -> dict[str, torch.Tensor]:
    """A copy of the bits of every tensor of a step."""
    return {name: bits(tensor).clone() for name, tensor in {**step.inputs(), "out": step.out_buffer}.items()}


def parts_of(step: Step) -> dict[str, object]:
    """The arguments of a call: values, and shapes, strides, dtypes and alignments of tensors."""
    named = {"q": step.q, "k": step.k, "v": step.v, "kv_cache": step.kv_cache, "out": step.out, "lse": step.lse}
    for holder in (step.layer, step.batch):
        named |= {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    return {
        name: (value.shape, value.stride(), value.dtype, value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value
        for name, value in named.items()
    } | {"causal": step.batch.causal.tolist() if isinstance(step.batch.causal, torch.Tensor) else step.batch.causal}


def test_every_change_is_made_by_a_function_and_every_rule_is_a_change():
    assert set(earlier._CHANGES) == set(CHANGES)
    assert {*held_rules(Layer), *held_rules(Batch)} <= set(CHANGES)


@few
@given(case=cases("anything", SMALL))
def test_a_change_is_of_the_step_and_nothing_is_left_behind(case):
    step = tensors.build(case)
    before, parts = memory_of(step), parts_of(step)
    for name in CHANGES:
        with earlier.changed(step, name) as other:
            if other is not None and name not in ("same", MODE, ILLEGAL, "contents"):
                assert parts_of(other) != parts, name
            if other is not None:
                assert not step.out.numel() or other.out.data_ptr() != step.out.data_ptr()
        after = memory_of(step)
        left = [tensor for tensor in before if not torch.equal(before[tensor], after[tensor])]
        assert not left, f"{name} left {left} changed"


@few
@given(case=cases("anything", SMALL))
def test_other_contents_keep_the_blocks_of_each_request(case):
    """A kernel that writes through the table, as LMDeploy's, writes no slot twice."""
    step = tensors.build(case)
    if step.batch.block_table is None:
        return
    block_size = step.view.block_size

    def blocks():
        used = [-(-(length // (step.layer.key_unit or 1)) // block_size) for length in step.batch.seq_lens.tolist()]
        return [row[:count] for row, count in zip(step.batch.block_table.tolist(), used, strict=True)]

    before = blocks()
    others = [{block for other in before[:at] + before[at + 1 :] for block in other} for at in range(len(before))]
    with earlier.changed(step, "contents"):
        for own, found, other in zip(before, blocks(), others, strict=True):
            assert found == own if other & {*own} else found == own[::-1][: len(found)]


def test_other_contents_select_other_units(step_case):
    step = tensors.build(replace(step_case, selection_unit=1))
    own = step.batch.selected.clone()
    with earlier.changed(step, "contents") as other:
        assert not torch.equal(other.batch.selected, own)
    # before an interpreted call no request owns a row
    with earlier.without_queries(step), earlier.changed(step, "contents") as other:
        assert (other.batch.selected == -1).all()


@few
@given(case=cases("triton-write", SMALL))
def test_a_change_of_a_write_is_of_that_write_and_nothing_is_left_behind(case):
    step = tensors.build(case)
    before = memory_of(step)
    for write in step.writes:
        for name in earlier_writes.CHANGES:
            with earlier_writes.changed(write, step, name) as changed:
                if isinstance(changed, tuple):
                    assert name == "same" or parts_of_write(*changed) != parts_of_write(write, step), name
                    for tensor in changed[1].memory.values():
                        bits(tensor).fill_(1)
            after = memory_of(step)
            assert [tensor for tensor in before if not torch.equal(before[tensor], after[tensor])] == [], name


def parts_of_write(write: Write, step: Step) -> list[object]:
    tensors = [write.k, write.v, write.slot_mapping, write.view.tensor(step.raw), *write.layer.tensors.values()]
    if write.rotation is not None:
        tensors += [step.q, write.rotation.positions, write.rotation.cos_sin_cache]
    forms = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors]
    return [*forms, write.layer.layout, write.rotation is None or write.rotation.is_neox]


def test_writes_that_are_not_their_cases_come_before_theirs_alone_where_a_target_refuses_what_it_cannot(step_case):
    made = []

    def write(k, v, kv_cache, layer, slot_mapping):
        made.append(slot_mapping)
        REFERENCE_FP32.write_kv_cache(k, v, kv_cache, layer, slot_mapping)

    case = replace(step_case, writes=True)
    target = dataclasses.replace(REFERENCE_FP32, write_kv_cache=write)
    for earlier_calls, refuses, writes in (
        ((), True, 1),
        (("same",), True, 2),
        (("same", "scale"), True, 3),
        (("same",), False, 1),
    ):
        made.clear()
        assert Attempt(replace(case, earlier=earlier_calls), dataclasses.replace(target, refuses=refuses), "cpu").error is None
        assert len(made) == writes


def test_a_batch_without_queries_has_no_other_alignment(step_case):
    step = tensors.build(replace(step_case, requests=(), unwritten=()))
    with earlier.changed(step, "alignment") as other:
        assert other is None


@few
@given(case=cases("reference-fp32", SMALL))
def test_the_reference_serves_every_earlier_call_that_is_drawn(case):
    """A change of a valid call is a valid call."""
    attempt = Attempt(case, REFERENCE_FP32, "cpu")
    assert attempt.error is None


@few
@given(case=cases("reference-fp32", dataclasses.replace(SMALL, rules=("window", "non_causal")), refuses=False))
def test_a_target_that_does_not_refuse_is_asked_for_no_more_than_the_case_asks(case):
    step = tensors.build(case)
    for name in case.earlier:
        with earlier.changed(step, name) as other:
            assert other is not None
            assert set(asked_of(other)) <= set(asked_of(step))
            assert parts_of(other)["kv_cache"] == parts_of(step)["kv_cache"]


def asked_of(step: Step) -> list[str]:
    held = {**held_rules(Layer), **held_rules(Batch)}
    values = {name: getattr(step.layer if rule.holder == "Layer" else step.batch, name) for name, rule in held.items()}
    return [name for name, value in values.items() if RULES[name].is_asked(value)]


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    return shard.drawn(FuzzPlan(target="triton", device="cpu", examples=400, seed=1, folder=Path()))


def test_half_of_the_cases_have_an_earlier_call(drawn):
    assert 0.4 < sum(bool(case.earlier) for case in drawn) / len(drawn) < 0.6
    assert len({name for case in drawn for name in case.earlier}) > len(CHANGES) * 3 / 4
    # what always applies is drawn equally often
    times = [sum(name in case.earlier for case in drawn) for name in ("scale", "window", ILLEGAL)]
    assert max(times) <= 2 * min(times), times


WITH_ILLEGAL_CALLS = [
    name
    for name in registry.battery()
    if (target := registry.load(name)).refuses and target.checks_arguments and not target.unavailable("cpu")
]


@pytest.mark.parametrize("name", WITH_ILLEGAL_CALLS)
def test_illegal_calls_are_drawn_for_every_target_that_has_some(name, tmp_path):
    """For a target with an engine of its own, such as backend-triton-mla, none was drawn."""
    plan = FuzzPlan(target=name, device="cpu", examples=100, seed=1, folder=tmp_path)
    assert any(ILLEGAL in case.earlier for part in runner.shards(plan) for case in shard.drawn(part))


@pytest.mark.nightly
def test_cases_that_are_refused_for_one_rule_come_after_a_call_without_the_rule(tmp_path):
    plan = FuzzPlan(target="backend-rocm-attn", device="cpu", examples=1500, seed=8, folder=tmp_path)
    support = registry.load(plan.target).support("cpu")
    beyond = [(case, case.rules.keys() - {*support.rules}) for case in shard.drawn(plan) if case.earlier]
    refused = [(case, rules) for case, rules in beyond if len(rules) == 1]
    without = [case for case, rules in refused if case.earlier[-1].removeprefix("no ") in rules]
    assert len(refused) / 3 < len(without) < len(refused)


def test_a_sixth_of_the_cases_with_an_earlier_call_come_after_other_numbers_alone(drawn):
    found = [case.earlier for case in drawn if case.earlier]
    alone = [calls for calls in found if calls[-1] == "contents" and {*calls[:-1]} <= {"same", MODE}]
    assert len(found) / 10 < len(alone) < len(found) / 4


@settings(few, max_examples=3)
@given(family=families("triton", TRITON.support("cuda")))
def test_the_cases_of_a_family_share_their_change(family):
    """A GPU compiles a layer anew for a change of it, and for another mode."""
    found = [case for case in family if case.earlier]
    assert len(family) > 1
    assert len({case.earlier[-1] for case in found}) <= 1
    assert {*itertools.chain(*(case.earlier[:-1] for case in found))} <= {"same"}
    assert len({earlier_writes.chosen(case, 0)[0] for case in found}) <= 1


def _refuses_too_late(q, k, v, kv_cache, layer, batch, *, out, lse):
    out.zero_()
    raise ValueError("too late")


def _crashes(q, k, v, kv_cache, layer, batch, *, out, lse):
    raise TypeError("no such thing")


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (lambda *arguments, out, lse: None, "an earlier call with q of another dtype was not refused$"),
        (_refuses_too_late, "an earlier call with q of another dtype was refused after something was written"),
        (_crashes, "an earlier call with q of another dtype: TypeError: no such thing"),
    ],
)
def test_an_illegal_call_that_is_not_refused_is_found(attention, message, step_case):
    target = dataclasses.replace(REFERENCE_FP32, attention=attention, checks_arguments=True)
    error = Attempt(replace(step_case, earlier=(ILLEGAL,)), target, "cpu").error
    assert isinstance(error, NotRefusedError)
    assert re.search(message, str(error))
    unchecked = dataclasses.replace(REFERENCE_FP32, attention=attention)
    assert not isinstance(Attempt(replace(step_case, earlier=(ILLEGAL,)), unchecked, "cpu").error, NotRefusedError)


def _without_gradients(*arguments, **outputs):
    with torch.no_grad():
        REFERENCE_FP32.attention(*arguments, **outputs)


def _with_rows_of_zeros(q, k, v, kv_cache, layer, batch, *, out, lse):
    if k is not None and len(k) == len(v) < batch.num_actual_tokens and k.shape[1] == layer.num_kv_heads:
        k, v = (torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, batch.num_actual_tokens - len(rows))) for rows in (k, v))
    REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (_without_gradients, "an earlier call with a gradient asked of q was not refused"),
        (_with_rows_of_zeros, "an earlier call with k and v of 4 rows was not refused"),
    ],
)
def test_a_refusal_that_needs_several_tensors_or_gradients_is_asked_for(attention, message):
    requests = (Request(query_len=2, seq_len=2, causal=False), Request(query_len=3, seq_len=3, causal=False))
    case = Case(target="planted", attn_type=AttentionType.ENCODER, head_size=8, requests=requests, earlier=(ILLEGAL,))
    target = dataclasses.replace(REFERENCE_FP32, attention=attention, checks_arguments=True)
    assert str(Attempt(case, target, "cpu").error) == message
    assert Attempt(case, dataclasses.replace(target, attention=REFERENCE_FP32.attention), "cpu").error is None


@pytest.mark.parametrize("name", [name for name in registry.battery() if registry.load(name).checks_arguments])
def test_illegal_calls_are_refused_before_and_after_a_legal_one(name, step_case):
    target = registry.load(name)
    for earlier_calls in ((ILLEGAL,), ("same", ILLEGAL)):
        error = Attempt(replace(step_case, earlier=earlier_calls), target, "cpu").error
        support = target.support("cpu")
        assert error is None or support.not_drawn(step_case) or support.beyond(step_case), error


def test_an_unknown_change_is_refused_by_name(step_case):
    with pytest.raises(CaseError, match="earlier: got 'widow', expected names among same, "):
        check(replace(step_case, earlier=("widow",)))


def test_the_shrinker_first_drops_all_earlier_calls(step_case):
    case = replace(step_case, earlier=("same", "window"))
    support = dataclasses.replace(EVERYTHING, head_sizes=(8,), block_sizes=(4,))
    first, second, third, *_ = shrink.lowered(case, support)
    assert [first.earlier, second.earlier, third.earlier] == [(), ("window",), ("same",)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("KEEPS_SCALE", {"scale"}),
        ("KEEPS_STRIDES", CHANGES),
    ],
)
def test_a_target_that_keeps_too_much_is_found(name, changes, fuzz_here):
    progress, _ = fuzz_here(f"planted_state:{name}", examples=500, on_failure="stop")
    assert progress.failure is not None, f"survived {progress.examples} examples"
    case, target = progress.failure.case, registry.load(f"planted_state:{name}")
    assert {*changes} & {*case.earlier}
    # a case depends on its own calls alone
    assert try_case(case, target, "cpu").failed
    # without the neighbour's write, which comes after the layer's own
    cache = None if case.cache is None else replace(case.cache, neighbour=None)
    assert not try_case(replace(case, earlier=(), cache=cache, ordinary_writes=False), target, "cpu").failed
    assert try_case(case, target, "cpu").failed


@pytest.mark.parametrize(("repeats", "kind"), [(True, "property"), (False, "agree")])
def test_other_bits_after_a_call_of_fewer_keys_are_found_where_they_are_promised(repeats, kind, step_case):
    kept = []

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        kept.append(batch.max_seq_len)
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        if kept[0] != batch.max_seq_len:
            owned = out[: batch.query_start_loc[-1]]
            owned.copy_(torch.nextafter(owned, torch.full_like(owned, torch.inf)))

    target = dataclasses.replace(REFERENCE_FP32, attention=attention, forget=kept.clear, repeats=repeats)
    case = replace(step_case, earlier=("max_seq_len",), values=Values("random", 1))
    assert try_case(case, target, "cpu").kind == kind
    assert try_case(replace(case, earlier=("window",)), target, "cpu").kind == "agree"


STRIDES_OF_K = list(earlier_writes.CHANGES).index("k strides")


@pytest.mark.parametrize(
    ("name", "change", "seed"), [("KEEPS_SCALE", "scale", 0), ("KEEPS_STRIDES", "same", STRIDES_OF_K)], ids=["call", "write"]
)
def test_the_script_of_a_failure_makes_the_earlier_calls(name, change, seed, step_case, tmp_path, monkeypatch, script_ends):
    values = Values("random", seed=seed)
    case = replace(step_case, target=f"planted_state:{name}", earlier=(change,), writes=True, values=values)
    target = registry.load(case.target)
    _, script = report.write(case, try_case(case, target, "cpu"), tmp_path, "failure")
    for repaired in (False, True):
        target.forget()
        if repaired:
            monkeypatch.setenv("PLANTED_REPAIRED", "1")
        assert bool(script_ends(script)) != repaired


def test_a_backend_makes_a_layer_once_and_the_metadata_of_a_step_once(step_case, monkeypatch):
    from attn_optimized.backends.base import BatchBuilder
    from attn_optimized.backends.triton_attn import TritonAttentionImpl

    made, built = [], []
    make, build = TritonAttentionImpl.__init__, BatchBuilder.build
    monkeypatch.setattr(TritonAttentionImpl, "__init__", lambda self, *a, **k: (made.append(self), make(self, *a, **k))[1])
    monkeypatch.setattr(BatchBuilder, "build", lambda self, common: (built.append(common), build(self, common))[1])
    case = replace(step_case, earlier=("same", "window", "max_seq_len"))
    assert Attempt(case, backends.BACKEND_TRITON, "cpu").error is None
    # the case's own layer, one that reads the cache of another, and one with another window; a step of the case's own, one with
    # another bound, and its own again
    assert len(made) == 3
    assert len(built) == 3


def test_a_call_without_queries_is_cheap_and_has_the_same_signature(step_case):
    step = tensors.build(step_case)
    lengths = copy.deepcopy(step.batch.query_start_loc)
    parts = parts_of(step)
    with earlier.without_queries(step):
        assert not step.batch.query_start_loc.any()
        assert parts_of(step) == parts
    assert torch.equal(step.batch.query_start_loc, lengths)


@pytest.mark.parametrize("refuses", [True, False])
def test_an_earlier_call_that_the_target_refuses_is_counted(refuses):
    def only_with_lse(*call, out, lse) -> None:
        if lse is None:
            raise ValueError("no call without an LSE")
        REFERENCE_FP32.attention(*call, out=out, lse=lse)

    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=2)
    case = Case(target="planted", cache=cache, requests=(Request(1, 2, (0,), True),), lse=True, earlier=("same", "lse"))
    target = dataclasses.replace(REFERENCE_FP32, attention=only_with_lse, refuses=refuses, properties=())
    verdict = try_case(case, target, "cpu")
    assert verdict.passed
    assert verdict.left_out == (("the earlier call 'lse'", "the target refused it: ValueError"),)

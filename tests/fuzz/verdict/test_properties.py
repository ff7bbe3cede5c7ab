"""A kernel whose outputs contradict each other is found without an oracle, and one that keeps its promises agrees."""

import dataclasses
import functools
import re
from collections.abc import Callable

import attn_reference
import msgspec
import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import properties
from attn_fuzz.cases import contradictions, tensors
from attn_fuzz.cases.case import Cache, Case, CaseError, Request, Values
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import Property, batch_composition, chunked_prefill
from attn_fuzz.properties.memory import GARBAGE
from attn_fuzz.properties.relation import Outputs, close
from attn_fuzz.run.case.trial import PROPERTIES_OF_CASE, try_case
from attn_fuzz.targets import registry
from attn_fuzz.targets.plans import launch_of
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import Target

TILE = 4
ERROR = properties.error_bound(REFERENCE_FP32.rounding)
ALL = (
    properties.repetition(),
    properties.request_order(),
    properties.batch_composition(ERROR),
    properties.neighbours_rules(ERROR),
    properties.chunked_prefill(lambda step: TILE, ERROR),
    properties.padded_batch(ERROR),
    properties.block_permutation(),
    properties.garbage(),
    properties.head_permutation(),
    properties.channel_permutation(ERROR),
    properties.doubled_values(),
    properties.additivity(ERROR),
    properties.weights(ERROR),
    properties.shifted_keys(ERROR),
    properties.scale_in_query(),
    properties.wide_window(),
    properties.last_row(),
    properties.forgotten_keys(ERROR),
    properties.split_keys(ERROR),
    properties.order_of_selection(ERROR),
    properties.all_selected(ERROR),
)
replace = msgspec.structs.replace

Rows = Callable[[Batch], torch.Tensor]
"""Which rows of a step a fault changes, [T] bool."""


def requests(*lens: tuple[int, int], causal: bool = True) -> tuple[Request, ...]:
    """Requests of (query_len, seq_len), each in blocks of its own: three of four slots."""
    return tuple(
        Request(query_len, seq_len, tuple(range(3 * r, 3 * r + -(-seq_len // 4))), causal)
        for r, (query_len, seq_len) in enumerate(lens)
    )


STEP = Case(
    target="planted",
    head_size=8,
    requests=requests((2, 7), (10, 12), (0, 0), (1, 3)),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=12),
    unowned_rows=1,
    rows_past=1,
    lse=True,
)
NON_CAUSAL = replace(STEP, requests=requests((2, 7), (10, 12), causal=False))
PER_REQUEST = replace(STEP, requests=(NON_CAUSAL.requests[0], STEP.requests[1]), per_request_causal=True)
DENSE = Case(
    target="planted",
    attn_type=AttentionType.ENCODER_ONLY,
    head_size=8,
    requests=(Request(3, 3), Request(9, 9)),
    kv_rows_past=2,
    lse=True,
)


def on_any_cpu(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    """The reference, rounded so that it does not show how a CPU adds, which depends on how many rows there are.

    float64 is rounded to the dtype of `out`. What adds up to 0 leaves some 2^-52, and is rounded to a multiple of 2^-30.
    """
    options = {"out": out, "lse": lse, "precision": torch.float64}
    if layer.attn_type.reads_cache:
        attn_reference.paged_attention(q, kv_cache, layer, batch, **options)
    else:
        attn_reference.varlen_attention(q, k, v, layer, batch, **options)
    owned = out[: int(batch.query_start_loc[-1])]
    owned.copy_((owned.double() * 2.0**30).round() / 2.0**30 + 0.0)


def kernel(attention, **fields) -> Target:
    support, rounding = REFERENCE_FP32.support, REFERENCE_FP32.rounding
    return Target(name="planted", description="planted", attention=attention, support=support, rounding=rounding, **fields)


def planted(rows: Rows, *names: str, attend=on_any_cpu) -> Target:
    """The reference, and then one unit in the last place more in some rows of the named outputs."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        outputs = {"out": out, "lse": None if lse is None else lse.T}
        for output in (outputs[name] for name in names):
            output[rows(batch)] = torch.nextafter(output[rows(batch)], torch.tensor(torch.inf))

    return kernel(attention, properties=(batch_composition(), chunked_prefill(lambda step: TILE)))


def nowhere(batch: Batch) -> torch.Tensor:
    return torch.arange(0)


def everywhere(batch: Batch) -> torch.Tensor:
    return torch.arange(int(batch.query_start_loc[-1]))


def in_long_batches(batch: Batch) -> torch.Tensor:
    """As if max_seq_len chose how keys are split."""
    return everywhere(batch) if batch.max_seq_len > 7 else nowhere(batch)


def in_company(batch: Batch) -> torch.Tensor:
    return everywhere(batch) if batch.num_requests > 1 else nowhere(batch)


def after_the_first_tile(batch: Batch) -> torch.Tensor:
    """As if what a tile's queries see began at its first row."""
    rows = everywhere(batch)
    first = batch.query_start_loc[torch.searchsorted(batch.query_start_loc, rows, right=True) - 1]
    return rows[rows - first >= TILE]


@pytest.mark.parametrize("output", ["out", "lse"])
@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (in_long_batches, ("batch composition: request 0 alone: ", "chunked prefill: rows 2 to 5 of request 1")),
        (in_company, ("batch composition: request 0 alone: ", "chunked prefill: rows 2 to 5 of request 1")),
        (after_the_first_tile, ("chunked prefill: rows 6 to 9 of request 1 in a step of their own: ",)),
    ],
)
def test_outputs_that_differ_by_one_bit_are_found(rows, messages, output):
    verdict = try_case(STEP, planted(rows, output), "cpu")
    assert verdict.kind == "property"
    assert verdict.failed
    assert verdict.message.startswith(messages)
    assert f"elements of {output} differ" in verdict.message
    assert verdict.ratio < 1, "within the bound: no oracle could tell"


STEPS = {
    "causal": STEP,
    "non-causal": NON_CAUSAL,
    "causal per request": PER_REQUEST,
    "dense": DENSE,
    "cross-attention": replace(
        NON_CAUSAL, attn_type=AttentionType.ENCODER_DECODER, requests=requests((2, 7), (5, 3), causal=False)
    ),
    "drafts": replace(STEP, qq_bias="tree"),
    "ranges": replace(STEP, requests=tuple(replace(request, bidirectional_ranges=((0, 11),)) for request in STEP.requests)),
    "fewer keys than queries": replace(STEP, requests=requests((10, 1), (6, 5))),
    "masks": replace(STEP, window=(3, 0), sink_tokens=1, chunked_local=5),
    "a quantized cache": replace(STEP, cache=replace(STEP.cache, dtype="fp8_e4m3fn", scales="head")),
    "a float8 output": replace(STEP, output_dtype="fp8_e4m3fn", flat_out=True, lse=False),
    "nothing written": replace(STEP, writes=False),
}


@pytest.mark.parametrize("relation", [properties.split_keys(ERROR), properties.forgotten_keys(ERROR)], ids=lambda one: one.name)
@pytest.mark.parametrize("asked", [False, True])
def test_a_rule_that_a_property_does_not_name_is_not_asked_of_it(relation, asked):
    """Nobody knows how a rule that was added later behaves where positions change."""

    @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
    class Unheard(Layer):
        unheard_of: int = 1

    def attend(*_, **__) -> None:
        raise RuntimeError("asked")

    step = tensors.build(replace(STEP, window=(0, -1) if relation.name == "forgotten keys" else (-1, -1)), "cpu")
    settings = {field.name: getattr(step.layer, field.name) for field in dataclasses.fields(step.layer)}
    layer = Unheard(**settings, unheard_of=3 if asked else 1)
    if asked:
        assert relation(dataclasses.replace(step, layer=layer), attend) is None
    else:
        with pytest.raises(RuntimeError, match="asked"):
            relation.holds(dataclasses.replace(step, layer=layer), attend)


@pytest.mark.parametrize("name", STEPS)
def test_a_kernel_that_keeps_its_promises_agrees(name):
    verdict = try_case(STEPS[name], planted(nowhere), "cpu")
    assert verdict.kind == "agree", verdict.message


@pytest.mark.parametrize("name", ["causal", "non-causal", "causal per request", "dense", "drafts", "ranges", "masks"])
def test_batch_composition_is_asked_of_every_kind_of_step(name):
    assert try_case(STEPS[name], planted(in_company, "out", "lse"), "cpu").kind == "property"


@pytest.mark.parametrize("name", ["non-causal", "dense", "drafts", "ranges"])
def test_chunks_are_asked_only_of_queries_that_see_no_later_one(name):
    assert try_case(STEPS[name], planted(after_the_first_tile, "out", "lse"), "cpu").kind == "agree"


def test_chunks_are_asked_of_the_causal_requests_of_a_step():
    verdict = try_case(PER_REQUEST, planted(after_the_first_tile, "out"), "cpu")
    assert "of request 1 in a step of their own" in verdict.message


def test_an_exception_on_a_variant_of_the_step_is_the_kernels():
    def raises_alone(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        if batch.num_requests == 1:
            raise RuntimeError("too few")
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)

    verdict = try_case(STEP, planted(nowhere, attend=raises_alone), "cpu")
    assert verdict.kind == "raised"
    said = r"on a variant of the step: RuntimeError: too few \([\w/]+\.py:\d+, in raises_alone\)"
    assert re.fullmatch(said, verdict.message)


@pytest.mark.parametrize("seed", [0, 1], ids=["stride 0", "stride 7"])
def test_a_step_of_one_row_whose_strides_are_any_has_variants_whose_rows_lie_apart(seed):
    """A stride over one row says nothing of several: outputs of variants would share memory, which the contract refuses."""
    rows = {"requests": requests((1, 5)), "unowned_rows": 0, "rows_past": 0, "unwritten": ()}
    one = replace(STEP, **rows, num_kv_heads=1, group_size=1, unlike_strides=True, lse=True)
    for case in (one, replace(one, flat_out=True), replace(one, dense_out=True)):
        verdict = try_case(replace(case, values=replace(case.values, seed=seed)), planted(nowhere), "cpu")
        assert verdict.kind == "agree", verdict.message


def test_a_wrong_output_is_named_before_a_broken_promise():
    def wrong(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        out[everywhere(batch)] += batch.num_requests

    assert try_case(STEP, planted(nowhere, attend=wrong), "cpu").kind == "value"


# what follows is of all properties, without an oracle

SEEN = replace(
    STEP, num_kv_heads=2, group_size=2, scale=0.25, requests=requests((1, 5), (2, 7), (5, 11)), values=Values("random", 3)
)
WINDOWED = replace(SEEN, window=(2, -1), alibi_slopes=True)
SELECTED = replace(SEEN, selection_unit=2, selected="all")


@dataclasses.dataclass
class Call:
    """One call of a faulty kernel, after the reference has written its outputs."""

    number: int
    q: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch
    out: torch.Tensor
    lse: torch.Tensor

    @property
    def owned(self) -> slice:
        return slice(int(self.batch.query_start_loc[-1]))

    def next_up(self, when: bool, heads: slice = slice(None)) -> None:
        """One bit of the outputs that requests own."""
        if when:
            out = self.out[self.owned, heads]
            out.copy_(torch.nextafter(out, torch.tensor(torch.inf)))

    def scale_out(self, factor: float, when: bool = True, channels: slice = slice(None)) -> None:
        if when:
            self.out[self.owned, :, channels] *= factor

    def saturate(self, largest: float) -> None:
        self.out[self.owned] = self.out[self.owned].clamp(-largest, largest)

    def count_keys(self) -> None:
        lens = self.batch.query_start_loc.diff().long()
        self.lse[:, self.owned] += 0.1 * self.batch.seq_lens.repeat_interleave(lens)

    def anchor_alibi_at_the_first_key(self) -> None:
        """Which no causal softmax notices, but the LSE."""
        lens = self.batch.query_start_loc.diff().long()
        for r, (end, seq_len) in enumerate(zip(lens.cumsum(0).tolist(), self.batch.seq_lens.tolist(), strict=True)):
            positions = torch.arange(seq_len - int(lens[r]), seq_len)
            self.lse[:, end - int(lens[r]) : end] += self.layer.alibi_slopes[:, None] * positions


def ascends(table: torch.Tensor) -> bool:
    return bool((table[:, 0] < table[:, 1]).all())


def is_sorted(values: torch.Tensor) -> bool:
    return bool((values.diff() >= 0).all())


FAULTS: dict[str, tuple[Case, Callable[[Call], object], set[str]]] = {
    "its second call": (SEEN, lambda c: c.next_up(c.number == 1 and c.batch.slot_mapping is not None), {"repetition"}),
    "unsorted batches": (SEEN, lambda c: c.next_up(not is_sorted(c.batch.seq_lens)), {"request order"}),
    "company": (SEEN, lambda c: c.scale_out(1.5, c.batch.num_requests == 1), {"batch composition", "chunked prefill"}),
    "ranges of others": (SEEN, lambda c: c.scale_out(1.5, c.batch.bidirectional_ranges is not None), {"neighbour's rules"}),
    "few queries": (SEEN, lambda c: c.scale_out(1.5, c.batch.max_query_len == TILE), {"chunked prefill"}),
    "loose bounds": (SEEN, lambda c: c.scale_out(1.5, c.batch.max_seq_len > 11), {"padded batch"}),
    "a loose bound of queries": (SEEN, lambda c: c.scale_out(1.5, c.batch.max_query_len > 5), {"padded batch"}),
    "blocks that do not ascend": (SEEN, lambda c: c.next_up(not ascends(c.batch.block_table)), {"block permutation"}),
    "rows of nobody": (SEEN, lambda c: c.next_up(bool(c.q[-1].isfinite().all())), {"garbage"}),
    "a head's place": (SEEN, lambda c: c.next_up(True, slice(0, 1)), {"head permutation"}),
    "a channel's place": (SEEN, lambda c: c.scale_out(0.5, channels=slice(0, 1)), {"channel permutation", "weights"}),
    "large outputs": (SEEN, lambda c: c.saturate(2.5), {"doubled values"}),
    "values of 0": (SEEN, lambda c: c.scale_out(1.5, bool((c.v == 0).any())), {"additivity", "weights"}),
    "a denominator too large": (SEEN, lambda c: c.scale_out(0.9), {"weights"}),
    "a base of 2": (SEEN, lambda c: c.lse.mul_(1.4427), {"shifted keys", "split keys"}),
    "a small scale": (SEEN, lambda c: c.next_up(c.layer.scale < 0.1), {"scale in q"}),
    "windows": (SEEN, lambda c: c.next_up(c.layer.window != (-1, -1)), {"wide window"}),
    "causality": (SEEN, lambda c: c.next_up(c.batch.causal is False), {"last row"}),
    "an anchor": (WINDOWED, lambda c: c.anchor_alibi_at_the_first_key(), {"forgotten keys"}),
    "the first entry": (
        SELECTED,
        lambda c: c.scale_out(1.5, c.batch.selected is not None and bool((c.batch.selected[..., 0] < 0).all())),
        {"order of selection"},
    ),
    "values that nobody selects": (
        replace(SELECTED, selected="some"),
        lambda c: c.next_up(bool((c.v[c.batch.block_table[0, 0]] == GARBAGE).any())),
        {"garbage"},
    ),
    "no selection": (SELECTED, lambda c: c.scale_out(1.5, c.batch.selected is None), {"all selected"}),
    "the number of keys": (SEEN, lambda c: c.count_keys(), {"split keys", "chunked prefill"}),
}


def seen_by(case: Case, fault: Callable[[Call], object]) -> set[str]:
    """Names of the properties that a faulty kernel breaks."""
    number = 0

    def call_target(step: Step) -> None:
        nonlocal number
        REFERENCE_FP32.attention(step.q, step.k, step.v, step.kv_cache, step.layer, step.batch, out=step.out, lse=step.lse)
        values = step.kv_cache[1] if step.kv_cache is not None else step.v
        fault(Call(number, step.q, values, step.layer, step.batch, step.out, step.lse))
        number += 1

    step = written(case)
    call_target(step)
    return {each.name for each in ALL if each(step, call_target)}


def written(case: Case) -> Step:
    """A step whose cache holds its keys."""
    step = tensors.build(case)
    for write in step.writes:
        attn_reference.write_kv_cache(write.k, write.v, write.view.tensor(step.raw), write.layer, write.slot_mapping)
    return step


@pytest.mark.parametrize("name", FAULTS)
def test_each_property_sees_a_fault_without_an_oracle(name):
    case, fault, expected = FAULTS[name]
    assert seen_by(case, fault) == expected


def test_every_property_has_such_a_fault():
    assert {name for _, _, names in FAULTS.values() for name in names} == {each.name for each in ALL}


@pytest.mark.parametrize(
    "kind",
    ["random", "extreme", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ("exact", "one_hot", "signature"))],
)
@pytest.mark.parametrize("name", [*STEPS, "window and alibi"])
def test_no_property_is_broken_by_the_reference(name, kind):
    case = {**STEPS, "window and alibi": WINDOWED}[name]
    assert seen_by(replace(case, values=Values(kind, 5)), lambda call: None) == set()


def judged_without_an_oracle(attention, asked: tuple[Property, ...] = ()) -> Target:
    return kernel(attention, properties=asked, oracle=False)


def wrong(change: Callable[[Step], object]) -> Callable[..., None]:
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
        change(out, lse)

    return attention


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda out, lse: out[3, 0, 5].fill_(torch.nan), "nan", "out of request 1 at row 3, head 0, dim 5: got nan"),
        (lambda out, lse: out[0].fill_(-torch.inf), "nan", "out of request 0 at row 0, head 0, dim 0: got -inf"),
        (lambda out, lse: lse[0, 4].fill_(torch.inf), "lse", "lse of request 1 at row 4, head 0: got inf"),
        (lambda out, lse: out[-1].fill_(0), "guard", "it wrote to out row 14"),
    ],
)
def test_without_an_oracle_outputs_are_finite_and_nothing_else_is_written(change, kind, message):
    verdict = try_case(STEP, judged_without_an_oracle(wrong(change)), "cpu")
    assert verdict.kind == kind
    assert message in verdict.message


def test_without_an_oracle_a_row_that_is_not_written_is_found():
    def writes_one_row_less(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        fresh = out.clone()
        REFERENCE_FP32.attention(q, k, v, kv_cache, layer, batch, out=fresh, lse=lse)
        out[:7] = fresh[:7]
        out[8:12] = fresh[8:12]

    verdict = try_case(STEP, judged_without_an_oracle(writes_one_row_less), "cpu")
    assert verdict.kind == "unwritten"
    assert "out of request 1 at row 7" in verdict.message


def test_an_error_that_is_alike_everywhere_needs_an_oracle():
    halved = wrong(lambda out, lse: out[:, :, 0].mul_(0.5))
    assert try_case(SEEN, judged_without_an_oracle(halved), "cpu").kind == "agree"
    assert try_case(SEEN, dataclasses.replace(judged_without_an_oracle(halved), oracle=True), "cpu").kind == "value"


def test_a_case_asks_two_of_the_properties_that_apply_and_always_the_same():
    asked: dict[int, tuple[str, ...]] = {}
    target = judged_without_an_oracle(REFERENCE_FP32.attention, ALL)
    for seed in range(8):
        case = replace(DENSE, values=Values("random", seed))
        asked[seed] = try_case(case, target, "cpu").events
        assert try_case(case, target, "cpu").events == asked[seed]
        assert len(set(asked[seed])) == PROPERTIES_OF_CASE
    names = {name for pair in asked.values() for name in pair}
    assert len(names) > PROPERTIES_OF_CASE
    assert not names & {"last row", "chunked prefill", "forgotten keys", "split keys", "block permutation"}


def test_only_an_oracle_limits_the_number_of_scores():
    blocks = tuple(range(4096))
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=16, num_blocks=4096)
    case = replace(STEP, group_size=8, requests=(Request(512, 65536, blocks, True),), cache=cache)
    contradictions.check(case)
    with pytest.raises(CaseError, match="134217728 scores at once"):
        try_case(case, REFERENCE_FP32, "cpu")
    attended: list[Step] = []
    target = judged_without_an_oracle(lambda *args, out, lse: attended.append(out))
    assert try_case(case, target, "cpu").kind == "unwritten"
    assert len(attended) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["one_hot", "signature", "random", "extreme"])
@pytest.mark.parametrize("rules", [{}, {"alibi_slopes": True, "sinks": "above"}, {"logits_soft_cap": 5.0, "qq_bias": "random"}])
def test_the_bound_holds_for_what_is_right_and_not_for_much_more(rules, kind, dtype):
    case = replace(SEEN, dtype=dtype, values=Values(kind, 11), **rules)
    step = written(case)
    arguments = (step.q, step.kv_cache, step.layer, step.batch)
    attn_reference.paged_attention(*arguments, out=step.out, lse=step.lse)
    exact, exact_lse = torch.zeros_like(step.out, dtype=torch.float32), torch.zeros_like(step.lse)
    layer = step.layer
    for request in attn_reference.paged_requests(*arguments, torch.float64):
        right = attn_reference.attend(request, layer)
        exact[request.rows], exact_lse[:, request.rows] = right.out.float(), right.lse.float()
    bound = ERROR(step)
    rows = len(bound.out)
    assert ((step.out[:rows].float() - exact[:rows]).abs() <= bound.out).all()
    assert (bound.lse >= (step.lse[:, :rows] - exact_lse[:, :rows]).abs().T).all()
    unit = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    largest = float(step.kv_cache[1].nan_to_num(nan=0.0).abs().max())
    assert bound.out.max() <= largest * (4 * unit + 2.0**-24 * 1e5), "it is a matter of rounding"


def shipped(step: Step, of_one_key_less: bool = False) -> None:
    """The batch-invariant kernels. Of a far window they may leave one key out."""
    layer = step.layer
    if of_one_key_less and step.batch.max_seq_len > 1 << 15:
        layer = dataclasses.replace(layer, window=(layer.window[0] - 1, layer.window[1]))
    attention = registry.load("triton@invariant").attention
    attention(step.q, step.k, step.v, step.kv_cache, layer, step.batch, out=step.out, lse=step.lse)


FAR = properties.far_keys(one_in=1)
OF_POSITIONS = {
    "a window": {"window": (4, -1)},
    "a chunk": {"chunked_local": 4},
    "slopes": {"alibi_slopes": True},
    "ranges": {"requests": tuple(replace(each, bidirectional_ranges=((2, 4), (5, 4))) for each in SEEN.requests)},
}


@pytest.mark.parametrize("name", OF_POSITIONS)
def test_keys_in_a_window_far_away_give_the_same_bits(name):
    assert FAR(written(replace(SEEN, **OF_POSITIONS[name])), shipped) is None


def test_a_key_that_is_left_out_far_away_is_found():
    message = FAR(written(SEEN), functools.partial(shipped, of_one_key_less=True))
    assert message is not None
    assert re.match("through a window of .* keys after 32768 keys: .* elements of ", message)


@pytest.mark.parametrize("recycled", [False, True])
def test_keys_that_no_query_selects_may_be_nan(recycled):
    """A false alarm once: a dense call of kernels that make no NaN of keys that are all NaN."""
    step = written(replace(SELECTED, selected="some", empty_selections=True, recycled=recycled))
    calls: list[Step] = []
    properties.all_selected(ERROR)(step, calls.append)
    assert bool(calls) is not recycled


def test_a_scale_whose_quarter_is_none_is_left_out():
    """A false alarm once: the contract has no scale below 2^-126 but 0."""
    calls: list[Step] = []
    for scale in (2.0**-125, -(2.0**-125), 2.0**-124):
        properties.scale_in_query()(written(replace(SEEN, scale=scale)), calls.append)
    assert [step.layer.scale for step in calls] == [2.0**-126]


def test_our_kernels_promise_these_properties():
    invariant = {each.name for each in registry.load("triton@invariant").properties}
    assert invariant == {"batch composition", "neighbour's rules", "chunked prefill", "far keys"}
    assert {each.name for each in registry.load("triton@properties").properties} == {each.name for each in ALL}


def test_an_output_that_was_rounded_up_to_the_smallest_normal_number_need_not_double():
    """2**-14 - 2**-25 is half way between two subnormals of float16; twice that is a number that float16 holds."""
    half_way = 2.0**-14 - 2.0**-25
    case = msgspec.structs.replace(SEEN, dtype="float16", writes=False)
    step = tensors.build(case)
    assert step.kv_cache is not None
    first = step.kv_cache[1].nan_to_num().abs().sum()

    def call_target(part: Step) -> None:
        assert part.kv_cache is not None
        part.out.fill_(half_way * float(part.kv_cache[1].nan_to_num().abs().sum() / first))

    call_target(step)
    assert float(step.out[0, 0, 0]) == 2.0**-14
    assert properties.doubled_values()(step, call_target) is None
    step.out.fill_(2.0**-13)
    assert properties.doubled_values()(step, call_target) is not None


GPUS = {"sm90": 132, "gfx942": 304, "gfx1100": 96, "gfx1201": 64}
LAUNCHED = {
    **STEPS,
    "an encoder of 65 tokens": replace(DENSE, dtype="float16", head_size=64, requests=(Request(65, 65),)),
    "a decode under a window": replace(
        STEP,
        dtype="float16",
        head_size=64,
        window=(70, -1),
        requests=requests((1, 700), (1, 900), (2, 1000)),
        cache=replace(STEP.cache, block_size=16, num_blocks=70),
    ),
    "long contexts": replace(
        STEP,
        dtype="float16",
        head_size=64,
        requests=requests((1, 900), (40, 1000)),
        cache=replace(STEP.cache, block_size=16, num_blocks=70),
    ),
    "more decodes than the interpreter looks at together": replace(
        STEP,
        dtype="float16",
        head_size=64,
        requests=requests((1, 900), (1, 30), (1, 30), (1, 30), (1, 30)),
        cache=replace(STEP.cache, block_size=16, num_blocks=70),
    ),
}
CAN_BE_LAUNCHED_OTHERWISE = {
    *("batch composition", "neighbour's rules", "chunked prefill", "padded batch", "wide window", "last row"),
    *("request order", "split keys"),
}
"""The variants of all other properties have the launch of their step, and in `forgotten keys` other keys."""


def with_other_launches(case: Case, architecture: str) -> set[str]:
    """Names of the properties of our kernels of which some variant has another launch than the step."""
    step = tensors.build(case)

    def launch(step: Step) -> object:
        return launch_of(step, architecture, GPUS[architecture])

    found: set[str] = set()
    for each in registry.load("triton@properties").properties:
        if each.name != "chunked prefill":  # its chunks are those of the device under test
            each(step, lambda part, each=each: found.add(each.name) if launch(part) != launch(step) else None)
    chunks = properties.chunked_prefill(lambda step: 3, ERROR)
    chunks(step, lambda part: found.add("chunked prefill") if launch(part) != launch(step) else None)
    return found


def test_bits_are_promised_only_where_no_variant_can_be_launched_otherwise():
    """On the GPU of no table, and so not on one GPU by chance."""
    otherwise = {name for case in LAUNCHED.values() for gpu in GPUS for name in with_other_launches(case, gpu)}
    promised = registry.load("triton@properties").properties
    bitwise = {each.name for each in promised if each.compared == properties.compared(None)}
    assert otherwise == CAN_BE_LAUNCHED_OTHERWISE
    assert not otherwise & bitwise


def test_a_wide_window_may_take_the_tiles_of_short_windows():
    """A false alarm once: an encoder of 65 tokens on an H200."""
    assert "wide window" in with_other_launches(LAUNCHED["an encoder of 65 tokens"], "sm90")


@pytest.mark.parametrize("same_launch", [True, False])
def test_another_launch_may_change_a_bit_and_no_more(same_launch):
    step = tensors.build(SEEN)
    step.out.zero_()
    step.lse.zero_()
    wide_window = properties.wide_window(ERROR, lambda step: "one" if same_launch else step.layer.window)

    def writes(number: float) -> Callable[[Step], None]:
        def call_target(part: Step) -> None:
            part.out.fill_(number)
            part.lse.zero_()

        return call_target

    assert wide_window(step, writes(0.0)) is None
    assert (wide_window(step, writes(2.0**-30)) is None) == (not same_launch)
    assert wide_window(step, writes(1.0)) is not None


IN_OTHER_BATCHES: dict[str, tuple[dict[str, object], Callable[[Call], object]]] = {
    "a wide table": (
        {"requests": requests((1, 3), (5, 11))},
        lambda c: c.scale_out(1.5, c.batch.block_table.shape[1] == 1),
    ),
    "no ranges": (
        {"requests": (requests((1, 5))[0], replace(requests((1, 5), (5, 11))[1], bidirectional_ranges=((0, 3),)))},
        lambda c: c.scale_out(1.5, c.batch.bidirectional_ranges is None),
    ),
    "a small tree": ({"qq_bias": "tree"}, lambda c: c.scale_out(1.5, len(c.batch.qq_bias) < 3)),
    "many requests": ({}, lambda c: c.scale_out(1.5, c.batch.num_requests > 4)),
    "a flag": ({"per_request_causal": True}, lambda c: c.scale_out(1.5, isinstance(c.batch.causal, bool))),
}
"""Faults that need something that a request alone has not, or a batch of more than its requests."""


@pytest.mark.parametrize("part", IN_OTHER_BATCHES)
def test_a_request_alone_has_only_what_it_needs_and_a_larger_batch_is_asked_too(part):
    changes, fault = IN_OTHER_BATCHES[part]
    assert "batch composition" in seen_by(replace(SEEN, **changes), fault)


def test_a_batch_with_each_request_twice_may_have_more_rows_than_lie_between_the_heads_of_the_lse():
    """A GPU's cases have so many rows: the heads of the larger batch's LSE would share memory."""
    many = replace(STEP, group_size=2, lse=True, requests=requests((150, 0)), cache=replace(STEP.cache, num_blocks=1))
    step = tensors.build(many)
    assert step.lse is not None
    assert step.lse.stride(0) < 300
    target = dataclasses.replace(REFERENCE_FP32, properties=(batch_composition(ERROR),))
    verdict = try_case(many, target, "cpu")
    assert (verdict.kind, verdict.events) == ("agree", ("batch composition",)), verdict.message


def test_equal_numbers_are_close_whatever_the_bound():
    """A bound of infinity times 0 is NaN."""
    numbers = torch.tensor([0.0, -torch.inf], dtype=torch.float64).view(1, 1, 2)
    bound = torch.full_like(numbers, torch.nan)
    one, allowed = (Outputs(each, None) for each in (numbers, bound))
    assert close(one, one, allowed) is None
    assert close(one, Outputs(numbers + 1, None), allowed) is not None

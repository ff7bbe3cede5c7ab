"""Kernels with one mistake, which are not made by the table of mistakes, and what explains their outputs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import attn_fuzz
import attn_reference
import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import mistakes
from attn_fuzz.cases import captures, case_file, tensors
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.corpus import files
from attn_fuzz.explain import captured_outputs, explanation
from attn_fuzz.explain.evidence import grown, seen
from attn_fuzz.explain.search import changed
from attn_fuzz.targets import Rounding, Target
from attn_fuzz.targets.support import EVERYTHING

CACHE = Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=4, num_blocks=6)
RAGGED = (
    Request(query_len=3, seq_len=11, blocks=(5, 2, 0), causal=True),
    Request(query_len=1, seq_len=7, blocks=(1, 3), causal=True),
)
PLAIN = Case(target="planted", num_kv_heads=2, group_size=2, scale=0.25, requests=RAGGED, cache=CACHE, values=Values("random"))
FLOAT8 = msgspec.structs.replace(CACHE, dtype="fp8_e4m3fnuz", scales="tensor")
SMALLEST = Case(
    target="planted",
    requests=(Request(query_len=1, seq_len=1, blocks=(0,), causal=True),),
    cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=1, num_blocks=1),
)


def _target(attention: Callable[..., None]) -> Target:
    return Target(
        name="planted",
        description="a kernel with a mistake",
        attention=attention,
        support=lambda device: EVERYTHING,
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=64),
    )


def _with(change: Callable[..., tuple[Any, ...]]) -> Target:
    """A kernel that attends to what a mistake makes of q, the cache, the layer and the batch."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        q, kv_cache, layer, batch = change(q, kv_cache, layer, batch)
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

    return _target(attention)


def _layer(**fields: Any) -> Target:
    return _with(lambda q, kv_cache, layer, batch: (q, kv_cache, dataclasses.replace(layer, **fields), batch))


def _batch(change: Callable[..., dict[str, Any]]) -> Target:
    return _with(lambda q, kv_cache, layer, batch: (q, kv_cache, layer, dataclasses.replace(batch, **change(batch))))


def _with_v_of_next_head(q, kv_cache, layer, batch):
    kv_cache = kv_cache.clone()
    kv_cache[:, 1] = kv_cache[:, 1].roll(-1, 2)
    return q, kv_cache, layer, batch


def _with_v_of_head_0(q, kv_cache, layer, batch):
    kv_cache = kv_cache.clone()
    kv_cache[:, 1] = kv_cache[:, 1, :, :1]
    return q, kv_cache, layer, batch


def _with_a_wider_window(q, kv_cache, layer, batch):
    left, right = layer.window
    return q, kv_cache, dataclasses.replace(layer, window=(left + (left >= 0), right)), batch


def _without_table(q, kv_cache, layer, batch):
    """Blocks beyond the cache are wild memory: here its last block."""
    blocks = batch.block_table[:, :1] + torch.arange(batch.block_table.shape[1], dtype=torch.int32)
    return q, kv_cache, layer, dataclasses.replace(batch, block_table=blocks.clamp(0, len(kv_cache) - 1))


def _explained(case: Case, target: Target) -> tuple[str, ...]:
    return explanation.explain(case, target, "cpu").explanation


def _case(**fields: Any) -> Case:
    return msgspec.structs.replace(PLAIN, **fields)


FOUR_TIMES = tuple(msgspec.structs.replace(request, seq_len=4 * request.seq_len - 1) for request in RAGGED)
MISTAKES = {
    "sinks": (_case(sinks="near"), _layer(sinks=None), "the sinks are dropped"),
    "window": (_case(window=(4, 0)), _with(_with_a_wider_window), "the window has one key more on the left than was asked"),
    "cap": (_case(logits_soft_cap=1.0), _layer(logits_soft_cap=None), "the soft cap is lost"),
    "scale": (PLAIN, _layer(scale=1.0), "the scale is left out"),
    "causal": (PLAIN, _batch(lambda batch: {"causal": False}), "the causal mask is lost"),
    "table": (
        PLAIN,
        _batch(lambda batch: {"block_table": batch.block_table[[0, 0]].contiguous()}),
        "every request reads by the first one's block table",
    ),
    "v": (PLAIN, _with(_with_v_of_next_head), "V is read from the next KV head"),
    "q_scale": (_case(q_scale="head", cache=FLOAT8), _layer(q_scale=torch.ones(1)), "q_scale is left out"),
    "no table": (
        PLAIN,
        _with(_without_table),
        "the block table is not followed: the blocks are taken to lie one after the other",
    ),
    "key_unit": (_case(key_unit=4, sinks="near", requests=FOUR_TIMES), _layer(sinks=None), "the sinks are dropped"),
    "selection_unit": (_case(selection_unit=1, sinks="near"), _layer(sinks=None), "the sinks are dropped"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name):
    case, target, sentence = MISTAKES[name]
    where, first, *_ = _explained(case, target)
    assert where.startswith("wrong in out: ")
    assert first.startswith("explanation: ")
    assert sentence in first


def test_no_richer_case_contradicts_itself():
    for name, case in [*files.shipped().items(), *((name, case) for name, (case, _, _) in MISTAKES.items())]:
        richer = case
        for grow in grown(case):
            richer = grow(richer)
            assert contradiction(richer) is None, name


def test_a_smallest_case_is_made_richer_until_few_mistakes_fit():
    case = msgspec.structs.replace(SMALLEST, sinks="zero", values=Values("exact"))
    assert _explained(case, _layer(sinks=None))[1:] == ("explanation: the sinks are dropped",)


def test_an_lse_of_base_2_is_named():
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        if lse is not None:
            lse[:, : batch.num_actual_tokens] /= math.log(2)

    where, first, *others = _explained(_case(lse=True), _target(attention))
    assert where.startswith("wrong in lse: all 4 rows (the first is row 0, request 0, position 8)")
    assert first == "explanation: the LSE is a logarithm of base 2"
    assert not others


def _rotating(change: Callable[..., Any]) -> Target:
    """A rotating cache write with other arguments; the reference attends."""

    def rotate(q, k, v, positions, table, kv_cache, layer, slots, *, is_neox):
        positions, is_neox = change(positions, is_neox)
        attn_reference.rope_and_write_kv_cache(q, k, v, positions, table, kv_cache, layer, slots, is_neox=is_neox)

    return dataclasses.replace(_layer(), rope_and_write_kv_cache=rotate)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda positions, is_neox: (positions, not is_neox), "rotated in pairs of dims of the other style"),
        (lambda positions, is_neox: ((positions - 1).clamp(min=0), is_neox), "rotated by one position too few"),
    ],
)
def test_a_wrong_rotation_is_named(change, sentence):
    (line,) = _explained(_case(rope=Rope(rotary_dim=8)), _rotating(change))
    assert line.startswith(f"explanation: K and q are {sentence}")


def test_an_exchange_in_a_cache_write_is_named():
    def write(k, v, kv_cache, layer, slots):
        attn_reference.write_kv_cache(v, k, kv_cache, layer, slots)

    target = dataclasses.replace(_layer(), write_kv_cache=write)
    assert _explained(PLAIN, target) == ("explanation: K is exchanged with V",)


def _writing(change: Callable[..., None]) -> Target:
    """A kernel that does `change(out, lse, batch)` to right results."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        change(out, lse, batch)

    return _target(attention)


def _with_heavier_tiles(tile: int, factor: float) -> Target:
    """A kernel whose weights of keys after the first tile have a factor, and all are divided by the right sum."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        for request in attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64):
            weights = attn_reference.attend(request, layer).weights[..., tile:] * (factor - 1)
            value = request.value[tile:].repeat_interleave(weights.shape[0] // request.value.shape[1], 1)
            out[request.rows] += torch.einsum("hqk,khd->qhd", weights, value).to(out.dtype)

    return _target(attention)


LONG = (Request(query_len=1, seq_len=40, blocks=tuple(range(10)), causal=True),)
MEASURED = {
    "all weights have a factor": (PLAIN, _writing(lambda out, lse, batch: out[: batch.num_actual_tokens].mul_(1.01))),
    "V read elsewhere: row 0, head 2 has that of KV head 0": (PLAIN, _with(_with_v_of_head_0)),
    "the weights of each 32 keys have a factor: row 0, head 0 has 1 from key 0 on, 3 from key 32 on": (
        _case(requests=LONG, cache=msgspec.structs.replace(CACHE, num_blocks=10)),
        _with_heavier_tiles(32, 3.0),
    ),
    "q.k has a factor: 1.7 in head 0": (PLAIN, _layer(scale=1.7 * PLAIN.scale)),
}


@pytest.mark.parametrize("words", MEASURED)
def test_what_no_mistake_explains_is_measured(words):
    case, target = MEASURED[words]
    _, line = _explained(case, target)
    assert line.startswith(f"explanation: {words}")


def test_an_lse_of_another_formula_is_measured():
    def change(out, lse, batch):
        if lse is not None:
            lse[:, : batch.num_actual_tokens] = 1.5 * lse[:, : batch.num_actual_tokens] + 0.25

    line = "explanation: the LSE is 1.5 * the largest logit + 1.5 * the logarithm of the sum of weights relative to it + 0.25"
    assert _explained(_case(lse=True), _writing(change))[1:] == (line,)


def test_what_only_the_smallest_cases_agree_with_is_a_guess():
    """The last key is lost where requests have few keys; with more, the output is another one."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        if batch.max_seq_len < 12:
            shorter = dataclasses.replace(batch, seq_lens=batch.seq_lens - 1, causal=False)
            attn_reference.paged_attention(q, kv_cache, layer, shorter, out=out, lse=lse)
        else:
            out[: batch.num_actual_tokens] += torch.arange(out.shape[-1])

    case = _case(requests=(Request(query_len=1, seq_len=3, blocks=(0,)),))
    _, line, *_ = _explained(case, _target(attention))
    assert line.startswith("perhaps: ")


def test_a_failure_that_no_mistake_explains_has_no_explanation():
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        out[0] *= 1 + 0.01 * torch.arange(out.shape[-1])

    lines = _explained(PLAIN, _target(attention))
    assert lines[0].startswith("wrong in out: row 0 of 4 (request 0, position 8); all 4 heads")
    assert lines[1:] == (f"no explanation: none of {len(mistakes.MISTAKES)} mistakes has this output in all wrong rows",)


@pytest.mark.parametrize("hint", ["sums='q' or outputs='q'", None])
def test_a_rounding_that_is_not_declared_is_asked_for(hint):
    """An output that is summed up in float16, and one that is wrong by more."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        out[0, :, ::2] *= 1 + 2**-9 if hint else 1 + 2**-4

    lines = _explained(msgspec.structs.replace(PLAIN, dtype="float16"), _target(attention))
    assert lines[1].startswith("no explanation")
    said = f"a Rounding with {hint} would allow every number: does the kernel round there?"
    assert lines[2:] == ((said,) if hint else ())


def test_nan_of_a_hidden_key_is_told_from_a_wrong_number():
    """A key outside of the window is multiplied by its weight of 0."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
        out += 0 * kv_cache[batch.block_table[0, 0].long(), 1, 0].sum()

    case = msgspec.structs.replace(_case(window=(2, 0)), recycled=True)
    (line,) = _explained(case, _target(attention))
    assert line == explanation.READS_HIDDEN


def test_a_right_kernel_has_nothing_to_explain():
    assert _explained(PLAIN, _layer()) == ()


def test_a_recorded_wrong_call_keeps_its_output(tmp_path):
    step = tensors.build(_case(window=(4, 0), writes=False))
    call = attn_fuzz.Call(q=step.q, kv_cache=step.kv_cache, layer=step.layer, batch=step.batch)
    wrong = dataclasses.replace(step.layer, window=(5, 0))
    out = attn_reference.paged_attention(step.q, step.kv_cache, wrong, step.batch)
    with attn_fuzz.recording(tmp_path) as recording:
        recording.see(call, out)
    (found,) = recording.found
    case = case_file.load(found.case)
    verdict = captured_outputs.verdict(case, explains=True)
    assert verdict.message == found.judgement.message
    assert verdict.message.endswith("; 3 rows are wrong, the first is row 0")
    # one output
    assert verdict.explanation[1] == "perhaps: the window has one key more on the left than was asked"


def test_an_output_beyond_the_bound_is_not_kept(tmp_path, monkeypatch):
    step = tensors.build(PLAIN)
    call = attn_fuzz.Call(q=step.q, kv_cache=step.kv_cache, layer=step.layer, batch=step.batch)
    monkeypatch.setattr(captures, "KEPT_ELEMENTS", step.q.numel() - 1)
    path = attn_fuzz.capture(call, tmp_path / "call.json", out=torch.zeros_like(step.q))
    assert captured_outputs.verdict(case_file.load(path)) is None


@pytest.mark.parametrize("attn_type", [AttentionType.DECODER, AttentionType.ENCODER])
def test_no_variant_has_the_right_output_by_another_way_of_computing_it(attn_type):
    """Each change leaves the shapes of the results as they are, or says that it cannot be made."""
    case = _case(window=(4, 1), sinks="near", logits_soft_cap=2.0, alibi_slopes=True, lse=True)
    if attn_type is AttentionType.ENCODER:
        dense = tuple(Request(query_len=n, seq_len=n) for n in (5, 3))
        case = msgspec.structs.replace(case, attn_type=attn_type, cache=None, requests=dense)
    found = seen(case, _target(lambda q, k, v, kv_cache, layer, batch, *, out, lse: None), "cpu")
    made = 0
    for part in found.parts:
        for mistake in mistakes.MISTAKES:
            for other in changed(part, mistake):
                assert found.agrees(other).shape == found.agrees(part).shape, mistake.sentence
                made += 1
    assert made > 100

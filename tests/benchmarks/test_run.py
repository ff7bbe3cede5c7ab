"""Wrong participants are named and not timed; results before an error, an interrupt or the end are kept."""

import dataclasses
import time

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import UnsupportedError

from benchmarks.measuring.clock import Budget
from benchmarks.measuring.machine import Rates
from benchmarks.participants.attention import OURS, Participant, Prepared, sdpa
from benchmarks.speed import ahead, run
from benchmarks.speed.results import Run, read
from benchmarks.steps.cases import CASES, Attention

CPU = torch.device("cpu")
RATES = Rates(read=4e12, copy=4e12, matmul=6e14, launch=1e-3)
BY_NAME = {case.name: case.tiny() for case in CASES}
DECODE = BY_NAME["decode, 64 x 8k"]
# a cap bends the largest of many logits, and few have none that are large
CAPPED = dataclasses.replace(BY_NAME["prefill, soft cap 50, H16/HK8 D256, 2 x 4k"], query_lens=(8,), seq_lens=(2000,))


def reference(*, tables_rolled: bool = False, **forgotten) -> Participant:
    """The reference under our name, with fields of the layer replaced."""

    def prepare(call):
        layer, batch = dataclasses.replace(call.layer, **forgotten), call.batch
        if tables_rolled:
            batch = dataclasses.replace(batch, block_table=batch.block_table.roll(1, dims=0))
        out = torch.full_like(call.q[..., : call.layer.v_head_size], torch.nan, memory_format=torch.contiguous_format)
        if call.kv_cache is None:
            attend, keys = attn_reference.varlen_attention, (call.k, call.v)
        else:
            attend, keys = attn_reference.paged_attention, (call.kv_cache,)
        return Prepared(lambda: attend(call.q, *keys, layer, batch, out=out), lambda _: out)

    return Participant(OURS, prepare)


def measured(case, *participants):
    return run.measured(case, participants, CPU, RATES, sizes=run.TINY, case_seconds=1.0).results


@pytest.mark.parametrize("case", [case for case in BY_NAME.values() if isinstance(case, Attention)], ids=lambda case: case.name)
def test_the_reference_is_right_in_every_case(case):
    ours = measured(case, reference())[OURS]
    assert ours.verdict == "measured"
    assert ours.error is not None
    assert ours.error < run.check.MAX_ERROR / 2
    assert ours.time is not None
    assert ours.time.ms > 0


@pytest.mark.parametrize(
    ("name", "function", "wrong"),
    [
        ("index logits, 8 x 128k", "index_logits", lambda logits: logits * 1.05),
        ("index selection, 8 x 128k", "select", lambda selected: torch.nn.functional.pad(selected[..., :-1], (0, 1), value=-1)),
    ],
)
def test_a_wrong_index_layer_is_reported_and_not_timed(name, function, wrong, monkeypatch):
    """One key that is not chosen is enough."""
    right = measured(BY_NAME[name])
    assert {who: result.verdict for who, result in right.items() if result.verdict != "refused"} == dict.fromkeys(
        (OURS, "torch.topk") if function == "select" else (OURS,), "measured"
    )
    ours = getattr(attn_optimized, function)
    monkeypatch.setattr(attn_optimized, function, lambda *arguments: wrong(ours(*arguments)))
    found = measured(BY_NAME[name])[OURS]
    assert (found.verdict, found.time) == ("wrong", None)


def test_dense_attention_is_right_on_what_it_can_express():
    dense = Participant("SDPA flash", lambda call: sdpa("SDPA flash", call))
    results = measured(DECODE, dense)
    assert results["SDPA flash"].verdict == "measured"
    results = measured(BY_NAME["decode, ragged 64 x 256..16k"], dense)
    assert results["SDPA flash"].verdict == "refused"
    assert "different lengths" in results["SDPA flash"].why


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (DECODE, reference(tables_rolled=True)),
        (DECODE, reference(scale=128**-0.5 * 1.05)),
        (BY_NAME["decode, H64/HK8/D64 + sinks, 64 x 8k"], reference(sinks=None)),
        (BY_NAME["decode, H64/HK8/D64 + sinks + window 128, 64 x 8k"], reference(window=(-1, -1))),
        (BY_NAME["prefill, window 1k, 2 x 8k"], reference(window=(8, 8))),
        (CAPPED, reference(logits_soft_cap=None)),
        (BY_NAME["decode, fp8 cache, 64 x 8k"], reference(v_scale=torch.tensor(0.023))),
    ],
    ids=["another request's blocks", "scale", "sinks", "window", "one key more", "soft cap", "K's scale for V"],
)
def test_a_wrong_participant_is_reported_and_not_timed(case, wrong):
    results = measured(case, wrong, Participant("right", reference().prepare))
    assert results[OURS].verdict == "wrong"
    assert results[OURS].time is None
    assert "relative error" in results[OURS].why
    assert results["right"].time is not None


def test_a_row_left_out_is_wrong_even_if_it_is_not_sampled():
    many = dataclasses.replace(BY_NAME["prefill, 1 x 16k"], query_lens=(200,), seq_lens=(200,))
    sampled = run.check.sampled_rows(run.attention_call(many, CPU, seed=0))
    missed = next(row for row in range(200) if row not in sampled)

    def prepare(call):
        right = reference().prepare(call)

        def output(out):
            return right.output(out).index_fill(0, torch.tensor([missed]), torch.nan)

        return Prepared(right.run, output)

    result = measured(many, Participant(OURS, prepare))[OURS]
    assert (result.verdict, result.error) == ("wrong", None)


def test_a_participant_that_writes_in_its_first_calls_alone_is_wrong():
    """A kernel may leave behind the counter by which it deals out its work."""

    def prepare(call):
        right, made = reference().prepare(call), []

        def run() -> object:
            made.append(None)
            return right.run() if len(made) < 2 else right.output(None)

        return Prepared(run, right.output)

    result = measured(DECODE, Participant(OURS, prepare))[OURS]
    assert (result.verdict, result.time) == ("wrong", None)


def test_one_participants_error_is_not_the_others():
    def refuses(call):
        raise UnsupportedError("the participant", "this", "it says so")

    def raises():
        raise RuntimeError("out of\nregisters")

    results = measured(
        DECODE,
        reference(),
        Participant("refuses", refuses),
        Participant("raises", lambda call: Prepared(raises, lambda out: out)),
    )
    assert {name: result.verdict for name, result in results.items()} == {
        OURS: "measured",
        "refuses": "refused",
        "raises": "failed",
    }
    assert results["raises"].why == "RuntimeError: out of registers"


def measure(cases, participants, *, json_file=None, seconds=60.0, fatal=None):
    found = Run(of_value=False, machine="CPU", versions={}, command="", commit="", rates=RATES)
    budget = Budget(time.monotonic(), seconds)
    run.measure(found, cases, participants, CPU, sizes=run.TINY, budget=budget, json_file=json_file, fatal=fatal)
    return found


def test_each_case_is_saved_and_an_interrupt_keeps_them(tmp_path):
    second = BY_NAME["decode, 1 x 128k"]

    def prepare(call):
        if call.case is second:
            raise KeyboardInterrupt
        return reference().prepare(call)

    with pytest.raises(KeyboardInterrupt):
        measure([DECODE, second], [Participant(OURS, prepare)], json_file=tmp_path / "run.json")
    found = read(tmp_path / "run.json")
    assert [case.name for case in found.cases] == [DECODE.name]
    assert found.unmeasured == [second.name]


def test_cases_without_time_are_named():
    found = measure([DECODE], [reference()], seconds=1e-9)
    assert not found.cases
    assert found.unmeasured == [DECODE.name]
    assert found.host_us.keys() == {OURS}


def test_a_call_that_would_take_the_gpu_is_not_made():
    made = []
    fatal = Participant("fatal", lambda call: made.append(call.case.name) or reference().prepare(call))
    found = measure([DECODE], [reference(), fatal], fatal={(DECODE.name, "fatal"): "an illegal access"})
    results = found.cases[0].results
    assert (results["fatal"].verdict, results["fatal"].why) == ("failed", "an illegal access")
    assert DECODE.name not in made
    assert results[OURS].verdict == "measured"


def test_a_call_that_takes_the_gpu_is_named_and_its_process_makes_no_more(monkeypatch):
    states = iter([None, "an illegal access"])
    made = []
    monkeypatch.setattr(ahead, "why_gone", lambda: next(states, "an illegal access"))
    monkeypatch.setattr(ahead, "_participants", [Participant("one", made.append), Participant("two", made.append)])
    assert ahead._call_once(DECODE) == ahead.Fatal(DECODE.name, "one", "an illegal access")
    assert len(made) == 1
    assert ahead._call_once(DECODE) is None
    assert len(made) == 1

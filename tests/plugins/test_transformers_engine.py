"""Continuous batching of transformers on our attention, and recordings of its own attention."""

import contextlib
import dataclasses
import functools
import json
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from attn_contract import Batch, ContractError

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")
pytest.importorskip("msgspec", reason="needs the extra fuzz: recordings are cases")

import attn_reference
import attn_transformers
from attn_transformers.attention import attention
from attn_transformers.engine_pages import EnginePages
from attn_transformers.registration import whole_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.nightly import ENGINE
from tests.plugins import tiny_models
from tests.plugins.engine import served
from tests.plugins.tiny_models import prompts, tiny
from tests.support.pages import ROOT

pytestmark = pytest.mark.usefixtures("registered")


def ragged_requests(number: int) -> list[list[int]]:
    """Prompts of 2 to 25 tokens; two of three begin with up to 19 tokens that they share."""
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randint(4, 64, (20,), generator=generator).tolist()
    tails = [torch.randint(4, 64, (2 + i % 5,), generator=generator).tolist() for i in range(number)]
    return [(prefix[: 16 + i % 4] if i % 3 else []) + tail for i, tail in enumerate(tails)]


OTHERS = (("gemma3", "sdpa"), ("gemma3n", "sdpa"), ("mistral", "paged|eager"), ("gemma3n", "paged|eager"))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("mistral", "sdpa"), ("gpt_oss", "paged|eager"), *(pytest.param(*each, marks=pytest.mark.nightly) for each in OTHERS)],
)
def test_continuous_batching_generates_the_same(name, implementation):
    model, requests = tiny(name), ragged_requests(12)
    model.set_attn_implementation(implementation)
    theirs = served(model, requests)
    assert [len(tokens) for tokens in theirs] == [5] * 12
    with attn_transformers.replacing(implementation):
        assert served(model, requests) == theirs


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "implementation"), [("mistral", "sdpa"), ("llama", "sdpa"), ("llama", "paged|eager")])
def test_continuous_batching_of_hundreds_of_requests(name, implementation):
    """It takes 10 seconds: only many requests come and go in all orders, and find shared pages that others have left."""
    model, requests = tiny(name), ragged_requests(200)
    model.set_attn_implementation(implementation)
    theirs = served(model, requests, step=256)
    with attn_transformers.replacing(implementation):
        assert served(model, requests, step=256) == theirs


@pytest.fixture
def on_pages(monkeypatch):
    """The calls of paged attention by the reference whose cache is not one of the call's own: each its cache and its batch."""
    calls, paged = [], attn_reference.paged_attention

    def noted(q, kv_cache, layer, batch):
        if kv_cache.shape[2] > 1:
            calls.append((kv_cache, batch))
        return paged(q, kv_cache, layer, batch)

    monkeypatch.setattr(attn_reference, "paged_attention", noted)
    return calls


@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("paged|eager", marks=pytest.mark.nightly)])
def test_attention_reads_the_pages_of_the_engine_and_requests_share_those_of_a_common_prefix(implementation, on_pages):
    """Prefixes of two pages are shared. The pages of both layers are views of the engine's one allocation."""
    model, requests = tiny("llama"), ragged_requests(12)
    model.set_attn_implementation(implementation)
    theirs = served(model, requests)
    with attn_transformers.replacing(implementation):
        assert served(model, requests) == theirs
    assert len({kv_cache.untyped_storage().data_ptr() for kv_cache, _ in on_pages}) == 1
    assert len({kv_cache.data_ptr() for kv_cache, _ in on_pages}) == 2
    assert {kv_cache.shape[1:] for kv_cache, _ in on_pages} == {(2, 8, 2, 16)}
    shared = 0
    for _, batch in on_pages:
        pages = -(-batch.seq_lens // 8)
        tables = [row[:count].tolist() for row, count in zip(batch.block_table, pages.tolist(), strict=True)]
        assert all(len(set(table)) == len(table) for table in tables)
        firsts = [tuple(table[:2]) for table in tables if len(table) > 2]
        shared += len(firsts) - len(set(firsts))
    assert shared > 10


KEY_ROWS = {
    "two pages, the last one in part": ([32, 33, 34, 35, 0, 1], [2, 0]),
    "a ring": ([34, 35, 32, 33], None),
    "a page from its middle on": ([33, 34, 35, 0], None),
    "keys of two blocks by turns": ([32, 1, 34, 3], None),
    "rows after a page's last slot": ([36, 37], None),
}


@pytest.mark.parametrize(("rows", "expected"), KEY_ROWS.values(), ids=KEY_ROWS)
def test_keys_are_a_list_of_pages_in_the_order_of_their_slots_alone(rows, expected):
    """Pages of 4 slots in blocks of 16 rows."""
    batch = Batch(
        query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=torch.tensor([len(rows)], dtype=torch.int32),
        max_query_len=1,
        max_seq_len=len(rows),
        num_actual_tokens=1,
        causal=True,
        block_table=torch.arange(len(rows), dtype=torch.int32)[None],
    )
    step = SimpleNamespace(batch=batch, q=torch.zeros(1, 1, 8))
    found = EnginePages(torch.zeros(3, 2, 4, 1, 8), torch.tensor(rows), rows_of_block=16).batch(step)
    assert (found and found.block_table.tolist()) == (expected and [expected])


def test_a_page_that_is_not_the_requests_own_changes_the_tokens(on_pages, monkeypatch):
    """The tokens come from the pages, and not from what the engine gathers of them."""
    model, requests = tiny("llama"), ragged_requests(6)
    model.set_attn_implementation("sdpa")
    theirs, batch_of = served(model, requests), EnginePages.batch

    def of_others(pages, step):
        batch = batch_of(pages, step)
        return batch and dataclasses.replace(batch, block_table=batch.block_table.flip(0))

    monkeypatch.setattr(EnginePages, "batch", of_others)
    with attn_transformers.replacing("sdpa"):
        assert served(model, requests) != theirs
    assert on_pages


def test_the_kernels_read_the_pages_of_the_engine():
    """Few tokens: where there is no GPU, the kernels are interpreted."""
    pytest.importorskip("triton")
    model, requests = tiny("llama"), [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [5, 6, 7, 8, 9, 10, 11, 12, 20]]
    model.set_attn_implementation("sdpa")
    theirs = served(model, requests, new_tokens=2)
    with attn_transformers.replacing("sdpa", "attn_parity_triton"):
        assert served(model, requests, new_tokens=2) == theirs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="interpreted, it takes an hour")
@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_continuous_batching_of_hundreds_of_requests_by_the_kernels(name):
    model, requests = tiny(name).to("cuda"), ragged_requests(200)
    model.set_attn_implementation("sdpa")
    theirs = served(model, requests, step=256)
    with attn_transformers.replacing("sdpa", "attn_parity_triton"):
        assert served(model, requests, step=256) == theirs


@pytest.mark.parametrize(("implementation", "is_causal"), [("sdpa", True), ("eager", False), ("paged|eager", False)])
def test_a_missing_mask_means_what_it_means_to_the_implementation_that_is_replaced(implementation, is_causal):
    query, key, value = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    with attn_transformers.replacing(implementation):
        function = AttentionInterface().get_interface(implementation, sdpa_attention_forward)
        found, _ = function(torch.nn.Module(), query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("implementation", "is_causal"), [("sdpa", True), ("eager", False)])
def test_a_recording_knows_what_a_missing_mask_means_to_an_implementation(implementation, is_causal, tmp_path):
    def theirs(module, query, key, value, mask, **arguments):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        return out.transpose(1, 2), None

    states = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    with attn_transformers.recording(tmp_path, implementation) as recording:
        AttentionInterface().get_interface(implementation, theirs)(torch.nn.Module(), *states, None)
    assert (recording.judged, recording.wrong) == (1, 0)


def test_every_model_of_the_engine_is_a_command_of_the_nightly_part():
    assert list(ENGINE) == list(tiny_models.ENGINE)


def test_replacing_names_what_it_can_replace_by():
    with pytest.raises(ContractError, match="by: got 'triton', expected one of attn_parity, attn_parity_triton"):
        attn_transformers.replacing("sdpa", by="triton").__enter__()


@pytest.mark.parametrize(
    ("name", "implementation"), [("gpt_oss", "eager"), ("whisper", "eager"), ("mistral", "sdpa"), ("bart", "sdpa")]
)
def test_a_recording_finds_transformers_own_attention_right(name, implementation, tmp_path):
    model = tiny(name)
    model.set_attn_implementation(implementation)
    with attn_transformers.recording(tmp_path, implementation) as recording:
        inputs = prompts((7, 4, 9))
        if name == "whisper":
            inputs = {"input_features": torch.randn(2, 8, 16), "decoder_input_ids": torch.tensor([[3, 4, 5]] * 2)}
        elif name == "bart":
            inputs["decoder_input_ids"] = torch.tensor([[3, 4]] * 3)
        model(**inputs)
    assert recording.calls == recording.judged == {"gpt_oss": 2, "whisper": 6, "mistral": 2, "bart": 6}[name]
    assert (recording.wrong, recording.found) == (0, [])


def without_sinks(q, kv_cache, layer, batch):
    return attn_reference.paged_attention(q, kv_cache, dataclasses.replace(layer, sinks=None), batch)


FORGETTING_SINKS = SimpleNamespace(write_kv_cache=attn_reference.write_kv_cache, paged_attention=without_sinks)


def test_a_recording_keeps_the_calls_of_a_wrong_attention_as_cases(tmp_path, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", functools.partial(attention, FORGETTING_SINKS))
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", whole_mask)
    model = tiny("gpt_oss")
    model.set_attn_implementation("mine")
    with attn_transformers.recording(tmp_path, "mine", limit=1) as recording:
        model.generate(**prompts((7, 4, 9)), max_new_tokens=2, do_sample=False)
    assert recording.wrong == recording.calls == 4
    (found,) = recording.found
    case = json.loads(found.case.read_text())
    assert (case["window"], case["sinks"], len(case["requests"])) == ([3, 3], "near", 3)
    assert found.judgement.message.startswith("out of request 0 at row 0")


@pytest.mark.parametrize(("place", "code"), [(contextlib.nullcontext(), 1), (attn_transformers.replacing("paged|eager"), 0)])
def test_the_script_of_the_soft_cap_that_is_forgotten(place, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the script has one of its own
    with place, pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "findings" / "transformers" / "paged-eager-soft-cap.py"))
    assert end.value.code == code
    assert ("what was got: True" in capsys.readouterr().out) == bool(code)


def test_the_script_of_the_mask_with_one_entry_for_all_keys(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "findings" / "transformers" / "minimax-decode-mask.py"))
    assert end.value.code == 1


def test_continuous_batching_forgets_the_soft_cap_on_paged_eager(tmp_path):
    """A bug of transformers, which serves Gemma 2 without its cap: a recording finds it."""
    model, requests = tiny("gemma2"), ragged_requests(4)
    model.set_attn_implementation("paged|eager")
    with attn_transformers.recording(tmp_path, "paged|eager", limit=1) as recording:
        theirs = served(model, requests)
    assert recording.wrong == recording.judged > 4
    assert json.loads(recording.found[0].case.read_text())["logits_soft_cap"] == 2.0
    model.set_attn_implementation("eager")
    one_by_one = [
        model.generate(torch.tensor([request]), max_new_tokens=5, do_sample=False, eos_token_id=-1)[0, len(request) :].tolist()
        for request in requests
    ]
    model.set_attn_implementation("paged|eager")
    with attn_transformers.replacing("paged|eager"):
        assert served(model, requests) == one_by_one != theirs


def test_a_recording_of_continuous_batching_leaves_its_tokens_as_they_are(tmp_path):
    model, requests = tiny("mistral"), ragged_requests(6)
    model.set_attn_implementation("sdpa")
    theirs = served(model, requests)
    with attn_transformers.recording(tmp_path, "sdpa") as recording:
        assert served(model, requests) == theirs
    assert recording.wrong == 0 < recording.judged


def test_a_recording_says_what_it_cannot_judge(tmp_path, monkeypatch):
    def with_weights(*args, output_attentions=False, **kwargs):
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", functools.partial(with_weights, output_attentions=True))
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", whole_mask)
    model = tiny("mistral")
    model.set_attn_implementation("mine")
    with pytest.warns(UserWarning, match="was not judged") as caught, attn_transformers.recording(tmp_path, "mine"):
        model(**prompts((4,)), lookback=3)
    messages = " ".join(str(one.message) for one in caught)
    assert "a call of mine was not judged: attn_transformers: lookback (3) not supported" in messages
    assert (
        "NO CALL of attn_implementation='mine' WAS JUDGED: 2 could not be, the first because of: attn_transformers" in messages
    )


def test_an_error_of_a_recording_ends_no_program(tmp_path, monkeypatch):
    def failing(*args, **options):
        raise IndexError("of its own")

    monkeypatch.setattr("attn_transformers.arguments.read", failing)
    model = tiny("mistral")
    model.set_attn_implementation("sdpa")
    expected = model(**prompts((4,))).logits
    with pytest.warns(UserWarning, match="NO CALL"), attn_transformers.recording(tmp_path, "sdpa") as recording:
        assert torch.equal(model(**prompts((4,))).logits, expected)
    assert recording.not_judged == {"IndexError: of its own": 2}


def test_a_recording_says_that_an_output_has_another_shape(tmp_path, monkeypatch):
    """Heads and queries in the wrong order: the model reshapes such an output without an error."""
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        "mine",
        lambda *args, **kwargs: (sdpa_attention_forward(*args, **kwargs)[0].mT, None),
    )
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", whole_mask)
    model = tiny("mistral")
    model.set_attn_implementation("mine")
    none = "WAS JUDGED: 2 could not be, the first because of: out: got shape"
    with pytest.warns(UserWarning, match=none), attn_transformers.recording(tmp_path, "mine") as recording:
        model(**prompts((6,)))
    assert recording.found
    assert all(one.error.startswith("out: got shape (1, 6, 16, 4), expected (6, 4, 16)") for one in recording.found)


@pytest.mark.parametrize("name", ["bloom", "mistral"])
def test_a_recording_that_sees_no_call_says_so(name, tmp_path):
    model = tiny(name)
    nothing = "NO CALL of attn_implementation='sdpa' WAS JUDGED: no model asked for it, or"
    with pytest.warns(UserWarning, match=nothing), attn_transformers.recording(tmp_path, "sdpa"):
        model(**prompts((4,)))

"""Recordings of vLLM's own backends: their code runs, with Triton kernels interpreted, and wrong kernels are found."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

import attn_vllm
import attn_vllm_recording
from attn_contract import Batch, Layer, Layout
from attn_fuzz.shadow import FaultKind
from attn_vllm_recording import VARIABLE, backends, excerpt, watching
from attn_vllm_recording.errors import NotJudgedError
from attn_vllm_recording.settings import Settings
from attn_vllm_recording.summary import Summary
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.attention.cross_attention import create_cross_attention_backend
from vllm.model_executor.layers.attention.encoder_only_attention import create_encoder_only_attention_backend
from vllm.v1.attention.backends import flash_attn, triton_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from tests.plugins import vllm_kernels
from tests.plugins.vllm_model import HEAD_SIZE, NUM_HEADS, NUM_KV_HEADS, STEPS, Model, common_of, rows, served, spec_and_cache

FOR_LAYOUTS = [KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.BHLNC]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    vllm_kernels.interpret(monkeypatch)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The recording of this process, which judges every call of the models that are built from now on."""
    monkeypatch.setattr(GPUModelRunner, "execute_model", lambda self, scheduled: self.run())
    monkeypatch.setattr(SecondModelRunner, "prepare_inputs", lambda self: self.inputs)
    monkeypatch.setattr(SecondModelRunner, "execute_model", lambda self, scheduled: self.prepare_inputs() and self.run())
    return vllm_kernels.recorded(monkeypatch, tmp_path)


def assert_right(recorded, calls: int = 3) -> None:
    assert (recorded.calls, recorded.judged, recorded.wrong, recorded.not_judged) == (calls, calls, 0, {})
    assert 0 < recorded.ratio < 1


@pytest.mark.parametrize("layout", FOR_LAYOUTS, ids=lambda layout: layout.name)
def test_outputs_are_those_without_a_recording(layout, tmp_path):
    alone = served("TRITON_ATTN", layout=layout, per_layer_sliding_window=4, logits_soft_cap=2.0)
    with pytest.MonkeyPatch.context() as undone:
        recording = vllm_kernels.recorded(undone, tmp_path)
        together = served("TRITON_ATTN", layout=layout, per_layer_sliding_window=4, logits_soft_cap=2.0)
        assert_right(recording)
    assert together.equal(alone)


@pytest.mark.parametrize("runner", [GPUModelRunner, SecondModelRunner], ids=["first runner", "second runner"])
@pytest.mark.parametrize(
    ("last_table", "altered", "fault"),
    [
        ([[5, 2, 9], [3, 11, 7]], None, None),
        ([[5, 2, 9], [5, 11, 7]], None, (FaultKind.OTHER_REQUEST, "b", 0, 5 * 16)),
        ([[5, 2, 9], [3, 11, 7]], 5, (FaultKind.ALTERED, "a", 0, 5 * 16)),
    ],
    ids=["right", "a block of another", "bytes of a block"],
)
def test_blocks_of_steps_are_held_to_what_was_written(last_table, altered, fault, runner, recorded):
    """vLLM's layer and metadata, in steps of a model runner that is not vLLM's: its hooks are."""
    backend = AttentionBackendEnum.TRITON_ATTN.get_class()
    spec, kv_cache = spec_and_cache(backend)
    model, generator, lengths = Model(backend, spec, kv_cache=kv_cache), torch.Generator().manual_seed(0), [0, 0]
    for index, counts in enumerate(STEPS):
        new = [
            SimpleNamespace(req_id=name, prompt_token_ids=[1] * n, num_computed_tokens=0, lora_request=None, mm_features=[])
            for name, n in zip("ab", counts, strict=True)
        ]
        cached = SimpleNamespace(req_ids=list("ab"), resumed_req_ids=set(), num_computed_tokens=list(lengths))
        none = SimpleNamespace(req_ids=[], resumed_req_ids=set(), num_computed_tokens=[])
        scheduled = SimpleNamespace(
            finished_req_ids=set(),
            scheduled_spec_decode_tokens={},
            scheduled_new_reqs=[] if index else new,
            scheduled_cached_reqs=cached if index else none,
        )
        lengths = [n + count for n, count in zip(lengths, counts, strict=True)]
        table = torch.tensor(last_table if index == 2 else [[5, 2, 9], [3, 11, 7]]).int()
        common = common_of(counts, lengths, table, model.device, block_size=16)
        q, k, v = (rows(generator, sum(counts), heads, model.device) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS))
        if index == 2 and altered is not None:
            kv_cache[altered] += 1
        stand_in = SimpleNamespace(
            vllm_config=SimpleNamespace(kv_transfer_config=None, scheduler_config=SimpleNamespace(async_scheduling=False)),
            run=functools.partial(model.step, q, k, v, common),
        )
        rows_of_step = SimpleNamespace(req_ids=list("ab"))
        if runner is GPUModelRunner:
            stand_in.input_batch = rows_of_step
        else:
            stand_in.inputs = rows_of_step
            stand_in.prepare_inputs = functools.partial(runner.prepare_inputs, stand_in)
        runner.execute_model(stand_in, scheduled)
    assert (recorded.calls, recorded.wrong) == (3, 0)  # attention is right, over the keys that it is handed
    shadow = watching.current().blocks.shadow
    assert (shadow.reads, shadow.not_seen) == (6, {})
    found = [(first.kind, first.request, first.position, first.slot, first.writer.request) for first in shadow.faults]
    assert found == ([] if fault is None else [(*fault, "a")])


@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache_dtype": "fp8"},
        {"kv_cache_dtype": "int8_per_token_head"},
        {"kv_cache_dtype": "fp8_per_token_head"},
        {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0]), "per_layer_sliding_window": 4},
        {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_triton_attn_is_right(options, recorded):
    served("TRITON_ATTN", **options)
    assert_right(recorded)


@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.LHBNC], ids=lambda layout: layout.name)
def test_rocm_attn_is_right(layout, recorded):
    """Its pages are those of AMD's kernels; its Triton kernels run."""
    served("ROCM_ATTN", layout=layout, per_layer_sliding_window=4)
    assert_right(recorded)


def test_flash_attn_is_right(recorded, monkeypatch):
    vllm_kernels.stand_in_for_flash_attention(monkeypatch)
    served("FLASH_ATTN", per_layer_sliding_window=4)
    assert_right(recorded)


@pytest.mark.parametrize(
    ("name", "steps"), [("ROCM_AITER_UNIFIED_ATTN", STEPS), ("ROCM_AITER_FA", ([5, 17], [1, 1]))], ids=lambda one: str(one)
)
def test_aiters_backends_are_right(name, steps, recorded, monkeypatch):
    vllm_kernels.stand_in_for_aiter(monkeypatch)
    served(name, steps=steps)
    assert_right(recorded, len(steps))
    assert watching.current().calls == {name: len(steps)}


of_ours = pytest.mark.parametrize("name", ["PARITY_TRITON", "PARITY_REFERENCE"])


@of_ours
def test_our_backends_are_right(name, recorded):
    """And attend to the keys to which vLLM's own does."""
    attn_vllm.register()
    served(name, kv_cache_dtype="fp8")
    assert_right(recorded)
    ours, theirs = (served(one, per_layer_sliding_window=4) for one in (name, "TRITON_ATTN"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_float8_output_is_right_as_vllms_engine_calls(recorded):
    """In inference mode, in which tensors must not be kept for gradients."""
    model = model_of(triton_attn.TritonAttentionBackend)
    common = step_of_a_block(model, [2, 3])
    q, k, v = (torch.randn(5, heads, HEAD_SIZE) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS))
    layer, metadata = model.attention, model.builder.build(0, common)
    output = torch.zeros(q.shape, dtype=torch.float8_e4m3fn)
    with torch.inference_mode():
        layer.impl.do_kv_cache_update(layer, k, v, layer.kv_cache, common.slot_mapping)
        layer.impl.forward(layer, q, k, v, layer.kv_cache, metadata, output=output, output_scale=torch.tensor([0.01]))
    assert_right(recorded, 1)


def test_a_wrong_kernel_is_found(recorded, monkeypatch):
    """A window of one key more, in vLLM's own Triton kernel."""
    monkeypatch.setattr(triton_attn, "unified_attention", vllm_kernels.with_wider_window(triton_attn.unified_attention))
    served("TRITON_ATTN", per_layer_sliding_window=4)
    assert (recorded.judged, recorded.wrong) == (3, 3)
    found = recorded.found[0]
    assert found.function == "TRITON_ATTN model.layers.0.self_attn.attn"
    case = json.loads(found.case.read_text())
    assert case["window"] == [3, 3]
    summary = Summary.of(recorded.folder.parent)
    assert summary.exit_code == 1
    assert f"wrong: call 0 of {found.function}: {found.case}" in summary.lines()


def test_a_wrong_kernel_of_flash_attn_is_found(recorded, monkeypatch):
    vllm_kernels.stand_in_for_flash_attention(monkeypatch)
    monkeypatch.setattr(flash_attn, "_FA4_DENSE_ATTENTION_KERNEL", vllm_kernels.with_wider_window(vllm_kernels.paged))
    served("FLASH_ATTN", per_layer_sliding_window=4)
    assert (recorded.judged, recorded.wrong) == (3, 3)


def test_rocm_attn_ignores_a_soft_cap_and_this_is_found(recorded):
    """Its code has no parameter for it: the model asks, and nothing says no."""
    served("ROCM_ATTN", logits_soft_cap=0.5)
    assert (recorded.judged, recorded.wrong) == (3, 3)
    assert json.loads(recorded.found[0].case.read_text())["logits_soft_cap"] == 0.5


def test_a_call_is_judged_by_what_it_was_given(recorded, monkeypatch):
    """A kernel that writes its inputs after its output does not change what its output is held to."""

    def destroys(kernel, *, q, k, v, **arguments):
        kernel(q=q, k=k, v=v, **arguments)
        for tensor in (q, k, v):
            tensor.fill_(1.0)

    monkeypatch.setattr(triton_attn, "unified_attention", functools.partial(destroys, triton_attn.unified_attention))
    served("TRITON_ATTN", steps=([5, 17],))
    assert_right(recorded, 1)


@pytest.mark.parametrize("clamped", [False, True])
def test_ranges_of_images_are_read_from_metadata(clamped, recorded):
    backend = triton_attn.TritonAttentionBackend
    spec, kv_cache = spec_and_cache(backend)
    model = Model(
        backend, spec, kv_cache=kv_cache, per_layer_sliding_window=3, mm_prefix_clamp_sliding_window=clamped
    )  # fmt: skip
    lengths, ranges = [9, 7], {0: [(1, 6)], 1: [(0, 1), (3, 6)]}
    common = common_of(
        lengths, lengths, torch.tensor([[5], [3]], dtype=torch.int32), model.device, block_size=16, mm_req_doc_ranges=ranges
    )
    generator = torch.Generator().manual_seed(0)
    model.step(*(rows(generator, 16, heads, model.device) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)), common)
    assert_right(recorded, 1)
    # FLASH_ATTN is given the same ranges by query
    of_queries = torch.full((16, 2), -1, dtype=torch.int32)
    for start, of_request in ((0, ranges[0]), (9, ranges[1])):
        for first, last in of_request:
            of_queries[start + first : start + last + 1] = torch.tensor([first, last])
    metadata = SimpleNamespace(query_start_loc=common.query_start_loc, mm_prefix_query_range_tensor=of_queries)
    assert backends._ranges(metadata).tolist() == [[[1, 6], [0, -1]], [[0, 1], [3, 6]]]


def encoded(name: str) -> torch.Tensor:
    """The output of an encoder's layer. vLLM's wrapper says causal=False, and no cache is read or written."""
    backend = create_encoder_only_attention_backend(AttentionBackendEnum[name].get_class())
    spec = EncoderOnlyAttentionSpec(block_size=16, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, dtype=torch.float32)
    model = Model(backend, spec, attn_type="encoder_only", per_layer_sliding_window=3)
    common = common_of([5, 9], [5, 9], torch.zeros(2, 1, dtype=torch.int32), model.device, block_size=16)
    generator = torch.Generator().manual_seed(0)
    out = model.step(*(rows(generator, 14, heads, model.device) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)), common)
    assert model.attention.kv_cache.isnan().all()
    return out


def crossed(name: str) -> torch.Tensor:
    """The outputs of cross-attention, whose keys come once, inside the call: the recording copies the cache after it.

    Steps of a prompt, of a token, of a request that joins, and of several tokens. A prompt of three tokens sees all of the
    encoder's: with a causal mask the first two would not (vLLM #38450, #39119).
    """
    backend = create_cross_attention_backend(AttentionBackendEnum[name].get_class())
    spec, kv_cache = spec_and_cache(backend)
    model = Model(backend, spec, kv_cache=kv_cache, attn_type="encoder_decoder")
    generator, encoder_lens = torch.Generator().manual_seed(0), torch.tensor([7, 5], dtype=torch.int32)
    keys, values = (rows(generator, 12, NUM_KV_HEADS, model.device).split([7, 5]) for _ in range(2))
    outputs = []
    for query_lens, seq_lens, written in (([3], [3], 0), ([1], [4], None), ([1, 2], [5, 2], 1), ([3, 1], [8, 3], None)):
        present = len(query_lens)
        common = common_of(
            query_lens,
            seq_lens,
            torch.tensor([[5], [3]], dtype=torch.int32)[:present],
            model.device,
            block_size=16,
            encoder_seq_lens=encoder_lens[:present].to(model.device),
            encoder_seq_lens_cpu=encoder_lens[:present].numpy(),
        )
        new = (None, None) if written is None else (keys[written], values[written])
        outputs.append(model.step(rows(generator, sum(query_lens), NUM_HEADS, model.device), *new, common))
    return torch.cat(outputs)


@pytest.mark.parametrize(("attended", "calls"), [(encoded, 1), (crossed, 4)])
@of_ours
def test_encoders_and_cross_attention(name, attended, calls, recorded):
    attn_vllm.register()
    theirs = attended("TRITON_ATTN")
    assert_right(recorded, calls)
    torch.testing.assert_close(attended(name), theirs, rtol=0, atol=2e-5)
    assert_right(recorded, 2 * calls)


class Own(triton_attn.TritonAttentionBackend):
    @staticmethod
    def get_impl_cls():
        return type("OwnImpl", (triton_attn.TritonAttentionImpl,), {})


@pytest.mark.parametrize(
    ("backend", "options", "judged", "reason"),
    [
        ("TRITON_ATTN", {"alibi_slopes": [0.5] * 4, "use_alibi_sqrt": True}, 0, "ALiBi-sqrt"),
        ("TRITON_ATTN", {"per_layer_sliding_window": 8, "chunk_lookback": 1}, 0, "chunk look-back"),
        ("ROCM_ATTN", {"kv_cache_dtype": "fp8", "steps": ([5, 17], [1, 1])}, 1, "before they are quantized"),
        ("TRITON_ATTN", {"alibi_slopes": [0.5] * 4, "sinks": torch.zeros(4)}, 0, "ALiBi with sinks"),
        (Own, {}, 0, "OwnImpl is no backend that the recording knows"),
    ],
)
def test_calls_that_cannot_be_judged_are_counted_with_their_reason(backend, options, judged, reason, recorded):
    served(backend, **options)
    assert recorded.judged == judged
    assert recorded.wrong == 0
    ((counted, count),) = recorded.not_judged.items()
    assert reason in counted
    assert count == recorded.calls - judged
    summary = Summary.of(recorded.folder.parent)
    assert f"{count:7}  {counted}" in summary.lines()
    assert summary.exit_code == (0 if judged else 2)
    assert ("NO CALL WAS JUDGED" in "".join(summary.lines())) == (judged == 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rswa_prefix_lens": torch.ones(2)}, "R-SWA"),
        ({"block_table": torch.full((2, 3), 99, dtype=torch.int32)}, "a block table leads outside the cache"),
        ({"seq_lens": torch.ones(2, dtype=torch.int32)}, "a warm-up of vLLM"),
        ({"query_start_loc": torch.zeros(3, dtype=torch.int32)}, "the step has no query"),
        ({"query_start_loc": torch.zeros(3)}, "query_start_loc: got torch.float32"),
        ({"seq_lens": None}, "seq_lens: got None"),
        ({}, "NaN or infinity in what request 0 attends to"),
    ],
)
def test_a_step_that_cannot_be_judged(changes, reason, recorded, monkeypatch):
    """The call is made, and its result is returned."""
    monkeypatch.setattr(triton_attn.TritonAttentionImpl, "forward", lambda self, *arguments: "result")
    backend = triton_attn.TritonAttentionBackend
    model = model_of(backend)
    metadata = model.builder.build(0, step_of_a_block(model, [2, 3]))
    vars(metadata).update(changes)
    assert returned(model, torch.zeros(5, NUM_HEADS, HEAD_SIZE), metadata) == "result"
    ((counted, count),) = recorded.not_judged.items()
    assert reason in counted
    assert (recorded.calls, recorded.judged, count) == (1, 0, 1)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ROCM_ATTN", {"per_layer_sliding_window": 4}, "a window where nothing is causal"),
        ("TRITON_ATTN", {"alibi_slopes": [0.5] * 4}, "ALiBi where nothing is causal"),
    ],
)
def test_rules_that_backends_do_not_agree_on_are_not_judged(name, options, reason, recorded):
    model = model_of(AttentionBackendEnum[name].get_class(), **options)
    common = step_of_a_block(model, [2, 3]).replace(causal=False)
    model.step(*(torch.zeros(5, heads, HEAD_SIZE) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)), common)
    assert [reason in counted for counted in recorded.not_judged] == [True]


def test_a_quantized_query_of_another_cache_and_context_parallelism_are_not_judged(recorded, monkeypatch):
    monkeypatch.setattr(triton_attn.TritonAttentionImpl, "forward", lambda self, *arguments: None)
    model = model_of(triton_attn.TritonAttentionBackend)
    metadata = model.builder.build(0, step_of_a_block(model, [2, 3]))
    q = torch.zeros(5, NUM_HEADS, HEAD_SIZE)
    returned(model, q.to(torch.float8_e4m3fn), metadata)
    model.attention.impl.total_cp_world_size = 2
    returned(model, q, metadata)
    returned(model, q, None)  # vLLM measures memory: no attention is computed
    assert [reason.split(":")[0] for reason in recorded.not_judged] == ["q_scale", "context parallelism"]
    assert recorded.calls == 2


def test_mla_is_counted_and_not_judged(recorded, monkeypatch, tmp_path):
    layer = SimpleNamespace(impl=SimpleNamespace())
    with pytest.raises(AttributeError):  # it has nothing that the layer needs
        MLAAttention.forward_impl(layer, *[None] * 5, output=torch.zeros(1))
    assert recorded.not_judged == {"MLA: its keys and values are one latent vector": 1}
    assert "NO CALL WAS JUDGED" in "".join(Summary.of(tmp_path).lines())


def test_a_call_that_raises_is_counted_and_raises(recorded, monkeypatch):
    def fails(**arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(triton_attn, "unified_attention", fails)
    with pytest.raises(RuntimeError, match="no such kernel"):
        served("TRITON_ATTN")
    assert recorded.not_judged == {"the call raised RuntimeError": 1}


PROMPTS = ((0, 0, 5), (1, 5, 22))
"""Two requests: their numbers, their first rows and the rows behind their last."""


@pytest.mark.parametrize(
    ("most", "chosen"),
    [
        # all of both requests
        (4 * (5 * 69 + 17 * 81), {(PROMPTS, (0, 4)), (PROMPTS[::-1], (0, 4))}),
        # a key costs as much as 64 queries, so that there is no room for a second request
        (4 * (5 * 69 + 17 * 81) - 1, {(PROMPTS[:1], (0, 4)), (PROMPTS[1:], (0, 4))}),
        # the two heads of a KV head, or one head of a longer request, for which there is no room
        (2 * 5 * 69, {(PROMPTS[:1], heads) for heads in ((0, 2), (2, 4), (0, 1), (1, 2), (2, 3), (3, 4))}),
        # the last two queries of the longer request
        (
            17 * 66,
            {
                *((PROMPTS[:1], heads) for heads in ((0, 2), (2, 4))),
                *((((1, 20, 22),), heads) for heads in ((0, 1), (1, 2), (2, 3), (3, 4))),
            },
        ),
    ],
    ids=["all", "a request", "heads", "queries"],
)
def test_a_part_of_a_long_call_is_chosen(most, chosen, monkeypatch):
    monkeypatch.setattr(excerpt, "MOST_WORK", most * HEAD_SIZE)
    layer = Layer(
        num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE, scale=1.0, layout=Layout.CONTENT_PACKED
    )  # fmt: skip
    batch = Batch(
        query_start_loc=torch.tensor([0, 5, 22], dtype=torch.int32),
        seq_lens=torch.tensor([5, 17], dtype=torch.int32),
        max_query_len=17,
        max_seq_len=17,
        num_actual_tokens=22,
        causal=True,
        block_table=torch.zeros(2, 1, dtype=torch.int32),
    )
    choices = [excerpt.choose(batch, layer, turn, decodes_only=False) for turn in range(100)]
    assert {(tuple((rows.request, rows.begin, rows.end) for rows in one.rows), one.heads) for one in choices} == chosen
    assert all(one.kv_heads[0] == one.heads[0] // 2 and one.kv_heads[1] == -(-one.heads[1] // 2) for one in choices)
    monkeypatch.setattr(excerpt, "MOST_WORK", 1)
    with pytest.raises(NotJudgedError, match="one head of one request is more work"):
        excerpt.choose(batch, layer, 0, decodes_only=False)


@pytest.mark.parametrize("most", [2 * 17 * 81, 17 * 66], ids=["heads", "queries"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ROCM_ATTN", {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]}),
        ("TRITON_ATTN", {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}),
        ("TRITON_ATTN", {"kv_cache_dtype": "int8_per_token_head"}),
    ],
    ids=["pages", "sinks", "scales"],
)
def test_a_part_of_a_long_call_is_judged_as_the_whole_call_is(most, name, options, recorded, monkeypatch):
    monkeypatch.setattr(excerpt, "MOST_WORK", most * HEAD_SIZE)
    served(name, steps=([5, 17], [1, 1], [3, 1], [1, 1], [1, 1]), **options)
    assert_right(recorded, 5)


def test_a_wrong_kernel_is_found_in_a_part_of_a_long_call(recorded, monkeypatch):
    monkeypatch.setattr(excerpt, "MOST_WORK", 17 * 66 * HEAD_SIZE)
    monkeypatch.setattr(triton_attn, "unified_attention", vllm_kernels.with_wider_window(triton_attn.unified_attention))
    served("TRITON_ATTN", per_layer_sliding_window=4)
    assert (recorded.judged, recorded.wrong) == (3, 3)


def test_wrong_settings_are_refused():
    settings = Settings.of("calls,every=10,most=0")
    assert settings.folder.is_absolute()
    assert (settings.folder.name, settings.every, settings.most, settings.limit) == ("calls", 10, 0, 10)
    for value in ("calls,every=0", "calls,each=1", "calls,every=x", ",every=1", "calls,"):
        with pytest.raises(ValueError, match=f"{VARIABLE}: got "):
            Settings.of(value)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_a_worker_of_an_engine_is_recorded_and_a_killed_one_leaves_what_it_found(start, tmp_path):
    """The variable is set for the front end alone. The worker inherits it, computes wrongly and is killed."""
    environment = {**os.environ, VARIABLE: f"{tmp_path / 'calls'},every=2"}
    command = [sys.executable, "-m", "tests.plugins.vllm_worker", start]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as front_end:
        assert front_end.stdout is not None
        worker = int(front_end.stdout.readline())
        ends = time.monotonic() + 300
        while not (tmp_path / "calls").exists() or Summary.of(tmp_path / "calls").total("wrong") < 2:
            assert time.monotonic() < ends
            assert front_end.poll() is None
            time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
    summed = subprocess.run(
        [sys.executable, "-m", "attn_vllm_recording", tmp_path / "calls"], capture_output=True, text=True, check=False
    )
    first, *others = summed.stdout.splitlines()
    assert summed.returncode == 1
    assert first.startswith("1 of 2 processes made ")
    assert "(every 2)" in first
    cases = [line.split(": ")[-1] for line in others if line.startswith("wrong: call ")]
    assert len(cases) >= 2
    assert all(f"-{worker}-" in case and json.loads(Path(case).read_text())["window"] == [3, 3] for case in cases)


def test_a_folder_without_a_judged_call_says_so_loudly(tmp_path, recorded):
    def summed(folder):
        summary = Summary.of(folder)
        assert summary.exit_code == 2
        return "\n".join(summary.lines())

    assert "NO CALL WAS JUDGED: no process has built a layer" in summed(tmp_path)
    model_of(triton_attn.TritonAttentionBackend)
    assert "NO CALL WAS JUDGED: layers were built, and not one was called" in summed(tmp_path)


def test_without_the_variable_nothing_is_watched_and_nothing_is_imported():
    code = (
        "import sys, attn_vllm_recording; attn_vllm_recording.register(); sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_folder_that_cannot_be_written_ends_vllm_when_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "recordings", {})
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "calls"))
    before = Attention.__init__
    with pytest.raises(ValueError, match=f"{VARIABLE}: .*/file/calls cannot be written: Not a directory"):
        attn_vllm_recording.register()
    assert Attention.__init__ is before


def model_of(backend, **options) -> Model:
    spec, kv_cache = spec_and_cache(backend)
    return Model(backend, spec, kv_cache=kv_cache, **options)


def step_of_a_block(model: Model, lengths: list[int]):
    """Two prompts, each of which fits into a block."""
    blocks = torch.tensor([[5], [3]], dtype=torch.int32)
    return common_of(lengths, lengths, blocks, model.device, block_size=16)


def returned(model: Model, q: torch.Tensor, metadata):
    layer = model.attention
    return layer.impl.forward(layer, q, None, None, layer.kv_cache, metadata, output=torch.zeros(q.shape))

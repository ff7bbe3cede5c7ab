"""Recordings of vLLM's index layer on ROCm: its code runs, its writer and gathering are interpreted, and mistakes are found."""

import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

from attn_fuzz.shadow import FaultKind
from attn_vllm_recording import index_layers, watching
from vllm._aiter_ops import rocm_aiter_ops
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers import sparse_attn_indexer
from vllm.v1.attention.backends.mla import indexer
from vllm.v1.attention.ops import rocm_aiter_mla_sparse as kernels

from tests.plugins import vllm_kernels

HEADS, DIMS, TOP_K, SIZE, LONGEST = 4, 32, 4, 16, 64
TABLE = torch.tensor([[5, 2, 7], [3, 6, 1]], dtype=torch.int32)
NAME = "model.layers.0.self_attn.indexer.k_cache"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The recording of this process, which judges every call."""
    vllm_kernels.interpret(monkeypatch)
    return vllm_kernels.recorded(monkeypatch, tmp_path)


@pytest.fixture
def layer(recorded, monkeypatch):
    """vLLM's layer as on gfx950, with stand-ins that are right for what a CPU has not: scores and selection."""
    vars(sys.modules["vllm.platforms.rocm"]).update(on_gfx950=lambda: True)
    workspace = SimpleNamespace(get_simultaneous=lambda *shapes: [torch.empty(shape, dtype=dtype) for shape, dtype in shapes])
    for name, value in {
        "_ON_GFX950": True,
        "FP8_DTYPE": torch.float8_e4m3fn,
        "current_workspace_manager": lambda: workspace,
        "rocm_fp8_mqa_logits": scores,
        "rocm_fp8_paged_mqa_logits": paged_scores,
    }.items():
        monkeypatch.setattr(kernels, name, value)
    for name, value in {
        "is_indexer_top_k_supported": lambda **named: True,
        "dsv4_indexer_prefers_native_top_k": lambda **named: False,
        "indexer_top_k_prefill": select,
        "indexer_top_k_decode": lambda logits, _, seen, *out: select(logits, torch.zeros_like(seen), seen, *out),
    }.items():
        monkeypatch.setattr(rocm_aiter_ops, name, value)
    op = kernels.rocm_aiter_sparse_attn_indexer
    monkeypatch.setattr(torch.ops.vllm, "rocm_aiter_sparse_attn_indexer", op, raising=False)
    cache = torch.zeros(8, SIZE, DIMS + 4, dtype=torch.uint8)
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    with set_current_vllm_config(config):
        made = sparse_attn_indexer.SparseAttnIndexer(
            SimpleNamespace(prefix=NAME, kv_cache=cache),
            DIMS,
            "ue8m0",
            TOP_K,
            DIMS,
            LONGEST,
            2 * LONGEST,
            torch.full((64, TOP_K), -1, dtype=torch.int32),
        )
    return SimpleNamespace(layer=made, config=config)


def scores(q, kv, weights, starts, ends):
    keys = kv[0].float() * kv[1].reshape(-1, 1)
    logits = (torch.einsum("thd,kd->htk", q.float(), keys).relu() * weights.T[:, :, None]).sum(0)
    columns = torch.arange(len(keys))
    return logits.masked_fill((columns < starts[:, None]) | (columns >= ends[:, None]), -torch.inf)


def paged_scores(q, cache, weights, seen, block_table, schedule, max_model_len, *, compress_ratio=1):
    found = torch.full((len(weights), max_model_len), torch.nan)
    for row, n in enumerate(seen.flatten().tolist()):
        codes, scales = torch.empty(n, DIMS, dtype=kernels.FP8_DTYPE), torch.empty(n, 4, dtype=torch.uint8)
        bounds, request = torch.tensor([0, n], dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
        table = block_table[row // q.shape[1]][None]
        kernels.cp_gather_indexer_k_quant_cache_triton(cache.squeeze(2), codes, scales, table, bounds, request)
        given = (q.flatten(0, 1)[row][None], (codes, scales.view(torch.float32)), weights[row][None])
        found[row, :n] = scores(*given, torch.tensor([0]), torch.tensor([n]))
    return found


def select(logits, starts, ends, indices, top_k):
    """Columns of the logits; vLLM makes positions of those of prefills."""
    indices.fill_(-1)
    for row, (start, end) in enumerate(zip(starts.flatten().tolist(), ends.flatten().tolist(), strict=True)):
        best = logits[row, start:end].topk(min(top_k, end - start)).indices + start
        indices[row, : len(best)] = best.int()


def metadata_of(counts, lengths, slots, *, chunks):
    """vLLM's metadata of a step whose first request is a decode where its count is at most 2."""
    starts, lengths = torch.tensor([0, *counts]).cumsum(0).int(), torch.tensor(lengths).int()
    decodes = int(counts[0] <= 2)
    seen = lengths[:1, None] - counts[0] + 1 + torch.arange(counts[0])
    prefills = [
        indexer.build_prefill_chunk_metadata(decodes, 2, starts, starts, lengths, lengths, lengths, TABLE, 1, query_slice=part)
        for part in chunks
    ]
    return indexer.DeepseekV32IndexerMetadata(
        seq_lens=lengths,
        max_seq_len=LONGEST,
        slot_mapping=slots,
        num_decodes=decodes,
        num_decode_tokens=decodes * counts[0],
        num_prefills=2 - decodes,
        num_prefill_tokens=sum(counts[decodes:]),
        prefill=indexer.DeepseekV32IndexerPrefillMetadata(prefills),
        decode=indexer.DeepSeekV32IndexerDecodeMetadata(
            block_table=TABLE[:1],
            seq_lens=seen.int(),
            decode_lens=torch.tensor(counts[:1]),
            requires_padding=False,
            schedule_metadata=torch.zeros(0),
        )
        if decodes
        else None,
    )


def run(layer, **steps):
    for _ in steps_of(layer, **steps):
        pass


def steps_of(layer, steps=(([5, 20], [slice(0, 9), slice(9, 25)]), ([2, 3], [slice(0, 3)]))):
    """A prefill of two requests in two chunks, and a step of a decode with a draft beside a prefill. Slots end in a -1."""
    generator, lengths = torch.Generator().manual_seed(0), [0, 0]
    for counts, chunks in steps:
        lengths = [n + count for n, count in zip(lengths, counts, strict=True)]
        places = [(r, at) for r in range(2) for at in range(lengths[r] - counts[r], lengths[r])]
        slots = torch.tensor([*(int(TABLE[r, at // SIZE]) * SIZE + at % SIZE for r, at in places), -1])
        q = torch.randn(len(slots), HEADS, DIMS, generator=generator).to(kernels.FP8_DTYPE)
        k = torch.randn(len(slots), DIMS, generator=generator).bfloat16()
        weights = torch.randn(len(slots), HEADS, generator=generator)
        metadata = metadata_of(counts, lengths, slots, chunks=chunks)
        metadata.block_table = TABLE
        beside = SimpleNamespace(query_start_loc=torch.tensor([0, *counts]).cumsum(0))
        with set_forward_context({"model.layers.0.self_attn.attn": beside, NAME: metadata}, layer.config):
            layer.layer.forward_hip(k, q, k, weights)
        yield


def test_a_right_layer_is_judged_right(layer, recorded):
    run(layer)
    assert (recorded.calls, recorded.judged, recorded.wrong, recorded.not_judged) == (2, 2, 0, {})


def test_rows_and_keys_of_a_call_are_bounded(layer, recorded, monkeypatch):
    monkeypatch.setattr(index_layers, "MAX_ROWS", 3)
    monkeypatch.setattr(index_layers, "MAX_PAGES", 2)
    judged = []
    monkeypatch.setattr(index_layers, "wrong_selection", lambda selected, *others: judged.append(selected.shape[1]))
    run(layer)
    assert (recorded.judged, recorded.wrong) == (2, 0)
    assert judged == [3, 2]
    monkeypatch.setattr(index_layers, "MAX_KEYS", 0)
    run(layer)
    assert recorded.not_judged == {"an index layer's step without rows that see keys, or with more than 0": 2}


def written_elsewhere(writer):
    return lambda k, cache, slots, *others: writer(k, cache, torch.where(slots >= 0, slots ^ 1, slots), *others)


def written_at_minus_one(writer):
    return lambda k, cache, slots, *others: writer(k, cache, slots.clamp(min=0), *others)


def scored_without_a_weight(function):
    return lambda q, cache, weights, *others, **named: function(
        q, cache, torch.cat((weights[:, :-1], torch.zeros(len(weights), 1)), 1), *others, **named
    )


def replaced(choose):
    """The best unit gives way to the worst one."""

    def chosen(logits, *bounds_and_indices):
        choose(logits, *bounds_and_indices)
        starts, ends, indices = bounds_and_indices[-4:-1]
        row = int(ends.flatten().argmax())
        start, end = (int(bound.flatten()[row]) for bound in (starts, ends))
        indices[row, 0] = logits[row, start:end].argmin() + start

    return chosen


def of_a_decode(choose):
    replace = replaced(lambda logits, starts, ends, indices, top_k: select(logits, starts, ends, indices, top_k))
    return lambda logits, _, seen, *out: replace(logits, torch.zeros_like(seen), seen, *out)


@pytest.mark.parametrize(
    ("owner", "name", "mistake", "said"),
    [
        (kernels, "indexer_k_quant_and_cache_triton", written_elsewhere, "index key in slot"),
        (kernels, "indexer_k_quant_and_cache_triton", written_at_minus_one, "index key in slot 0: "),
        (kernels, "rocm_fp8_mqa_logits", scored_without_a_weight, "logit of unit"),
        (kernels, "rocm_fp8_paged_mqa_logits", scored_without_a_weight, "logit of unit"),
        (rocm_aiter_ops, "indexer_top_k_prefill", replaced, " is selected "),
        (rocm_aiter_ops, "indexer_top_k_decode", of_a_decode, " is selected "),
    ],
)
def test_a_mistake_is_found(owner, name, mistake, said, layer, recorded, monkeypatch):
    monkeypatch.setattr(owner, name, mistake(getattr(owner, name)))
    run(layer)
    assert recorded.wrong
    assert not recorded.not_judged
    assert all(said in found.wrong for found in recorded.found)


def in_steps(blocks):
    """The output of vLLM's scheduler for two steps: two requests come, and go on."""
    blocks.rows = lambda: ["a", "b"]
    none, two = SimpleNamespace(req_ids=[], resumed_req_ids=set(), num_computed_tokens=[]), [5, 20]
    new = [
        SimpleNamespace(req_id=name, prompt_token_ids=[1] * n, num_computed_tokens=0, lora_request=None, mm_features=[])
        for name, n in zip("ab", two, strict=True)
    ]
    cached = SimpleNamespace(req_ids=["a", "b"], resumed_req_ids=set(), num_computed_tokens=two)
    for started, running in ((new, none), ([], cached)):
        scheduled = SimpleNamespace(
            finished_req_ids=set(),
            scheduled_spec_decode_tokens={},
            scheduled_new_reqs=started,
            scheduled_cached_reqs=running,
        )
        blocks.begin(scheduled, is_async=False)
        yield


def written_flat(writer):
    """The bytes of each key lie one after the other, as in blocks that are not tiled."""

    def flat(k, cache, slots, *others):
        own = torch.zeros(len(k) + 1, 1, cache.shape[2], dtype=torch.uint8)
        writer(k, own, torch.arange(len(k)), *others)
        for row, slot in enumerate(slots.tolist()[: len(k)]):
            if slot >= 0:
                page = cache[slot // SIZE].view(-1)
                page[slot % SIZE * DIMS : (slot % SIZE + 1) * DIMS] = own[row, 0, :DIMS]
                page[SIZE * DIMS :][slot % SIZE * 4 : (slot % SIZE + 1) * 4] = own[row, 0, DIMS:]

    return flat


@pytest.mark.parametrize(
    ("mistake", "kinds"),
    [(lambda writer: writer, set()), (written_flat, {FaultKind.ALTERED}), (written_elsewhere, {FaultKind.ALTERED})],
    ids=["right", "flat", "elsewhere"],
)
def test_the_index_cache_is_compared_with_the_shadow(mistake, kinds, layer, recorded, monkeypatch):
    """Faults are found in calls that are not judged, too. Writes of the second step alter keys of the first."""
    monkeypatch.setattr(kernels, "indexer_k_quant_and_cache_triton", mistake(kernels.indexer_k_quant_and_cache_triton))
    monkeypatch.setattr(recorded, "most", 0)
    blocks = watching.current().blocks
    steps = (([5, 20], [slice(0, 25)]), ([12, 3], [slice(0, 15)]))
    for _ in zip(in_steps(blocks), steps_of(layer, steps), strict=True):
        pass
    assert (recorded.judged, blocks.shadow.reads, blocks.shadow.not_seen) == (0, 4, {})
    assert {fault.kind for fault in blocks.shadow.faults} == kinds


def test_the_torch_function_reads_flat_what_the_writer_wrote_in_tiles(layer, recorded, monkeypatch):
    """vLLM 0.33's own: it stands in for AITER on gfx950, and reads the tiles of the writer beside it row by row."""

    def flat(q, cache, weights, seen, table, schedule, max_model_len, **named):
        return kernels.fp8_paged_mqa_logits_torch(q, cache, weights, seen, table, max_model_len)

    monkeypatch.setattr(kernels, "rocm_fp8_paged_mqa_logits", flat)
    run(layer)
    [found] = recorded.found
    assert found.index == 1
    assert found.wrong.startswith("logit of unit")


def test_other_index_layers_are_counted_with_their_reason(layer, recorded):
    layer.layer.compress_ratio = 4
    run(layer, steps=(([5, 20], [slice(0, 25)]),))
    assert recorded.not_judged == {"an index layer whose keys are of several tokens": 1}

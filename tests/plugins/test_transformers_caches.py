"""Public reports of wrong caches, put back into transformers' own classes: each is named. Right caches have no fault."""

import contextlib
import functools
from unittest import mock

import pytest
import torch

pytest.importorskip("transformers", "5.24", reason="needs transformers: pip install 'attn-parity[transformers]'")
pytest.importorskip("msgspec", reason="needs the extra fuzz: recordings are cases")

import attn_transformers
from attn_fuzz.shadow import FaultKind, Shadow
from attn_transformers import caches
from transformers import cache_utils
from transformers.generation.continuous_batching.cache_allocators import cache_allocator
from transformers.generation.continuous_batching.cache_allocators.sliding_attention import SlidingAttentionCacheAllocator

from tests.plugins.engine import served
from tests.plugins.test_transformers_engine import ragged_requests
from tests.plugins.tiny_models import prompts, tiny

WINDOW = 8


pytestmark = pytest.mark.usefixtures("registered")


def drive(cache, counts, *, before=None, rows=2):
    """Update two layers with `counts` tokens a step, and do something before the last step."""
    generator = torch.Generator().manual_seed(0)
    # within the scale that float8 takes from the first step
    new = functools.partial(torch.randn, generator=generator)
    for step, count in enumerate(counts):
        if before is not None and step == len(counts) - 1:
            before(cache)
        for layer in range(2):
            cache.update(*(new(rows, 2, count, 8).clamp(-1, 1) for _ in range(2)), layer)


def cache_of(kind):
    sliding = {"sliding_window": WINDOW}
    layers = {
        "dynamic": lambda: cache_utils.DynamicLayer(),
        "sliding": lambda: cache_utils.DynamicSlidingWindowLayer(**sliding),
        "static": lambda: cache_utils.StaticLayer(max_cache_len=32),
        "static sliding": lambda: cache_utils.StaticSlidingWindowLayer(max_cache_len=32, **sliding),
        "float8": lambda: cache_utils.Fp8QuantizedLayer(),
    }
    return cache_utils.Cache(layers=[layers[kind](), layers[kind]()])


def old_roll(self, key_states, value_states, *args, **kwargs):
    """The ring was rolled when the sequence reached the window, and not when it went beyond."""
    length = self.cumulative_length_int + key_states.shape[-2]
    if self.cumulative_length_int and length == self.max_cache_len:
        self.cumulative_length_int = self.max_cache_len
    result = STATIC_SLIDING(self, key_states, value_states, *args, **kwargs)
    self.cumulative_length_int = length
    return result


def old_recording(self, key_states, value_states, *args, **kwargs):
    """Past states that wait for a crop were all given, beside a mask for those of the window."""
    result = SLIDING(self, key_states, value_states, *args, **kwargs)
    return (self.keys, self.values) if self.record_past else result


def old_crop(self, tokens_to_remove):
    """More tokens than there are left some."""
    end = self.get_seq_length() - abs(tokens_to_remove)
    self.keys, self.values = self.keys[..., :end, :], self.values[..., :end, :]


STATIC_SLIDING, SLIDING = cache_utils.StaticSlidingWindowLayer.update, cache_utils.DynamicSlidingWindowLayer.update
REPORTS = {
    "transformers#37574": (
        *(cache_utils.StaticSlidingWindowLayer, "update", old_roll),
        lambda: drive(cache_of("static sliding"), [6, 1, 1]),
        (FaultKind.WRONG_RING, 0, 1),
    ),
    "transformers#48280": (
        *(cache_utils.DynamicSlidingWindowLayer, "update", old_recording),
        lambda: drive(recording_past(cache_of("sliding")), [6, 3, 1, 1]),
        (FaultKind.WRONG_LENGTH, 10, None),
    ),
    "transformers#47433": (
        *(cache_utils.DynamicLayer, "crop", old_crop),
        lambda: drive(cache_of("dynamic"), [3, 2], before=lambda cache: cache.crop(-5)),
        (FaultKind.WRONG_LENGTH, 2, None),
    ),
    "transformers#48809": (
        *(cache_utils.DynamicLayer, "reset", cache_utils.CacheLayerMixin.reset),
        lambda: drive(cache_of("dynamic"), [6, 3], before=lambda cache: cache.reset()),
        (FaultKind.WRONG_LENGTH, 3, None),
    ),
    "transformers#48700": (
        *(cache_utils.Fp8QuantizedLayer, "reorder_cache", lambda self, beam_idx: None),
        lambda: drive(cache_of("float8"), [6, 1], before=lambda cache: cache.reorder_cache(torch.tensor([1, 1]))),
        (FaultKind.STALE_BLOCK, 0, 0),
    ),
}


def recording_past(cache):
    cache.activate_past_recording()
    return cache


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_of_a_cache_is_named_when_it_is_put_back(report):
    owner, name, old, use, (kind, position, writer) = REPORTS[report]
    right, wrong = Shadow(value_bytes=1 << 20), Shadow(value_bytes=1 << 20)
    with caches.watched(right):
        use()
    assert (right.wrong, right.not_seen) == (0, {})
    assert right.reads
    with mock.patch.object(owner, name, old), caches.watched(wrong):
        use()
    first = wrong.faults[0]
    assert (first.kind, first.position, first.layer) == (kind, position, 0), str(first)
    assert first.request.row == 0
    assert (first.writer and first.writer.position) == writer


@pytest.mark.parametrize("kind", ["dynamic", "sliding", "static", "static sliding", "float8"])
def test_right_caches_have_no_fault(kind):
    def change(cache):
        if kind != "static":
            cache.reorder_cache(torch.tensor([1, 1]))

    shadow = Shadow(value_bytes=1 << 20)
    with caches.watched(shadow):
        drive(cache_of(kind), [5, 1, 1, 1, 1, 4, 1, 1])
        drive(cache_of(kind), [11, 1, 2, 1], before=change)
        if kind in ("dynamic", "sliding"):
            drive(recording_past(cache_of(kind)), [7, 3, 2], before=lambda cache: cache.crop(-2))
    assert (shadow.wrong, shadow.not_seen) == (0, {}), shadow.faults
    assert shadow.reads == 48 + (12 if kind in ("dynamic", "sliding") else 0)


def test_a_report_of_cross_attention_is_named():
    """transformers#41890: the cache of encoder keys had the decoder's sliding layers, which keep the last keys alone."""
    for kind, wrong in (("dynamic", []), ("sliding", [(FaultKind.WRONG_LENGTH, 7), (FaultKind.WRONG_SLOT, 0)])):
        shadow, cache = Shadow(value_bytes=1 << 20), cache_of(kind)
        with caches.watched(shadow) as hold:
            drive(cache, [20], rows=1)
            for layer in cache.layers:
                layer.keys = layer.keys[:]  # as after a reorder
            hold(cache.layers[1].keys, cache.layers[1].values, 1)
        assert [(fault.kind, fault.position) for fault in shadow.faults] == wrong


def old_read(self, request_id, past_length, query_length):
    start = 0 if past_length < self.sliding_window else past_length % self.sliding_window
    count = past_length if past_length < self.sliding_window else self.sliding_window - 1
    return self._token_indices_to_physical_indices(request_id, start, count) + [self.sentinel_index] * query_length


def old_write(self, request_id, past_length, query_length):
    count = min(query_length, self.sliding_window)
    indices = self._token_indices_to_physical_indices(request_id, past_length % self.sliding_window, count)
    return [self.write_trash_index] * (query_length - count) + indices


def same_hash(parent_hash, tokens):
    """Blocks that differ in their last token alone collide, as in openvino.genai#3722."""
    return hash((parent_hash, *tokens[:-1])) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("model", "patches", "kind"),
    [
        pytest.param(
            "mistral",
            [
                (SlidingAttentionCacheAllocator, "get_read_indices", old_read),
                (SlidingAttentionCacheAllocator, "get_write_indices", old_write),
            ],
            FaultKind.WRONG_RING,
            id="transformers#47708",
        ),
        pytest.param(
            "llama",
            [(cache_allocator, "compute_block_hash", same_hash)],
            FaultKind.OTHER_REQUEST,
            id="openvino.genai#3722",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_report_of_continuous_batching_is_named(tmp_path, model, patches, kind):
    """Attention is right over wrong keys: each call that is judged agrees."""
    model = tiny(model)
    model.set_attn_implementation("paged|eager")
    shared = [5, 6, 7, 8, 9, 10, 11]
    requests = [[*shared, last, *range(20, 20 + i)] for i, last in enumerate((12, 12, 13, 14))]

    def recorded():
        with attn_transformers.recording(tmp_path, "paged|eager") as recording:
            served(model, requests[:1], new_tokens=4)
            served(model, requests, step=8, new_tokens=8)
        return recording

    right = recorded()
    assert (right.wrong, right.shadow.wrong, right.shadow.not_seen) == (0, 0, {})
    with contextlib.ExitStack() as stack:
        for owner, name, old in patches:
            stack.enter_context(mock.patch.object(owner, name, old))
        with pytest.warns(UserWarning, match="THE CACHE IS WRONG"):
            wrong = recorded()
    assert wrong.judged > wrong.wrong == 0
    first = wrong.shadow.faults[0]
    assert first.kind == kind, str(first)
    assert first.slot is not None
    assert first.writer.request.startswith("req_")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt_oss", {}),
        ("gemma3", {"num_beams": 3}),
        ("mistral", {"cache_implementation": "static"}),
        ("llama", {"num_beams": 2, "cache_implementation": "static"}),
        ("bart", {"num_beams": 3}),
        ("gemma2", {"prompt_lookup_num_tokens": 3}),
    ],
)
def test_models_that_generate_have_no_fault(tmp_path, name, options):
    """Padding, windows, beams, static caches, cross-attention, and drafts that are rejected."""
    model, given = tiny(name), prompts((6, 3))
    if "prompt_lookup_num_tokens" in options:
        given = {"input_ids": torch.tensor([[5, 6, 7, 8] * 4]), "attention_mask": torch.ones(1, 16)}
    with attn_transformers.recording(tmp_path, "eager", every=10) as recording:
        model.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)
    assert (recording.shadow.wrong, recording.shadow.not_seen) == (0, {})
    assert recording.shadow.reads


@pytest.mark.parametrize(
    "on_the_cpu",
    [
        pytest.param(0.0, id="computed anew", marks=pytest.mark.nightly),
        pytest.param(0.01, id="brought back from the CPU"),
    ],
)
def test_requests_that_come_and_go_have_no_fault(tmp_path, monkeypatch, on_the_cpu):
    """Shared prefixes, chunks of prompts, and requests that are preempted: there are 12 blocks for 24 requests."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **options: empty(*args, **options))  # it asks for a GPU
    model = tiny("llama")
    model.set_attn_implementation("paged|eager")
    with attn_transformers.recording(tmp_path, "paged|eager", every=50) as recording:
        served(model, ragged_requests(24), new_tokens=12, num_blocks=12, cpu_offload_space=on_the_cpu)
    assert (recording.shadow.wrong, recording.shadow.not_seen) == (0, {}), recording.shadow.faults
    assert recording.shadow.reads > 500

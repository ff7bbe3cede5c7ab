"""Backends behind a serving engine agree with the reference whatever a scheduler does, and faults between steps are found.

A short run of what `tox run -e nightly -- fuzz` does at length: SEQUENCES sequences of up to ACTIONS actions for each model.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from attn_fuzz.serving import scheduler
from attn_fuzz.serving.engine import NULL_BLOCK, Scheduled, ServingEngine
from attn_fuzz.serving.models import LayerGroup, ServedModel, rocm, served, triton
from attn_fuzz.serving.uncached import WrongOutputError
from attn_fuzz.targets.aiter import AITER_UNIFIED_ATTENTION
from attn_optimized.backends import CommonAttentionMetadata, base
from hypothesis import Phase

from tests.optimized.aiter_adapter.documented_aiter import stand_in

SEQUENCES, ACTIONS = 4, 30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def play_briefly(model: ServedModel) -> None:
    scheduler.play(model, DEVICE, seed=1, sequences=SEQUENCES, actions=ACTIONS, phases=[Phase.generate])


def play_until_found(model: ServedModel, engine: type[ServingEngine] = ServingEngine):
    scheduler.play(model, DEVICE, seed=1, sequences=100, actions=ACTIONS, engine=engine, phases=[Phase.generate])


def backends_of(model: ServedModel) -> dict[str, str]:
    return {part.name: part.backend for part in model.layers}


def test_triton_attn_agrees_with_a_reference_that_has_no_cache():
    model = triton(DEVICE)
    assert set(backends_of(model).values()) == {"TRITON_ATTN"}
    play_briefly(model)


def test_rocm_attn_agrees_beside_a_reinterpreted_cross_attention():
    model = rocm(DEVICE)
    assert backends_of(model) == {"full": "ROCM_ATTN", "cross": "TRITON_ATTN", "window": "TRITON_ATTN"}
    assert [part.name for part in model.layers if part.allocation_layout] == ["cross"]
    play_briefly(model)


def test_backends_named_after_aiter_agree_if_it_does_what_it_documents():
    """The phases of ROCM_AITER_FA, what it gathers and what it merges, with AITER's kernels stood in for."""
    calls = []
    model = served(
        DEVICE,
        "gfx950",
        rounding=AITER_UNIFIED_ATTENTION.rounding(DEVICE),
        aiter=stand_in(calls),
        dtype="float16",
        head_size=64,
        backends={"full": "ROCM_AITER_FA"},
        rope=False,
    )
    assert backends_of(model) == {"full": "ROCM_AITER_FA", "cross": "ROCM_AITER_UNIFIED_ATTN", "window": "ROCM_AITER_FA"}
    play_briefly(model)
    assert {call.function for call in calls} == {"flash_attn_varlen_func", "paged_attention_v1", "unified_attention"}


class Tallies(ServingEngine):
    """No layer runs; what happens to blocks is counted over all engines."""

    seen: ClassVar[Counter[str]] = Counter()

    def _run(self, part, batch, common):
        pass

    def _reserve(self, request, seq_len):
        before = {group: list(blocks) for group, blocks in request.blocks.items()}
        enough = super()._reserve(request, seq_len)
        self.seen["no block left"] += not enough
        self.seen["copied on write"] += any(request.blocks[group][: len(own)] != own for group, own in before.items())
        self.seen["a window's block given back"] += any(NULL_BLOCK in own for own in before.values())
        return enough

    def _schedule(self, id, work):
        scheduled = super()._schedule(id, work)
        if scheduled is not None:
            has_context = scheduled.request.num_computed_tokens > 0
            self.seen["first chunk of several"] += not has_context and scheduled.seq_len < len(scheduled.request.tokens)
            self.seen["extended"] += has_context and scheduled.query_len > 1
            self.seen["decoded"] += scheduled.query_len == 1
            self.seen["rejected"] += scheduled.num_rejected > 0
            self.seen["computed again"] += not has_context and len(self.requests[id].tokens) > 33
        return scheduled


def test_a_short_run_meets_what_lies_between_steps():
    model = triton(DEVICE)
    scheduler.play(model, DEVICE, seed=1, sequences=8, actions=ACTIONS, engine=Tallies, phases=[Phase.generate])
    met = {"no block left", "copied on write", "first chunk of several", "extended", "decoded", "rejected", "computed again"}
    met |= {"a window's block given back"}
    assert {name for name, count in Tallies.seen.items() if count} == met


class CountsRejectedDrafts(ServingEngine):
    """Metadata made before the sampler answered: lengths that still count the drafts rejected since."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_rejected: dict[int, int] = {}

    def reject(self, request, num_rejected):
        super().reject(request, num_rejected)
        self.num_rejected[request.id] = num_rejected

    def metadata(self, group: LayerGroup, batch: Sequence[Scheduled]) -> CommonAttentionMetadata:
        common = super().metadata(group, batch)
        seq_lens = common.seq_lens + self._int32([self.num_rejected.get(scheduled.request.id, 0) for scheduled in batch])
        room = [len(scheduled.request.blocks[group]) * group.block_size for scheduled in batch]
        seq_lens = torch.minimum(seq_lens, self._int32(room))
        return dataclasses.replace(common, seq_lens=seq_lens, max_seq_len=int(seq_lens.max()))


class FreesSharedBlocks(ServingEngine):
    """A pool that counts no references, and nobody who looks after it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pool.release = self._free

    def _free(self, block: int) -> bool:
        self.pool.free.append(block)
        return True

    def check_blocks(self):
        pass


@pytest.mark.parametrize("engine", [CountsRejectedDrafts, FreesSharedBlocks])
def test_a_fault_that_no_single_step_shows_is_found(engine):
    with pytest.raises(WrongOutputError):
        play_until_found(triton(DEVICE), engine)


def scale_of_the_first_layer(monkeypatch):
    """Layers that are made as if all had one scale."""
    made, scales = base.AttentionImplBase.__init__, []

    def make(self, layer, **options):
        scales.append(layer.scale)
        made(self, dataclasses.replace(layer, scale=scales[0]), **options)

    monkeypatch.setattr(base.AttentionImplBase, "__init__", make)


def metadata_of_the_first_group(monkeypatch):
    """A builder that keeps a step's metadata for all layers of one attention type, whatever block tables they have."""
    build, step, kept = base.BatchBuilder._build, ServingEngine.step, {}

    def build_once(self, common):
        if self.attn_type not in kept:
            kept[self.attn_type] = build(self, common)
        return kept[self.attn_type]

    def begin_step(self, work):
        kept.clear()
        step(self, work)

    monkeypatch.setattr(base.BatchBuilder, "_build", build_once)
    monkeypatch.setattr(ServingEngine, "step", begin_step)


@pytest.mark.parametrize("plant", [scale_of_the_first_layer, metadata_of_the_first_group])
def test_a_fault_among_layers_that_differ_is_found(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(WrongOutputError):
        play_until_found(triton(DEVICE))


def test_a_missing_reinterpretation_of_a_shared_allocation_is_found(monkeypatch):
    monkeypatch.setattr(base, "_must_reinterpret", lambda layout, allocation_layout: False)
    with pytest.raises(WrongOutputError):
        play_until_found(rocm(DEVICE))


class LosesLastBlock(ServingEngine):
    """A leak: of the blocks that a preempted request had, the last stays counted. No kernel has to run to see it."""

    def preempt(self, id):
        if blocks := self.requests[id].blocks[self.groups[0]]:
            blocks.pop()
        super().preempt(id)

    def _run(self, part, batch, common):
        pass


def test_a_block_that_stays_counted_is_found():
    with pytest.raises(AssertionError):
        play_until_found(triton(DEVICE), LosesLastBlock)

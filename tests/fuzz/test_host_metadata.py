"""Metadata of steps of many requests is what a plain computation makes of them, and faults in it are found."""

import dataclasses
import random

import pytest
import torch
from attn_fuzz.targets import host_metadata
from attn_optimized.backends.triton_mla import metadata
from attn_optimized.backends.triton_mla.metadata import MlaMetadataBuilder
from attn_optimized.backends.triton_mla.over_ranks.metadata import RankMlaMetadataBuilder

SEEDS = range(150)


def finds() -> int:
    """How many of the seeds find something."""
    found = 0
    for seed in SEEDS:
        try:
            host_metadata.check_latent(random.Random(seed))
        except AssertionError:
            found += 1
    return found


def test_the_metadata_is_what_was_expected():
    assert finds() == 0


def test_steps_have_all_kinds_of_requests():
    steps = [host_metadata.drawn_step(random.Random(seed), 2) for seed in SEEDS]
    lens = torch.cat([step.query_start_loc.diff() for step in steps])
    contexts = torch.cat([step.seq_lens for step in steps]) - lens
    assert {0, 1, 2, 3, 4, 5} == {*lens.tolist()}
    assert {0, 1, 2, 3, 6, 7} == {*contexts.tolist()}
    assert max(step.num_requests for step in steps) > 16


def test_too_many_rows_in_a_chunk_are_found(monkeypatch):
    monkeypatch.setattr(metadata, "CHUNKS_AT_A_TIME", 16)
    assert finds()


def test_a_row_of_another_key_is_found(monkeypatch):
    gathered = MlaMetadataBuilder._gathered_from

    def moved(self, chunk, device):
        chunk = gathered(self, chunk, device)
        return dataclasses.replace(chunk, position=chunk.position.flip(0))

    monkeypatch.setattr(MlaMetadataBuilder, "_gathered_from", moved)
    assert finds()


@pytest.mark.parametrize("more", [-1, 1])
def test_another_longest_prefill_of_a_rank_is_found(more, monkeypatch):
    prefill = RankMlaMetadataBuilder._prefill

    def longer(self, phase):
        made = prefill(self, phase)
        return dataclasses.replace(made, max_seq_len=made.max_seq_len + more)

    monkeypatch.setattr(RankMlaMetadataBuilder, "_prefill", longer)
    assert finds()


def test_rows_of_ranks_in_another_order_are_found(monkeypatch):
    gathered = RankMlaMetadataBuilder._gathered_from

    def reordered(self, chunk, device):
        chunk = gathered(self, chunk, device)
        return dataclasses.replace(chunk, order=chunk.order.sort().values)

    monkeypatch.setattr(RankMlaMetadataBuilder, "_gathered_from", reordered)
    assert finds()

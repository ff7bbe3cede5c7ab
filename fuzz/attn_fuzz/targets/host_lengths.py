"""Lengths that a host knows: a backend that splits a step by them refuses those that are no lengths of the step's requests."""

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from attn_contract import AttentionType, Batch
from attn_fuzz.targets.backends import common_metadata, named
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.wrong_arguments import must_contradict, must_raise, must_refuse

_WRONG_OPTIONS: tuple[dict[str, Any], ...] = ({"context_chunk_keys": 0}, {"num_speculative_tokens": -1})


def check(backend: str, batch: Batch, *, optional: Collection[str] = ()) -> None:
    """Check that a builder refuses lengths of the host that are none, or are of other requests, and options that are none.

    Args:
        optional: the lengths that the host need not know.

    Raises:
        AssertionError: what is wrong was not refused.
    """
    common, builder = common_metadata(batch, AttentionType.DECODER), named(backend)().builder
    for options in _WRONG_OPTIONS:
        must_raise(lambda options=options: builder(AttentionType.DECODER, **options), str(options))
    must_refuse(lambda: builder(AttentionType.ENCODER), "metadata of an encoder")

    def build(**lengths: torch.Tensor) -> object:
        return builder(AttentionType.DECODER).build(dataclasses.replace(common, **lengths))

    lengths = {"query_start_loc_cpu": common.query_start_loc_cpu, "seq_lens_cpu": common.seq_lens_cpu}
    must_contradict(build, lengths, optional)
    choose = choices_by((batch.query_start_loc, batch.seq_lens))
    if batch.num_requests and choose.random() < 0.25:
        seq_lens = common.seq_lens_cpu.clone()
        seq_lens[-1] = length = choose.choice((-1, batch.max_seq_len + 1))
        must_raise(lambda: build(seq_lens_cpu=seq_lens), f"a length of {length} on the host")

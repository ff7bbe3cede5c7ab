"""Participants in cases of latent attention: our kernel with other launch parameters, and vLLM's kernel."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.launch.table import Parameters
from attn_optimized.launch.tiles import attention_tiles
from attn_optimized.launch.workload import Workload

from benchmarks.participants.attention import VLLM, Participant, Prepared, poisoned
from benchmarks.participants.launches import launches
from benchmarks.steps.calls import Call
from benchmarks.steps.cases import Attention

VLLM_WORK_PER_SPLIT, VLLM_PROGRAMS_PER_UNIT = 512, 2
"""The constants by which vLLM's backend TRITON_MLA chooses the number of splits."""


def participants(vllm: SimpleNamespace | None, tries: Mapping[str, Sequence[int]]) -> Iterator[Participant]:
    """Ours with each combination of other launch parameters, and vLLM's kernel for steps of one length.

    Args:
        tries: values by the names of the fields of Parameters.
    """

    def joins(case: Attention) -> bool:
        return case.is_latent

    for values in itertools.product(*tries.values()) if tries else ():
        changed = dict(zip(tries, values, strict=True))
        name = " ".join(f"{name}={value}" for name, value in changed.items())
        yield Participant(name, functools.partial(ours_with, changed), joins)
    if vllm is not None:
        rows = functools.partial(vllm_triton, vllm)
        yield Participant(VLLM, rows, lambda case: joins(case) and len({*case.query_lens}) == 1 and case.selection is None)


def ours_with(changed: Mapping[str, int], call: Call) -> Prepared:
    """Our kernel with some launch parameters other than those of the table."""
    out, gpu = poisoned(call), (architecture_of(call.q.device, call.q.dtype), compute_units_of(call.q.device))
    today: Parameters = attention_tiles(Workload.of(call.q, call.layer, call.batch), *gpu).parameters
    parameters = dataclasses.replace(today, **changed)

    def run() -> None:
        for launch in launches(call, parameters, out=out):
            launch.run(call.q.device)

    return Prepared(run, lambda _: out)


def vllm_triton(module: SimpleNamespace, call: Call) -> Prepared:
    """`decode_attention_fwd` as vLLM's TRITON_MLA calls it: one row for each query token, its own length beside it."""
    case, batch = call.case, call.batch
    out, query_len, kv_cache = poisoned(call), case.query_lens[0], call.cache
    num_splits = 1 << (max(1, batch.max_seq_len // VLLM_WORK_PER_SPLIT) - 1).bit_length()
    num_splits = min(num_splits, compute_units_of(call.q.device) * VLLM_PROGRAMS_PER_UNIT)
    block_table = batch.block_table
    assert block_table is not None
    ahead = torch.arange(1 - query_len, 1, device=out.device, dtype=torch.int32)
    one = torch.ones((), device=out.device) if call.layer.k_scale is None else call.layer.k_scale
    arguments: dict[str, Any] = {
        "q": call.q,
        "k_buffer": kv_cache.unsqueeze(2),
        "v_buffer": kv_cache.unsqueeze(2)[..., : case.v_head_size],
        "o": out,
        "lse": torch.empty(out.shape[:2], dtype=out.dtype, device=out.device),
        "req_to_token": block_table.repeat_interleave(query_len, dim=0),
        "b_seq_len": (batch.seq_lens.unsqueeze(1) + ahead).flatten(),
        "attn_logits": torch.empty((*out.shape[:2], num_splits, case.v_head_size + 1), dtype=torch.float32, device=out.device),
        "num_kv_splits": num_splits,
        "sm_scale": call.layer.scale,
        "page_size": case.block_size,
        "k_scale": one,
        "v_scale": one,
        "is_mla": True,
    }
    return Prepared(functools.partial(module.decode_attention_fwd, **arguments), lambda _: out)

"""Targets of attention over ranks, without a network: one call becomes a local call for each rank, and one merge.

The number of ranks, the number of tokens that a rank is dealt at a time, and the order of the ranks in the merge follow from
the sizes of the call. The outcome is judged against the undivided reference: any dealing must give the same, in any order.
"""

import dataclasses
import random
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Layer, Layout
from attn_contract.arguments import INT32_MAX
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.merge import EVERY_OPTION
from attn_fuzz.targets.parts import AttentionState, parts_like, requests_of, stacked, write_state
from attn_fuzz.targets.ranks.shards import dealt, interleave, refuse_without_a_cache
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import WITH_LATENT, Support
from attn_fuzz.targets.target import Target
from attn_fuzz.targets.triton import TRITON, TRITON_LATENT
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import context_parallel

NUM_RANKS = (2, 2, 1, 3, 4, 5, 8)


def _dealing(rng: random.Random, layer: Layer) -> tuple[int, int, list[int]]:
    """The number of ranks, the tokens that are dealt at once, and the order in which the parts of ranks are merged."""
    num_ranks = rng.choice(NUM_RANKS)
    return num_ranks, interleave(rng, layer), rng.sample(range(num_ranks), num_ranks)


def _triton_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized
    from attn_optimized import context_parallel as ranks

    refuse_without_a_cache(kv_cache, layer)
    rng = rng_of_call(q, batch)
    num_ranks, dealt_at_once, order = _dealing(rng, layer)
    rows = int(batch.query_start_loc[-1])
    outs, lses = stacked(q, layer, num_ranks, rng)
    for rank in range(num_ranks):
        dealing = ranks.Dealing(num_ranks=num_ranks, rank=rank, interleave=dealt_at_once)
        # the largest bound that a step may have, which a rank's step has a bound for, too
        ranks.local_step(dataclasses.replace(batch, max_seq_len=INT32_MAX), dealing)
        own, step = dealt(kv_cache, layer, batch, dealing, rng)
        # dense in the last dimension, as an LSE must be; rows that no request owns have none
        part_lse = torch.full(lses.shape[1:], -torch.inf, device=q.device)
        of_rank = own.kv_cache, ranks.local_layer(own.layer, dealing), step.of_layer(own.layer)
        attn_optimized.paged_attention(q, *of_rank, out=outs[rank], lse=part_lse, validate=True)
        lses[rank].copy_(part_lse)
    outs, lses = outs[order, :rows], lses[order, :, :rows]
    out, lse = rows_of(out, layer, rows), None if lse is None else lse[:, :rows]
    options: dict[str, Any] = {} if layer.output_scale is None else {"output_scale": layer.output_scale}
    if rng.random() < 0.5:
        # as a reduce-scatter sums
        shares, merged_lses = zip(*(ranks.weighted_part(outs[i], lses, i) for i in range(num_ranks)), strict=True)
        outs, lses = torch.stack(shares).sum(0, keepdim=True), merged_lses[0][None]
        if not options:
            out.copy_(outs[0])
            if lse is not None:
                lse.copy_(lses[0])
            return
    attn_optimized.merge_attn_parts(outs, lses, out=out, lse=lse, **options)


def _reference_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    rng = rng_of_call(q, batch)
    num_ranks, dealt_at_once, order = _dealing(rng, layer)
    rows = int(batch.query_start_loc[-1])
    outs, lses = stacked(parts_like(q, out, layer, rows), layer, num_ranks, rng)
    for request in requests_of(q, k, v, kv_cache, layer, batch):
        for rank, place in enumerate(order):
            held = context_parallel.local_request(request, rank, num_ranks, dealt_at_once)
            found = attn_reference.attend(held, context_parallel.local_layer(layer, rank))
            empty = rng.choice(EVERY_OPTION.empty_lses)
            write_state(AttentionState(outs[place], lses[place]), request.rows, found.out, found.lse, empty)
    attn_reference.merge_attn_parts(
        outs,
        lses,
        out=rows_of(out, layer, rows),
        lse=None if lse is None else lse[:, :rows],
        output_scale=layer.output_scale,
    )


def ranks_support(device: str) -> Support:
    sizes = {"max_tokens": 16, "max_seq_len": 128} if device == "cpu" else {"max_tokens": 256, "max_seq_len": 2048}
    return dataclasses.replace(
        TRITON.support(device),
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
        rules=("selection_unit", "logits_soft_cap", "sinks", "non_causal", "per_request_causal", "lse"),
        long_seq_len=None,
        **sizes,
    )


def ranks_rounding(device: str) -> Rounding:
    return dataclasses.replace(TRITON.rounding(device), merged_parts=2, exact_division=False)


def _latent(target: Target) -> Target:
    latent = TRITON_LATENT.support

    def support(device: str) -> Support:
        return dataclasses.replace(
            ranks_support(device),
            layouts=(Layout.LATENT, Layout.BLOCKS_FIRST_NHD),
            rules=(*ranks_support(device).rules, "head_size_v"),
            latent=dataclasses.replace(latent(device).latent, group_sizes=(16, 1, 12)),
            scales=latent(device).scales,
            cache_dtypes=latent(device).cache_dtypes,
        )

    def rounding(device: str) -> Rounding:
        return dataclasses.replace(TRITON_LATENT.rounding(device), merged_parts=2, exact_division=False)

    description = "latent caches (MLA) over ranks that share each request's keys: local calls and one merge, without a network"
    return dataclasses.replace(target, description=description, support=support, rounding=rounding)


TRITON_RANKS = Target(
    name="triton-ranks",
    description="the Triton kernels over ranks that share each request's keys: local calls and one merge, without a network",
    attention=_triton_attention,
    support=ranks_support,
    rounding=ranks_rounding,
    unavailable=triton_unavailable,
    forget=TRITON.forget,
    modules=TRITON.modules,
    modes={"latent": _latent},
    formats=("latent",),
    planned=TRITON.planned,
)
REFERENCE_RANKS = Target(
    name="reference-ranks",
    description="the reference over ranks that share each request's keys: any rule, by the keys' global positions",
    attention=_reference_attention,
    support=lambda device: dataclasses.replace(WITH_LATENT, max_tokens=128, max_seq_len=512),
    rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=2),
)

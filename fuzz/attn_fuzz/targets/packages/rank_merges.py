"""Merges over ranks of decode context parallelism: the reference attends to the keys of each rank, and kernels merge.

No network is needed: what ranks send each other is passed on here. An LSE is -inf, +inf or NaN where a rank has no key, and the
output NaN. LSEs have base e or 2. Those of 16 bits are numbers that 16 bits hold, and what they lose is put into the outputs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import attn_reference
import torch
from attn_contract import AttentionType, Layer
from attn_fuzz.cases.poison import LEFTOVER_LSE
from attn_fuzz.targets.merge import EVERY_OPTION
from attn_fuzz.targets.parts import AttentionState, parts_like, requests_of, write_state
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import EVERYTHING
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import context_parallel
from attn_reference.rounding import rounded

INTERLEAVES = (1, 1, 2, 16)
MAX_LSE = 256.0
"""The largest LSE that is drawn. 16 bits round a larger one too coarsely to write it into an output."""
HEAD_SIZES = (32, 16, 64, 128, 256)
"""`tl.arange(0, HEAD_DIM)`: powers of two, as Lkv = 512 and the head sizes of models are."""
Merge = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Outs [N, B, H, D], LSEs [N, B, H] and more -> the merged out [B, H, D] and LSE [B, H]."""


def _on_each_rank(
    request: attn_reference.Request, layer: Layer, num_ranks: int, interleave: int
) -> tuple[AttentionState, attn_reference.Request]:
    """Attention on each rank, stacked, and the request."""
    held = [context_parallel.local_request(request, rank, num_ranks, interleave) for rank in range(num_ranks)]
    found = [attn_reference.attend(part, context_parallel.local_layer(layer, rank)) for rank, part in enumerate(held)]
    return AttentionState(torch.stack([each.out for each in found]), torch.stack([each.lse for each in found])), request


def stored_in(dtype: torch.dtype, parts: AttentionState, log_of_base: float) -> AttentionState:
    """The same parts, [N, rows, H, D] and [N, H, rows], with LSEs to a base that a dtype holds.

    What LSEs of 16 bits lose is put into the outputs, so that they merge to the same. LSEs of float32 lose too little to count.
    """
    stored = (parts.lse / log_of_base).to(dtype).to(parts.lse.dtype)
    if dtype is torch.float32:
        return AttentionState(parts.out, stored)
    natural = stored * log_of_base
    lost = (parts.lse - natural).nan_to_num(0.0) + (natural.logsumexp(0) - parts.lse.logsumexp(0)).nan_to_num(0.0)
    return AttentionState(parts.out * lost.exp().transpose(1, 2)[..., None], stored)


def over_ranks(
    merge: Merge, num_ranks_of: tuple[int, ...], *, has_lengths: bool = False, narrow_lses: bool = False
) -> AttentionFunction:
    """Attention by the reference on each rank, and a merge.

    Args:
        num_ranks_of: numbers of ranks to choose from.
        has_lengths: True if the merge takes local lengths, and masks requests of which a rank has no token.
        narrow_lses: True if LSEs may have the dtype of the output, and not float32.
    """

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        rng = rng_of_call(q, batch)
        num_ranks, interleave, is_base_e = rng.choice(num_ranks_of), rng.choice(INTERLEAVES), rng.random() < 0.5
        rows, num_tokens, num_heads = int(batch.query_start_loc[-1]), len(q), layer.num_heads
        # heads come in as many parts as there are ranks: further ones are copies of the first
        heads = [*range(num_heads), *[0] * (-num_heads % num_ranks)]
        dtype = parts_like(q, out, layer, rows).dtype
        log_of_base = 1.0 if is_base_e else math.log(2.0)
        found = [_on_each_rank(each, layer, num_ranks, interleave) for each in requests_of(q, k, v, kv_cache, layer, batch)]
        is_small = all(bool((part.lse.nan_to_num(neginf=0.0).abs() < MAX_LSE).all()) for part, _ in found)
        # a merged LSE has the dtype of the parts'
        may_be_narrow = narrow_lses and is_small and lse is None
        lse_dtype = rng.choice((dtype, torch.float32)) if may_be_narrow else torch.float32
        outs = torch.full((num_ranks, num_tokens, num_heads, layer.v_head_size), torch.nan, dtype=dtype, device=q.device)
        lses = torch.full((num_ranks, num_heads, num_tokens), -torch.inf, dtype=lse_dtype, device=q.device)
        local = [
            [context_parallel.local_length(n, rank, num_ranks, interleave) for n in batch.seq_lens.tolist()]
            for rank in range(num_ranks)
        ]
        for part, request in found:
            for rank, (out_part, lse_part) in enumerate(zip(*stored_in(lse_dtype, part, log_of_base), strict=True)):
                is_masked = has_lengths and not local[rank][request.index]
                empty = LEFTOVER_LSE if is_masked else rng.choice(EVERY_OPTION.empty_lses)
                write_state(AttentionState(outs[rank], lses[rank]), request.rows, out_part, lse_part, empty)
        lengths: dict[str, Any] = {}
        if has_lengths:
            lengths["seq_lens"] = [torch.tensor(one, dtype=torch.int32, device=q.device) for one in local]
            lengths["query_start_loc"] = batch.query_start_loc
        by_row = lses[:, heads].transpose(1, 2)
        by_row = by_row if rng.random() < 0.5 else by_row.contiguous()
        merged, merged_lse = merge(outs[:, :, heads].contiguous(), by_row, is_base_e=is_base_e, **lengths)
        rows_of(out, layer, rows)[:] = rounded(merged[:rows, :num_heads], dtype)
        if lse is not None:
            lse[:, :rows] = (merged_lse.double() * log_of_base)[:rows, :num_heads].T.float()

    return attention


def rank_target(
    name: str, attention: AttentionFunction, *, merged_parts: int = 2, without: tuple[str, ...] = ("sinks",), **fields: Any
) -> Target:
    """A target of attention by `over_ranks`.

    Args:
        without: rules that the merge does not know.
        fields: other fields of Target.
    """
    support = dataclasses.replace(
        EVERYTHING,
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER),
        rules=tuple(rule for rule in EVERYTHING.rules if rule not in without),
        head_sizes=HEAD_SIZES,
        output_dtypes=(),
        # each token and head has a program of its own
        group_sizes=(1, 2, 3, 8),
        max_tokens=8,
        max_seq_len=128,
    )
    return Target(
        name=name,
        attention=attention,
        support=lambda device: support,
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=merged_parts),
        **fields,
    )

"""Cascade attention: one pass attends to the prefix that all requests share, for all of their queries together."""

import dataclasses
from collections.abc import Iterator

import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, UnsupportedError
from attn_contract.arguments import check_int
from attn_contract.rules import active_rules, label_of
from attn_contract.validation import check_paged_attention

from attn_optimized.attention import part_call, plan_of, reduce_call
from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch.call import AttentionCall, PagedKeys, new_output
from attn_optimized.launch.parts import Parts
from attn_optimized.strides import kv_cache_strides

MIN_SAVED = 128 << 20
"""Bytes of K and V from which on a cascade is the faster way. On an H200, of 36 drawn shared prefixes the plain call was faster
in all five that save at most 94 MB (1.08 to 1.8 times), in one of three up to 204 MB (1.09), and in none of the others."""


def cascade_pays(kv_cache: torch.Tensor, layer: Layer, batch: Batch, common_prefix_len: int) -> bool:
    """True if `cascade_attention` is likely faster than `paged_attention`: it reads a prefix once, by two more launches."""
    row_bytes = layer.num_kv_heads * (layer.head_size + layer.v_head_size) * kv_cache.element_size()
    return (batch.num_requests - 1) * common_prefix_len * row_bytes >= MIN_SAVED


def cascade_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    common_prefix_len: int,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    validate: bool = False,
) -> torch.Tensor:
    """`paged_attention` where the first keys of all requests are the same blocks (Hydragen, arXiv 2402.05099).

    The prefix's keys are read once for all queries instead of once for each request. A second pass attends to the other keys of
    each request, and both parts are reduced to one softmax.

    Args:
        common_prefix_len: the number of leading keys that request 0 and every request with a query have in the same blocks. It
            is a multiple of the block size, and all these keys are context.
        q, kv_cache, layer, batch, out, lse, validate: as for `paged_attention`.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: the layer is no decoder, has a latent cache, or has a rule of positions, which attention to the prefix
            ignores; or as `paged_attention`. Nothing was written.
    """
    view = check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
    check_int("common_prefix_len", common_prefix_len, minimum=0)
    assert batch.block_table is not None
    capacity = batch.block_table.shape[1] * view.block_size
    if common_prefix_len % view.block_size or common_prefix_len > capacity:
        expected = f"a multiple of the block size ({view.block_size}), at most {capacity}"
        raise ContractError("common_prefix_len", common_prefix_len, expected)
    _refuse_unserved(layer, batch)
    if validate:
        _check_prefix(batch, common_prefix_len, common_prefix_len // view.block_size)

    out = new_output(q, layer) if out is None else out
    for call in cascade_attention_calls(q, kv_cache, layer, batch, common_prefix_len, out=out, lse=lse):
        call.run(q.device)
    return out


def cascade_attention_calls(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    common_prefix_len: int,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    architecture: str | None = None,
    compute_units: int | None = None,
) -> Iterator[KernelCall]:
    """The launches of `cascade_attention`: see `paged_attention_calls`. The batch is cut in two on its device immediately."""
    if not batch.num_requests:
        return
    assert batch.block_table is not None
    prefix_blocks = common_prefix_len // kv_cache_strides(kv_cache, layer).block_size
    query_start_loc = batch.query_start_loc
    prefix = dataclasses.replace(
        batch,
        query_start_loc=torch.stack([query_start_loc[0], query_start_loc[-1]]),
        seq_lens=torch.full_like(batch.seq_lens[:1], common_prefix_len),
        max_query_len=batch.num_actual_tokens,
        max_seq_len=common_prefix_len,
        causal=False,
        block_table=batch.block_table[:1],
        slot_mapping=None,
        qq_bias=None,
    )
    suffix = dataclasses.replace(
        batch,
        seq_lens=batch.seq_lens - common_prefix_len,
        max_seq_len=max(0, batch.max_seq_len - common_prefix_len),
        block_table=batch.block_table[:, prefix_blocks:],
        slot_mapping=None,
    )
    prefix_plan, suffix_plan = (
        plan_of(q, layer, one, architecture=architecture, compute_units=compute_units) for one in (prefix, suffix)
    )
    parts = Parts.empty(prefix_plan.splits + suffix_plan.splits, q, layer, batch)
    keys = PagedKeys(kv_cache)
    # the sink joins exactly one part; q takes the place of an output, which these two calls do not write
    attend_prefix = AttentionCall(q, keys, dataclasses.replace(layer, sinks=None), prefix, q, None)
    attend_suffix = AttentionCall(q, keys, layer, suffix, q, None)
    yield part_call(prefix_plan, attend_prefix, parts, 0)
    yield part_call(suffix_plan, attend_suffix, parts, prefix_plan.splits)
    yield reduce_call(suffix_plan, AttentionCall(q, keys, layer, batch, out, lse), parts)


IMPLEMENTED_RULES = frozenset(
    {"logits_soft_cap", "q_scale", "sinks", "sink_tokens", "ranges_clamped", "qq_bias", "head_size_v"}
)
"""The rules that need no position of a key. `sink_tokens` has no effect without a window, nor `ranges_clamped` without
ranges."""


def _refuse_unserved(layer: Layer, batch: Batch) -> None:
    if layer.layout is not None and layer.layout.has_latent_value:
        reason = "a latent cache is not split into a prefix and a rest"
        raise UnsupportedError("cascade_attention", label_of("head_size_v"), reason, "paged_attention")
    refused = [] if layer.attn_type is AttentionType.DECODER else [f"{layer.attn_type} attention"]
    refused += [label_of(name) for name in active_rules(layer, batch) if name not in IMPLEMENTED_RULES]
    if refused:
        reason = "the shared prefix is attended to without the positions of each request"
        raise UnsupportedError("cascade_attention", refused[0], reason, "paged_attention")


def _check_prefix(batch: Batch, common_prefix_len: int, num_blocks: int) -> None:
    assert batch.block_table is not None
    query_lens = batch.query_start_loc.diff()
    # a request with more queries than keys has no context
    short = ((batch.seq_lens - query_lens).clamp(min=0) < common_prefix_len) & (query_lens > 0)
    if len(wrong := short.nonzero()):
        r = int(wrong[0])
        context_len = int(batch.seq_lens[r] - query_lens[r])
        raise ContractError("common_prefix_len", common_prefix_len, f"at most request {r}'s context ({context_len})")
    blocks = batch.block_table[:, :num_blocks]
    if len(wrong := ((blocks != blocks[:1]).any(1) & (query_lens > 0)).nonzero()):
        r = int(wrong[0])
        raise ContractError(
            f"block_table[{r}]", "other blocks", f"request 0's first {num_blocks} blocks: they share the prefix"
        )

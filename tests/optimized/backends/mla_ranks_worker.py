"""The process of `test_triton_mla_over_ranks` on a rank: a step of latent attention through the backend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from attn_contract import AttentionType, Layout
from attn_fuzz.targets.backends.layers import common_metadata
from attn_fuzz.targets.backends.mla import MlaStep, Weights, attend_phases, own_rows, weights
from attn_optimized.backends import BACKENDS, CommonAttentionMetadata
from attn_optimized.backends.triton_mla import MlaMetadata, over_ranks
from attn_optimized.context_parallel import Dealing
from attn_reference import context_parallel

from tests.optimized.context_parallel.ranks_worker import LONG, device_of
from tests.support import calls

HEADS, LATENT, ROPE, BLOCK_SIZE = 6, 32, 8, 16
"""Two and three ranks have as many heads each."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step, and how ranks attend to it."""

    query_lens: Sequence[int]
    seq_lens: Sequence[int]
    interleave: int = 1
    exchange: str = "reduce_scatter"
    context_chunk_keys: int = 1024
    num_speculative_tokens: int = 0
    causal: bool = True
    is_quantized: bool = False
    validate: bool = True
    batch_invariant: bool = False


def whole_call(case: Case, device: str = "cpu") -> calls.PagedCall:
    """The step as one process has it, absorbed."""
    sizes = {"num_heads": HEADS, "num_kv_heads": 1, "head_size": LATENT + ROPE}
    tokens = calls.random_tokens(case.query_lens, case.seq_lens, dtype=torch.float16, **sizes)
    fields: dict[str, Any] = {"layout": Layout.LATENT, "head_size_v": LATENT, "causal": case.causal, "gap": 0}
    if case.is_quantized:
        # a power of two: what is read is rounded to the same number when it is written
        fields |= {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor(0.0625, device=device)}
    return calls.paged_call(tokens, block_size=BLOCK_SIZE, device=device, **fields)


@dataclass(frozen=True, eq=False, kw_only=True)
class RankStep:
    """A step as one rank has it.

    `before` and `after` are its cache without and with the tokens of this step; what is not a token of this rank is NaN.
    """

    q: torch.Tensor
    new: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    common: CommonAttentionMetadata
    weights: Weights


def rank_step(case: Case, rank: int, num_ranks: int, device: str = "cpu") -> RankStep:
    whole = whole_call(case, device)
    sizes = {"num_heads": HEADS, "num_kv_heads": 1, "head_size": LATENT + ROPE}
    tokens = calls.random_tokens(case.query_lens, case.seq_lens, dtype=torch.float16, **sizes)
    dealt = rank, num_ranks, case.interleave
    own = [context_parallel.tokens_of_rank(length, *dealt) for length in case.seq_lens]
    key = torch.cat([rows[i] for rows, i in zip(tokens.key.split(list(case.seq_lens)), own, strict=True)])
    local_lens = [len(i) for i in own]
    local = replace(tokens, key=key, value=key, seq_lens=local_lens)
    rules = {"head_size_v": LATENT, "kv_cache_dtype": whole.layer.kv_cache_dtype, "k_scale": whole.layer.k_scale}
    make = {"layout": Layout.LATENT, "block_size": BLOCK_SIZE, "gap": 0, "device": device, **rules}
    blocks = calls.shuffled_blocks(local_lens, BLOCK_SIZE)
    slots = []
    for r, (query_len, seq_len) in enumerate(zip(case.query_lens, case.seq_lens, strict=True)):
        positions = torch.arange(seq_len - query_len, seq_len)
        slots.append(context_parallel.local_slots(positions, blocks.table[r], BLOCK_SIZE, *dealt))
    slot_mapping = torch.cat(slots)
    after = calls.paged_call(local, **make)
    before = calls.forget(calls.paged_call(local, **make), slot_mapping[slot_mapping >= 0])
    common = common_metadata(whole.batch, AttentionType.DECODER)
    common = replace(common, block_table_tensor=blocks.table.to(device), slot_mapping=slot_mapping.to(device))
    all_weights, heads = weights(HEADS, LATENT, torch.float16, torch.device(device)), HEADS // num_ranks
    chosen = slice(rank * heads, (rank + 1) * heads)
    return RankStep(
        q=whole.q[:, chosen],
        new=own_rows(whole.q, whole.kv_cache, whole.layer, whole.batch),
        before=before.kv_cache,
        after=after.kv_cache,
        common=common,
        weights=all_weights.of_heads(chosen),
    )


def impl_of(
    own_group: dist.ProcessGroup, case: Case, step: RankStep, of_layer: dict[str, Any] | None = None, **changed: Any
) -> Any:
    heads = HEADS // own_group.size()
    layer = replace(whole_call(case, device_of(own_group)).layer, num_heads=heads, **(of_layer or {}))
    options = {
        "dtype": torch.float16,
        "block_size": BLOCK_SIZE,
        "kv_b_proj": step.weights.kv_b_proj,
        "v_head_dim": LATENT,
        "group": own_group,
        "exchange": case.exchange,
        "timeout": LONG,
        "validate": case.validate,
        "batch_invariant": case.batch_invariant,
    }
    return BACKENDS["TRITON_MLA"].over_ranks().impl(layer, **{**options, **changed})


def metadata_of(group: dist.ProcessGroup, case: Case, common: CommonAttentionMetadata, **changed: Any) -> Any:
    options = {
        "dealing": Dealing(num_ranks=group.size(), rank=group.rank(), interleave=case.interleave),
        "num_speculative_tokens": case.num_speculative_tokens,
        "context_chunk_keys": case.context_chunk_keys,
        **changed,
    }
    return BACKENDS["TRITON_MLA"].over_ranks().builder(AttentionType.DECODER, **options).build(common)


def attends(group: dist.ProcessGroup, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output [T, N, Lkv] and the LSE [N, T] of this rank's heads, absorbed; and whether the cache is right."""
    step = rank_step(case, group.rank(), group.size(), device_of(group))
    metadata = metadata_of(group, case, step.common)
    impl = impl_of(group, case, step)
    impl.do_kv_cache_update(step.new[:, :LATENT], step.new[:, LATENT:], step.before, step.common.slot_mapping)
    out, lse = _attended(impl, metadata, step, step.before)
    as_bytes = (cache.contiguous().view(torch.uint8) for cache in (step.before, step.after))
    return out, lse, torch.tensor(torch.equal(*as_bytes))


def _attended(impl: Any, metadata: Any, step: RankStep, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the LSE of this rank's heads; NaN in rows of no request."""
    out = torch.full((*step.q.shape[:2], LATENT), torch.nan, dtype=torch.float16, device=step.q.device)
    lse = torch.full((step.q.shape[1], len(step.q)), torch.nan, device=step.q.device)
    attend_phases(impl, MlaStep(metadata, step.weights, step.q, step.new, kv_cache, out, lse))
    return out, lse


def attends_to_the_first(group: dist.ProcessGroup, case: Case, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the first requests, in a step of these alone."""
    step = rank_step(case, group.rank(), group.size(), device_of(group))
    common, rows = step.common, sum(case.query_lens[:count])
    first = replace(
        common,
        query_start_loc=common.query_start_loc[: count + 1],
        query_start_loc_cpu=common.query_start_loc_cpu[: count + 1],
        seq_lens=common.seq_lens[:count],
        seq_lens_cpu=common.seq_lens_cpu[:count],
        num_actual_tokens=rows,
        block_table_tensor=common.block_table_tensor[:count],
        slot_mapping=common.slot_mapping[:rows],
    )
    out, lse = _attended(impl_of(group, case, step), metadata_of(group, case, first), step, step.after)
    return out[:rows], lse[:, :rows]


def calls_of(
    group: dist.ProcessGroup, case: Case, builder: dict[str, Any], of_step: Any = None, **of_layer: Any
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The method for a step of one phase, and its arguments."""
    step = rank_step(case, group.rank(), group.size(), device_of(group))
    metadata = metadata_of(group, case, of_step(step.common) if of_step else step.common, **builder)
    impl = impl_of(group, case, step, of_layer)
    num_tokens, heads = len(step.new) - calls.UNOWNED_ROWS, step.q.shape[1]
    q = step.q[:num_tokens]
    given = {"kv_cache": step.after, "attn_metadata": metadata, "output": q.new_empty(num_tokens, heads, LATENT)}
    if metadata.decode is not None:
        q = step.q
        return impl.forward_mqa, {"query": q, **given, "output": q.new_empty(len(q), heads, LATENT)}
    new = {"kv_c": step.new[:num_tokens, :LATENT], "k_pe": step.new[:num_tokens, LATENT:]}
    return impl.forward_mha, {"query": step.weights.unfolded(q), **new, **given}


def disagrees(
    group: dist.ProcessGroup,
    case: Case,
    builder: dict[str, Any] | None = None,
    changes: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **other: Any,
) -> tuple[torch.Tensor]:
    """A call that is another one on rank 1.

    Args:
        builder: options of its builder.
        changes: some of its arguments, changed.
        other: `of_step`, which changes the metadata of its step; fields of its layer.
    """
    is_other = group.rank() == 1
    method, arguments = calls_of(group, case, builder or {}, **other) if is_other else calls_of(group, case, {})
    if is_other and changes is not None:
        arguments |= changes(arguments)
    return (method(**arguments),)


def is_wrong_after_a_right_call(
    group: dist.ProcessGroup, case: Case, changes: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[torch.Tensor]:
    """A call whose arguments are changed on all ranks, of a layer that has made the same call before."""
    method, arguments = calls_of(group, case, {})
    method(**arguments)
    return (method(**arguments | changes(arguments)),)


def with_another_cut(common: CommonAttentionMetadata) -> CommonAttentionMetadata:
    """The same rows, of which the first request has one less."""
    starts = common.query_start_loc_cpu.clone()
    starts[1] -= 1
    return replace(common, query_start_loc_cpu=starts, query_start_loc=starts.to(common.query_start_loc.device))


def with_a_key_less(common: CommonAttentionMetadata) -> CommonAttentionMetadata:
    assert common.seq_lens_cpu is not None
    lens = common.seq_lens_cpu.clone()
    lens[-1] -= 1
    return replace(common, seq_lens_cpu=lens, seq_lens=lens.to(common.seq_lens.device))


def with_output_in_the_query(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the output in the query, of the signature that the output had."""
    query, output = arguments["query"], arguments["output"]
    return {"output": query.as_strided(output.shape, output.stride())}


def with_query_that_needs_a_gradient(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"query": arguments["query"].detach().requires_grad_()}


def with_output_of_one_head(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"output": arguments["output"][:, :1]}


def with_a_row_too_many(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"kv_c": torch.cat([arguments["kv_c"], arguments["kv_c"][:1]])}


def with_metadata_of_one_process(arguments: dict[str, Any]) -> dict[str, Any]:
    metadata = arguments["attn_metadata"]
    fields = {name: getattr(metadata, name) for name in MlaMetadata.__dataclass_fields__}
    return {"attn_metadata": MlaMetadata(**fields)}


def with_a_block_that_does_not_exist(arguments: dict[str, Any]) -> dict[str, Any]:
    """In the block table of the decodes."""
    metadata = arguments["attn_metadata"]
    local = metadata.decode.local
    batch = replace(local.batch, block_table=torch.full_like(local.batch.block_table, 999))
    return {"attn_metadata": replace(metadata, decode=replace(metadata.decode, local=replace(local, batch=batch)))}


def is_captured(group: dist.ProcessGroup, case: Case) -> tuple[torch.Tensor]:
    """A call while a CUDA graph is captured, as far as the layer knows. It is the last one of the process."""
    over_ranks.impl.is_captured = lambda tensor: True
    return disagrees(group, case)


def makes_a_layer(own_group: dist.ProcessGroup, case: Case, **changed: Any) -> tuple[torch.Tensor]:
    impl_of(own_group, case, rank_step(case, own_group.rank(), own_group.size()), **changed)
    return (torch.tensor(1),)


def gives_a_layer_of_one_process_its_metadata(group: dist.ProcessGroup, case: Case) -> tuple[torch.Tensor]:
    step = rank_step(case, group.rank(), group.size())
    options = {"dtype": torch.float16, "block_size": BLOCK_SIZE, "kv_b_proj": step.weights.kv_b_proj, "v_head_dim": LATENT}
    layer = replace(whole_call(case).layer, num_heads=HEADS // group.size())
    impl = BACKENDS["TRITON_MLA"].impl(layer, **options)
    _, arguments = calls_of(group, case, {})
    return (impl.forward_mha(**arguments),)

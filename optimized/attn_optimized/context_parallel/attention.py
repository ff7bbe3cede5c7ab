"""Attention over ranks: gather the heads, attend to the local keys, exchange, merge."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from attn_contract import FLOAT8_DTYPES, FLOAT_DTYPES, AttentionType, ContractError, Layer
from attn_contract.arguments import check_dims, check_tensor, check_type, shown
from attn_contract.validation import check_attention_tensors, check_paged_attention

from attn_optimized.attention import paged_attention
from attn_optimized.context_parallel.agreement import (
    TIMEOUT,
    Compared,
    OneOf,
    check_timeout,
    checksum,
    compare_calls,
    run,
    start,
)
from attn_optimized.context_parallel.dealing import LocalStep, local_layer
from attn_optimized.context_parallel.weights import weighted_part
from attn_optimized.merge import merge_attn_parts

Exchange = Literal["reduce_scatter", "all_to_all"]
"""The collective that exchanges the ranks' outputs.

reduce_scatter: LSEs are gathered, each rank weights its output, and the network sums the shares in float32. all_to_all: each
rank gets all parts of its own heads with their LSEs, one message from each rank, and merges them.
"""

_HEADS_OR_LSES = "gathering heads or LSEs"
# torch 2.13 has renamed both
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Row(NamedTuple):
    """A head's row of a message: its outputs, and after them their LSEs. Attention writes into it, so nothing is packed."""

    num_tokens: int
    v_head_size: int
    dtype: torch.dtype

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the outputs and of the LSEs, in whole units of 16, which kernels read and write at once; at least one."""
        sizes = self.v_head_size * self.dtype.itemsize, torch.float32.itemsize
        outputs, lses = ((self.num_tokens * size // 16 + 1) * 16 for size in sizes)
        return outputs, lses

    def read(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of a message [..., H, bytes]: outputs [..., T, H, D] and LSEs [..., H, T]."""
        outs, lses = message.split(self.sizes, dim=-1)
        outs = outs.view(self.dtype)[..., : self.num_tokens * self.v_head_size]
        by_token = outs.unflatten(-1, (self.num_tokens, self.v_head_size)).transpose(-3, -2)
        return by_token, lses.view(torch.float32)[..., : self.num_tokens]


class RankOutput(NamedTuple):
    """The output of this rank's heads. Rows that no request owns have an output of 0 and an LSE of -inf."""

    out: torch.Tensor
    """[T, H / N, D of V], of q's dtype, or float8 if the layer has an output_scale"""
    lse: torch.Tensor
    """[H / N, T] float32, natural logarithm, sinks included"""


def attend_over_ranks(
    group: dist.ProcessGroup,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    step: LocalStep,
    *,
    exchange: Exchange = "reduce_scatter",
    out_dtype: torch.dtype = torch.float8_e4m3fn,
    compare: bool = True,
    timeout: timedelta = TIMEOUT,
    attention: Callable[..., torch.Tensor] = paged_attention,
    merge: Callable[..., torch.Tensor] = merge_attn_parts,
) -> RankOutput:
    """Attention of all ranks' queries to the keys that all ranks hold. All ranks of the group call it together.

    Args:
        group: NCCL or RCCL for tensors on GPUs, gloo for those on a CPU. Its own timeout ends a process whose collective on a
            GPU never completes: create the group with a short one. The process's current GPU is that of q.
        q: [T, H / N, D], the queries of this rank's heads, which are the rank-th part of all heads.
        kv_cache: this rank's keys and values.
        layer: the layer of all H heads, with this rank's cache scales.
        step: the result of `local_step`.
        exchange: the way in which outputs meet.
        out_dtype: the dtype of the output if the layer has an output_scale.
        compare: first compare the call with those of the other ranks, which waits for all of them, and for the device. Without
            it, ranks whose calls differ wait until a timeout, or return wrong numbers.
        timeout: how long a rank waits for the others, where a process waits at all: when calls are compared, and in gloo. From
            1 ms to 365 days.
        attention, merge: the functions that attend and merge: the Triton kernels', or functions of the same signatures, such as
            the reference's on a CPU. `attention` writes into `out` and `lse`, which are strided views of a message.

    Raises:
        ContractError: the arguments contradict the contract, or are not the same on all ranks. Every rank raises an error.
        UnsupportedError: the layer has a rule of positions. Every rank raises an error.
        RanksError: another rank refused its call, came too late or has died.
    """
    check_type("group", group, dist.ProcessGroup, "a process group of torch.distributed")
    call: Exception | dict[str, Compared]
    wait = TIMEOUT  # if this rank's own is wrong
    try:
        check_timeout(timeout)
        wait = timeout
        check_type("compare", compare, bool, "a bool")
        _check_output(layer, out_dtype, attention, merge)
        call = _checked(group, q, kv_cache, layer, step, exchange)
        if compare:
            _check_before_others(q, kv_cache, layer, step)
    except Exception as error:  # whatever it is, the others wait for this rank
        if compare is False:
            raise
        call = error
    if compare is not False:
        compare_calls(group, call, COMPARED, wait)
    num_tokens, num_heads = len(q), layer.num_heads
    heads = _gathering(_HEADS_OR_LSES, group, q, timeout)  # while memory for the output is made ready
    of_rank = kv_cache, local_layer(layer, step.dealing), step.of_layer(layer)
    # a column that no request owns keeps an LSE of -inf, so that its row has no weight
    if exchange == "all_to_all":
        row = _Row(num_tokens, layer.v_head_size, q.dtype)
        message = torch.empty(num_heads, sum(row.sizes), dtype=torch.uint8, device=q.device)
        part, lse = row.read(message)
        lse.fill_(-torch.inf)
        attention(_of_all_heads(heads()), *of_rank, out=part, lse=lse)
        outs, lses = row.read(_swapped(group, message.unflatten(0, (group.size(), -1)), timeout))
    else:
        lse = torch.full((num_heads, num_tokens), -torch.inf, device=q.device)
        part = attention(_of_all_heads(heads()), *of_rank, lse=lse)
        share, merged_lse = weighted_part(part, gathered(_HEADS_OR_LSES, group, lse, timeout), group.rank())
        outs = _summed(group, _by_rank(group, share), timeout)[None]
        lses = merged_lse.unflatten(0, (group.size(), -1))[group.rank()][None]
    return _merged(outs, lses, part.dtype, layer, out_dtype, merge)


COMPARED = (
    *("rows of q", "heads of q", "head size of q", "dtype of q", "num_heads", "num_kv_heads", "head size of V"),
    *("attn_type", "scale", "logits_soft_cap", "sinks", "output_scale", "number of ranks", "interleave", "exchange"),
    *("requests", "num_actual_tokens", "rows of the local step", "selection_unit"),
    *("query_start_loc", "seq_lens", "causal", "selected"),
)
"""Arguments that must be the same on all ranks; the last four by a checksum of their values."""


def _check_output(layer: Layer, out_dtype: object, *functions: object) -> None:
    """Check what a rank does after the collectives, because the other ranks wait for it there."""
    check_type("layer", layer, Layer, "a Layer")
    if layer.output_scale is not None and out_dtype not in FLOAT8_DTYPES:
        raise ContractError("out_dtype", shown(out_dtype), "float8_e4m3fn or float8_e4m3fnuz: there is an output_scale")
    for name, function in zip(("attention", "merge"), functions, strict=True):
        if not callable(function):
            raise ContractError(name, shown(function), "a function")


def _checked(
    group: dist.ProcessGroup, q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, step: LocalStep, exchange: str
) -> dict[str, Compared]:
    """Check a call before it meets the others', and return its numbers by the names of COMPARED."""
    check_tensor("q", q)
    check_dims("q", q, ("T", "num_heads / ranks", "head_size"))
    check_type("step", step, LocalStep, "a LocalStep of local_step")
    own_layer = local_layer(layer, step.dealing)
    if layer.attn_type is not AttentionType.DECODER and step.whole.causal is not False:
        raise ContractError("causal", step.whole.causal, f"False for {layer.attn_type}")
    if q.dtype not in FLOAT_DTYPES:
        raise ContractError("q", q.dtype, "float32, float16 or bfloat16")
    if q.device != step.batch.seq_lens.device:
        raise ContractError("q", q.device, f"the device of the step ({step.batch.seq_lens.device})")
    if exchange not in get_args(Exchange):
        raise ContractError("exchange", shown(exchange), " or ".join(map(repr, get_args(Exchange))))
    dealt_to = (step.dealing.num_ranks, step.dealing.rank)
    if dealt_to != (group.size(), group.rank()):
        raise ContractError("step", f"rank {dealt_to[1]} of {dealt_to[0]}", f"rank {group.rank()} of {group.size()}")
    if q.shape[1] * group.size() != layer.num_heads:
        raise ContractError("q", f"{q.shape[1]} heads on {group.size()} ranks", f"num_heads ({layer.num_heads}) in all")
    # attention gets a copy, the gathered queries, so errors in q itself show only here
    check_attention_tensors({"q": q, "kv_cache": kv_cache}, own_layer, step.batch, None, None)
    return _told(q, layer, step, exchange)


def _check_before_others(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, step: LocalStep) -> None:
    """Make the checks of attention to all heads while the other ranks can still learn of an error."""
    of_all_heads = q[:, :1].expand(-1, layer.num_heads, -1)
    check_paged_attention(of_all_heads, kv_cache, local_layer(layer, step.dealing), step.batch, None, None, values=False)


def _told(q: torch.Tensor, layer: Layer, step: LocalStep, exchange: str) -> dict[str, Compared]:
    whole = step.whole
    return {
        "rows of q": q.shape[0],
        "heads of q": q.shape[1],
        "head size of q": q.shape[2],
        "dtype of q": OneOf(q.dtype, FLOAT_DTYPES),
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head size of V": layer.v_head_size,
        "attn_type": OneOf(layer.attn_type, tuple(AttentionType)),
        "scale": float(layer.scale),
        "logits_soft_cap": float(layer.logits_soft_cap or 0.0),
        "sinks": _presence(layer.sinks),
        "output_scale": _presence(layer.output_scale),
        "number of ranks": step.dealing.num_ranks,
        "interleave": step.dealing.interleave,
        "exchange": OneOf(exchange, get_args(Exchange)),
        "requests": whole.num_requests,
        "num_actual_tokens": whole.num_actual_tokens,
        "rows of the local step": step.batch.num_requests,
        "selection_unit": layer.selection_unit or 0,
        "query_start_loc": partial(checksum, whole.query_start_loc),
        "seq_lens": partial(checksum, whole.seq_lens),
        "causal": lambda: checksum(
            torch.as_tensor(whole.causal, device=whole.query_start_loc.device).expand(whole.num_requests)
        ),
        "selected": lambda: 0 if step.batch.selected is None else checksum(step.batch.selected),
    }


def _presence(tensor: torch.Tensor | None) -> OneOf:
    return OneOf("None" if tensor is None else "a tensor", ("None", "a tensor"))


def _merged(
    outs: torch.Tensor,
    lses: torch.Tensor,
    dtype: torch.dtype,
    layer: Layer,
    out_dtype: torch.dtype,
    merge: Callable[..., torch.Tensor],
) -> RankOutput:
    """Merge the parts [N, T, H / N, D] of this rank's heads, and round to `dtype`. What was summed is one part."""
    lse = torch.empty_like(lses[0], memory_format=torch.contiguous_format)
    if layer.output_scale is None:
        return RankOutput(merge(outs, lses, lse=lse).to(dtype), lse)
    out = torch.empty(outs.shape[1:], dtype=out_dtype, device=outs.device)
    return RankOutput(merge(outs, lses, out=out, lse=lse, output_scale=layer.output_scale), lse)


def _by_rank(group: dist.ProcessGroup, rows: torch.Tensor) -> torch.Tensor:
    """[T, H, D] -> [N, T, H / N, D]: for each rank the rows of its heads."""
    return rows.unflatten(1, (group.size(), -1)).transpose(0, 1)


def _of_all_heads(gathered_q: torch.Tensor) -> torch.Tensor:
    """[N, T, H / N, D] -> [T, H, D]"""
    return gathered_q.transpose(0, 1).flatten(1, 2)


def gathered(what: str, group: dist.ProcessGroup, tensor: torch.Tensor, timeout: timedelta) -> torch.Tensor:
    """[N, ...]: the tensors of all ranks, which have one shape and dtype.

    Args:
        what: the collective's name in an error.
        timeout: the time that a rank waits for the others in gloo.

    Raises:
        RanksError: a rank did not come.
    """
    return _gathering(what, group, tensor, timeout)()


def _gathering(what: str, group: dist.ProcessGroup, tensor: torch.Tensor, timeout: timedelta) -> Callable[[], torch.Tensor]:
    """Start what `gathered` does, and return what waits for its result."""
    own = _bytes(tensor)
    of_all = own.new_empty(group.size() * len(own))
    wait = start(what, group, timeout, _ALL_GATHER, of_all, own)

    def result() -> torch.Tensor:
        wait()
        return of_all.view(tensor.dtype).view(group.size(), *tensor.shape)

    return result


def _swapped(group: dist.ProcessGroup, parts: torch.Tensor, timeout: timedelta) -> torch.Tensor:
    """[N, ...]: part r of this rank goes to rank r, and part r of the result comes from rank r."""
    own = _bytes(parts)
    received = torch.empty_like(own)
    run("the all-to-all", group, timeout, dist.all_to_all_single, received, own)
    return received.view(parts.dtype).view(parts.shape)


def _summed(group: dist.ProcessGroup, parts: torch.Tensor, timeout: timedelta) -> torch.Tensor:
    """The sum of all ranks' part for this rank."""
    total = parts.new_empty(parts[0].numel())
    run("the reduce-scatter", group, timeout, _REDUCE_SCATTER, total, parts.flatten())
    return total.view(parts.shape[1:])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's memory, of a type that every backend moves."""
    dense = tensor.flatten().contiguous()
    # the stride of a single element may be anything, and torch asks for 1
    return dense.as_strided(dense.shape, (1,)).view(torch.uint8)

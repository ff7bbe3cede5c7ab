"""Context parallelism: one request's keys dealt to N ranks, and what each rank attends to.

**Dealing.** The tokens of a request are dealt like cards, `interleave` (I) tokens at a time. With N = 2 ranks and I = 2:

    token i          0  1  2  3  4  5  6  7  8
    rank             0  0  1  1  0  0  1  1  0      (i // I) % N
    local index      0  1  0  1  2  3  2  3  4      i // (I * N) * I + i % I

A rank keeps its tokens in their order, so its local token l is the token `l // I * I * N + rank * I + l % I`. Of L tokens, each
rank has the `base = L // (I * N) * I` of the whole rounds. Of the last round it has what the ranks before it have left:
`clip(L - base * N - rank * I, 0, I)`. A rank may have no token: an empty shard.

**Pages.** A rank stores its local token l in slot `l % BS` of the block `block_table[l // BS]`, like any token. If BS is a
multiple of I, then `l // BS == i // (BS * N)`: one block table serves all ranks, and an entry stands for BS * N tokens of the
request. A table made for the request's whole length would have N times too many entries (vLLM #48003).

**What a query sees.** Every rank has every query, at its position p in the whole sequence. The *global* index of a token says
whether the query sees it: a causal query sees the rank's tokens i <= p. Because a rank keeps the order, these are its first
`local_length(p + 1)` tokens. To count locally, as if the queries were the last local tokens, is wrong for every query of a
request but the last one. To divide p + 1 by N and round up is wrong on every rank that the last round has not reached
(lightseekorg/tokenspeed #364).

**Putting it together.** Each rank attends to its own keys, and `attn_reference.merge` merges the N results. A sink logit joins
exactly one of them, here that of rank 0. A rank without a visible key returns an LSE of -inf; an LSE of 0 would count as a key
(vLLM #38416).

The formulas are those of vLLM 0.33.0 (`get_dcp_local_seq_lens` in vllm/v1/attention/backends/utils.py). `i`, lengths and
positions are ints, or int64 tensors of any shape.
"""

from dataclasses import replace
from typing import TypeVar

import torch
from attn_contract import ContractError, Layer
from attn_contract.arguments import check_int, check_type, check_vector

from attn_reference.attention import Request

Index = TypeVar("Index", int, torch.Tensor)


def rank_of(i: Index, num_ranks: int, interleave: int = 1) -> Index:
    """The rank that has token i."""
    _check_dealing(num_ranks, interleave)
    return i // interleave % num_ranks


def local_index(i: Index, num_ranks: int, interleave: int = 1) -> Index:
    """The index of token i among its rank's tokens."""
    _check_dealing(num_ranks, interleave)
    return i // (interleave * num_ranks) * interleave + i % interleave


def global_index(local: Index, rank: int, num_ranks: int, interleave: int = 1) -> Index:
    """The token that is a rank's local token: the inverse of `rank_of` and `local_index`."""
    _check_dealing(num_ranks, interleave, rank)
    return local // interleave * (interleave * num_ranks) + rank * interleave + local % interleave


def local_length(length: int, rank: int, num_ranks: int, interleave: int = 1) -> int:
    """The number of the first `length` tokens that a rank has."""
    _check_dealing(num_ranks, interleave, rank)
    check_int("length", length, minimum=0)
    base = length // (interleave * num_ranks) * interleave
    rest = length - base * num_ranks - rank * interleave
    return base + min(max(rest, 0), interleave)


def tokens_of_rank(length: int, rank: int, num_ranks: int, interleave: int = 1) -> torch.Tensor:
    """[local_length] int64: which of the first `length` tokens a rank has, in its order."""
    return global_index(
        torch.arange(local_length(length, rank, num_ranks, interleave), device="cpu"), rank, num_ranks, interleave
    )


def local_slots(
    positions: torch.Tensor, block_table: torch.Tensor, block_size: int, rank: int, num_ranks: int, interleave: int = 1
) -> torch.Tensor:
    """A request's slots on a rank: a `slot_mapping` of `attn_reference.write_kv_cache`, with -1 for other ranks' tokens.

    Args:
        positions: [S] int64, positions of the tokens in the request.
        block_table: [blocks] int32, the request's row of the rank's block table.
        block_size: BS.

    Returns:
        [S] int64, `block * BS + slot`, or -1 for the tokens of other ranks.

    Raises:
        ContractError: an argument is of another shape or dtype, or out of range.
    """
    _check_dealing(num_ranks, interleave, rank)
    check_int("block_size", block_size, minimum=1)
    check_vector("positions", positions, torch.int64)
    check_vector("block_table", block_table, torch.int32)
    if (positions < 0).any():
        raise ContractError("positions", int(positions.min()), "positions in a request, from 0")
    is_own = rank_of(positions, num_ranks, interleave) == rank
    local = torch.where(is_own, local_index(positions, num_ranks, interleave), 0)
    if (local // block_size >= len(block_table)).any():
        got = f"{len(block_table)} blocks of {block_size} slots"
        raise ContractError("block_table", got, f"room for the rank's token {int(local.max())}")
    slots = block_table[local // block_size].long() * block_size + local % block_size
    return torch.where(is_own, slots, -1)


def local_request(request: Request, rank: int, num_ranks: int, interleave: int = 1) -> Request:
    """A request on a rank: all its queries, and the rank's keys as each query sees them in the whole sequence.

    Any rule may have made the request's visibility and biases: they belong to pairs of a query and a key, wherever the key is.
    """
    check_type("request", request, Request, "a Request")
    tokens = tokens_of_rank(len(request.key), rank, num_ranks, interleave).to(request.key.device)
    return replace(
        request,
        key=request.key[tokens],
        value=request.value[tokens],
        visible=request.visible[..., tokens],
        bias=None if request.bias is None else request.bias[..., tokens],
    )


def local_layer(layer: Layer, rank: int) -> Layer:
    """The layer as a rank attends with it: the sinks are rank 0's, and the output is quantized after the merge."""
    check_type("layer", layer, Layer, "a Layer")
    return replace(layer, sinks=layer.sinks if rank == 0 else None, output_scale=None)


def _check_dealing(num_ranks: int, interleave: int, rank: int = 0) -> None:
    check_int("num_ranks", num_ranks, minimum=1)
    check_int("interleave", interleave, minimum=1)
    check_int("rank", rank, minimum=0)
    if rank >= num_ranks:
        raise ContractError("rank", rank, f"one of {num_ranks} ranks, from 0")

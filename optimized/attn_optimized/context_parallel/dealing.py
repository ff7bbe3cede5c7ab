"""One rank's share of a step: its part of each request's keys, and the number of them that each query sees.

Token i of a request is on rank `i // interleave % num_ranks`, in the order of the tokens. So a query at position p sees a
rank's keys from the first one on: those of the first p + 1 tokens if it is causal, or of all tokens. A step has one length for
each request. In causal drafts and prefills the queries of a request see unlike numbers of keys: there, each query becomes a
request of its own, with the block table of its request.

A unit that a query selects lies on one rank, if `interleave` is a multiple of the unit. So a rank attends to the selected units
that are its own, by their local numbers.

Rules that hide keys by a distance or a position (windows, chunks, ranges) are refused, and so are rules that add to a logit by
it (ALiBi, qq_bias): a rank's neighbouring keys are no neighbours in the sequence.
"""

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.arguments import check_int, check_type
from attn_contract.rules import refuse_unnamed

IMPLEMENTED_RULES = frozenset({"head_size_v", "logits_soft_cap", "selection_unit", "sinks"})
"""The fields of Layer and Batch that attention over ranks implements, beside `causal`."""


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """The assignment of tokens to ranks: `interleave` at a time to each of `num_ranks` ranks in turn. `rank` is this one.

    Raises:
        ContractError: a number is out of range.
    """

    num_ranks: int
    rank: int
    interleave: int = 1

    def __post_init__(self) -> None:
        check_int("num_ranks", self.num_ranks, minimum=1)
        check_int("interleave", self.interleave, minimum=1)
        check_int("rank", self.rank, minimum=0)
        if self.rank >= self.num_ranks:
            raise ContractError("rank", self.rank, f"one of {self.num_ranks} ranks, from 0")

    @property
    def tokens_of_round(self) -> int:
        """Tokens in a round, in which each rank gets `interleave` of them."""
        return self.interleave * self.num_ranks

    def rank_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rank of each token of a request."""
        return tokens // self.interleave % self.num_ranks

    def local_index(self, tokens: torch.Tensor) -> torch.Tensor:
        """The local index of each token of a request, on its rank."""
        return tokens // self.tokens_of_round * self.interleave + tokens % self.interleave


@dataclass(frozen=True, eq=False)
class LocalStep:
    """A step as one rank attends in it. One serves all layers of a model.

    Args:
        whole: the step of the whole sequences, with the rank's own block table.
        batch: the step of the rank's keys. What is selected are units of the whole sequences: see `of_layer`.
        dealing: the dealing of the tokens.

    Raises:
        ContractError: an argument is of another type.
    """

    whole: Batch
    batch: Batch
    dealing: Dealing

    def __post_init__(self) -> None:
        check_type("whole", self.whole, Batch, "a Batch")
        check_type("batch", self.batch, Batch, "a Batch")
        check_type("dealing", self.dealing, Dealing, "a Dealing")

    def of_layer(self, layer: Layer) -> Batch:
        """The step of the rank's keys with the selected units of `layer.selection_unit` tokens that are the rank's own."""
        selected, unit, batch = self.batch.selected, layer.selection_unit, self.batch
        if selected is None or unit is None:
            return batch
        first = selected * unit
        local = self.dealing.local_index(first) // unit
        is_own = (selected >= 0) & (self.dealing.rank_of(first) == self.dealing.rank)
        if not _sees_same_keys(self.whole):  # a row's request ends at the keys that the row sees
            rows = batch.num_actual_tokens
            is_own[:, :rows] &= local[:, :rows] * unit < batch.seq_lens[:, None]
        return replace(batch, selected=torch.where(is_own, local, -1))


def local_step(batch: Batch, dealing: Dealing) -> LocalStep:
    """A rank's part of a step. No value is read from the device.

    Args:
        batch: the step: lengths of the whole sequences, and the block table of this rank's cache, which holds local token l of
            request r in slot `l % block_size` of block `block_table[r, l // block_size]`.
        dealing: the dealing of tokens.

    Raises:
        ContractError: an argument is of another type, or the batch has no block table.
        UnsupportedError: the batch has a rule of positions.
    """
    check_type("batch", batch, Batch, "a Batch")
    check_type("dealing", dealing, Dealing, "a Dealing")
    if batch.block_table is None:
        raise ContractError("block_table", None, "a tensor: ranks share the keys of a cache")
    refuse_unnamed("attention over ranks", IMPLEMENTED_RULES, batch)
    local = {"max_seq_len": _longest(batch.max_seq_len, dealing), "causal": False, "slot_mapping": None}
    if _sees_same_keys(batch):
        return LocalStep(batch, replace(batch, seq_lens=local_lengths(batch.seq_lens, dealing), **local), dealing)
    request, seen = _rows(batch)
    row_starts = torch.arange(batch.num_actual_tokens + 1, dtype=torch.int32, device=seen.device)
    by_row = replace(
        batch,
        query_start_loc=torch.minimum(row_starts, batch.query_start_loc[-1]),
        seq_lens=local_lengths(seen, dealing),
        max_query_len=1,
        block_table=batch.block_table[request],
        **local,
    )
    return LocalStep(batch, by_row, dealing)


def local_layer(layer: Layer, dealing: Dealing) -> Layer:
    """The layer as a rank attends with it: the sinks are rank 0's, and the output is quantized after the merge.

    Raises:
        ContractError: an argument is of another type, the layer reads no cache, or its units lie on several ranks.
        UnsupportedError: the layer has a rule of positions.
    """
    check_type("layer", layer, Layer, "a Layer")
    check_type("dealing", dealing, Dealing, "a Dealing")
    of_layer = _LOCAL_LAYERS.setdefault(layer, {})
    if dealing in of_layer:
        return of_layer[dealing]
    if layer.layout is None:
        raise ContractError("layer.attn_type", layer.attn_type, "a type that reads the KV cache: ranks share its keys")
    refuse_unnamed("attention over ranks", IMPLEMENTED_RULES, layer)
    if layer.selection_unit is not None and dealing.interleave % layer.selection_unit:
        expected = f"a multiple of selection_unit ({layer.selection_unit}): a unit lies on one rank"
        raise ContractError("dealing.interleave", dealing.interleave, expected)
    local = replace(layer, sinks=layer.sinks if dealing.rank == 0 else None, output_scale=None)
    return of_layer.setdefault(dealing, local)


# a layer is the same in every step, and so are its checks; none is kept for longer than its Layer
_LOCAL_LAYERS: WeakKeyDictionary[Layer, dict[Dealing, Layer]] = WeakKeyDictionary()


def local_lengths(lengths: torch.Tensor, dealing: Dealing) -> torch.Tensor:
    """The number of the first `lengths` tokens that belong to a rank.

    Of each whole round it has `interleave` tokens, and of the last round what the ranks before it have left.
    """
    of_rounds = lengths // dealing.tokens_of_round * dealing.interleave
    of_last_round = lengths % dealing.tokens_of_round - dealing.rank * dealing.interleave
    return of_rounds + of_last_round.clamp(0, dealing.interleave)


def _sees_same_keys(batch: Batch) -> bool:
    """True if all queries of a request see the same keys. Else each query is a request of the rank's step."""
    return batch.causal is False or batch.max_query_len <= 1 or not batch.num_requests


def _longest(length: int, dealing: Dealing) -> int:
    """The tokens that rank 0 has, which has at least as many as any other."""
    return length // dealing.tokens_of_round * dealing.interleave + min(length % dealing.tokens_of_round, dealing.interleave)


def _rows(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `num_actual_tokens` rows of q: its request, and how many keys of the whole sequence it sees.

    Rows that no request owns see none.
    """
    ends = batch.query_start_loc[1:]
    row = torch.arange(batch.num_actual_tokens, dtype=torch.int32, device=ends.device)
    is_owned = row < ends[-1]
    request = torch.searchsorted(ends, row, right=True).clamp(max=batch.num_requests - 1)
    seq_lens = batch.seq_lens[request]
    queries_after = ends[request] - 1 - row
    seen = (seq_lens - queries_after).clamp(min=0)
    if isinstance(batch.causal, torch.Tensor):
        seen = torch.where(batch.causal[request], seen, seq_lens)
    return request, torch.where(is_owned, seen, 0)

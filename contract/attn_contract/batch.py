"""The inputs that change every step: exactly those that a serving engine passes to a backend."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from attn_contract.arguments import (
    check_dense_last,
    check_dims,
    check_int,
    check_int32,
    check_tensor,
    check_type,
    check_vector,
)
from attn_contract.errors import ContractError
from attn_contract.memory import memory_of
from attn_contract.rules import (
    DECODER_ONLY,
    KV_HEADS,
    LOGITS,
    OWN,
    QUERIES,
    REQUESTS,
    ROWS,
    VISIBILITY,
    axes_of,
    held_rules,
    holds_rules,
    rule,
    with_axes,
)
from attn_contract.signatures import Signature


def _check_ranges(name: str, value: Any, _: object) -> torch.Tensor:
    check_tensor(name, value)
    check_dims(name, value, ("R", "max_ranges", "2"))
    if value.shape[2] != 2 or value.dtype != torch.int32:
        raise ContractError(name, f"{value.dtype} {tuple(value.shape)}", "torch.int32 (R, max_ranges, 2)")
    if not value.is_contiguous():
        raise ContractError(name, f"strides {tuple(value.stride())}", "a contiguous tensor")
    return value


def _check_qq_bias(name: str, value: Any, batch: "Batch") -> torch.Tensor:
    check_tensor(name, value)
    check_dims(name, value, ("Q", "Q"))
    if value.dtype != torch.float32 or value.shape[0] != value.shape[1]:
        raise ContractError(name, f"{value.dtype} {tuple(value.shape)}", "torch.float32 (Q, Q): queries, then keys")
    check_dense_last(name, value)
    if len(value) < batch.max_query_len:
        raise ContractError(name, f"shape {tuple(value.shape)}", f"Q at least max_query_len ({batch.max_query_len})")
    return value


_OF_DECODERS: dict[str, Any] = {"attn_types": DECODER_ONLY, "why_not": "only DECODER has it"}


@holds_rules
@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """R requests of one step. Request r owns query rows `[query_start_loc[r], query_start_loc[r + 1])`.

    The queries of a request are the last tokens of its sequence: query i stands at position `seq_len - query_len + i`. Creating
    a Batch reads no value of a tensor; the checks of `attn_contract.validation` do on demand.

    Args:
        query_start_loc: [R + 1] int32, prefix sum of the query lengths, from 0.
        seq_lens: [R] int32, keys of each request: context and new tokens for self-attention, the encoder's length for
            cross-attention, the query length for ENCODER and ENCODER_ONLY.
        max_query_len, max_seq_len: upper bounds, possibly loose (graph capture pads them).
        num_actual_tokens: rows of q that count; `query_start_loc[R] <= num_actual_tokens <= T`. Rows that no request owns
            are neither read nor written.
        causal: True if a query sees only keys at or before its own position; a bool, or [R] bool, one per request.
            DECODER only: it must be False for the other types.
        block_table: [R, max_blocks] int32, physical block of each logical block; entries past
            `ceil(seq_len / block_size)` are garbage and never followed. None exactly where there is no cache.
        slot_mapping: [S] int64: row s of k and v is written to slot `block * block_size + offset`; -1 writes nothing. None if
            nothing is written.
        selected: [1, T, W] int32, or [HK, T, W] if each KV head has its own: the units of `Layer.selection_unit` tokens that
            the query in a row of q may see, of its own request, from 0. Their order means nothing. A negative entry, anywhere,
            is no unit. Each unit is named once, and has a key of the request. A row of negative entries sees no key. K and V
            that no row selects for their KV head may hold anything. None exactly where the layer has no selection_unit.
        bidirectional_ranges: [R, max_ranges, 2] int32, dense: inclusive ranges [first, last] of positions of each request, in
            which queries and keys see each other both ways (the images of a multimodal prompt). A range with `last < first` is
            empty. DECODER only.
        qq_bias: [Q, Q] float32: element (i, j) is added to the logit of query i and the key of query j of the same request, as
            in tree drafts; -inf hides the key, and a finite bias is at most 2^126 in magnitude. Q is at least max_query_len.
            DECODER only.

    Raises:
        ContractError: a field has another type, shape, dtype or stride, or contradicts another one.
    """

    query_start_loc: torch.Tensor = with_axes(OWN)
    seq_lens: torch.Tensor = with_axes(REQUESTS)
    max_query_len: int
    max_seq_len: int
    num_actual_tokens: int
    causal: bool | torch.Tensor = with_axes(REQUESTS)
    block_table: torch.Tensor | None = with_axes(REQUESTS, OWN, default=None)
    slot_mapping: torch.Tensor | None = with_axes(OWN, default=None)
    selected: torch.Tensor | None = with_axes(KV_HEADS, ROWS, OWN, default=None)
    bidirectional_ranges: torch.Tensor | None = rule(
        None,
        label="bidirectional ranges",
        acts_on=VISIBILITY,
        axes=(REQUESTS, OWN, OWN),
        check=_check_ranges,
        **_OF_DECODERS,
    )
    qq_bias: torch.Tensor | None = rule(
        None,
        label="a bias between the step's own tokens (qq_bias)",
        acts_on=LOGITS,
        axes=(QUERIES, QUERIES),
        check=_check_qq_bias,
        **_OF_DECODERS,
    )

    def __post_init__(self) -> None:
        for name in ("max_query_len", "max_seq_len", "num_actual_tokens"):
            check_int(name, getattr(self, name), minimum=0)
        check_vector("query_start_loc", self.query_start_loc, torch.int32)
        if self.num_requests < 0:
            raise ContractError("query_start_loc", "shape (0,)", "shape (R + 1,), a leading 0 and one end per request")
        check_vector("seq_lens", self.seq_lens, torch.int32)
        if not isinstance(self.causal, bool):
            check_type("causal", self.causal, torch.Tensor, "a bool or a tensor [R] of bool")
            check_vector("causal", self.causal, torch.bool)
        if self.slot_mapping is not None:
            check_vector("slot_mapping", self.slot_mapping, torch.int64)
        if self.block_table is not None:
            check_int32("block_table", self.block_table, ("R", "max_blocks"))
        if self.selected is not None:
            check_int32("selected", self.selected, ("1 or num_kv_heads", "T", "max_units"))
            if (rows := self.selected.shape[1]) < self.num_actual_tokens:
                raise ContractError("selected", f"{rows} rows", f"at least num_actual_tokens ({self.num_actual_tokens})")
        for name, record in held_rules(self).items():
            object.__setattr__(self, name, record.checked(getattr(self, name), self))
        requests, axes = self.num_requests, axes_of(type(self))
        for name, tensor in self.tensors.items():
            if axes.get(name, (OWN,))[0] is REQUESTS and tensor.shape[0] != requests:
                raise ContractError(name, f"{len(tensor)} entries", f"{requests}: query_start_loc has R + 1 = {requests + 1}")

    @cached_property
    def num_requests(self) -> int:
        return self.query_start_loc.shape[0] - 1

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @cached_property
    def signature(self) -> Signature:
        """The signature of all fields except `max_seq_len`, which changes with every step of a decode."""
        return Signature({field.name: getattr(self, field.name) for field in fields(self) if field.name != "max_seq_len"})

    @cached_property
    def device(self) -> torch.device | None:
        """The device of its tensors; None if they are on several, or if an op, which asks each of them, made the batch."""
        devices = {tensor.device for tensor in self.tensors.values()}
        return devices.pop() if len(devices) == 1 else None

    @cached_property
    def memory(self) -> dict[str, tuple[int, int]]:
        """The addresses of its tensors, by name: see `memory.memory_of`."""
        return {name: memory_of(tensor) for name, tensor in self.tensors.items()}

"""The input that an engine gives every backend in each step, by vLLM's names."""

from dataclasses import dataclass

import torch
from attn_contract import AttentionType, Batch, ContractError


@dataclass(frozen=True, eq=False, kw_only=True)
class CommonAttentionMetadata:
    """One step of R requests, common to all layers of a model. `build` of a backend makes that backend's metadata from it.

    Args:
        query_start_loc, query_start_loc_cpu: [R + 1] int32, on the device and on the host.
        seq_lens: [R] int32, context and new tokens.
        seq_lens_cpu: [R] int32, the same on the host; None if the host does not know them (asynchronous scheduling).
        num_actual_tokens, max_query_len, max_seq_len: as in Batch: bounds, possibly padded.
        block_table_tensor: [R, max_blocks] int32.
        slot_mapping: [S] int64; -1 writes nothing.
        causal: whether decoder layers are causal: a bool, or [R] bool.
        encoder_seq_lens, max_encoder_seq_len: [R] int32, the encoder's tokens of each request, and a bound of them, possibly
            loose; None without cross-attention.
        bidirectional_ranges, qq_bias: as in Batch; for decoder layers.
    """

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor | None = None
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: torch.Tensor | None = None
    slot_mapping: torch.Tensor | None = None
    causal: bool | torch.Tensor = True
    encoder_seq_lens: torch.Tensor | None = None
    max_encoder_seq_len: int | None = None
    bidirectional_ranges: torch.Tensor | None = None
    qq_bias: torch.Tensor | None = None

    @property
    def num_reqs(self) -> int:
        return len(self.query_start_loc) - 1

    def batch(self, attn_type: AttentionType) -> Batch:
        """The step as layers of one attention type see it.

        `causal` comes from here and from nowhere else (vLLM #40176); cross-attention and encoders are never causal.

        Raises:
            ContractError: attention over a cache without `block_table_tensor`, cross-attention without `encoder_seq_lens` and
                their bound, or what Batch refuses.
        """
        reads_cache = attn_type.reads_cache
        if reads_cache and self.block_table_tensor is None:
            raise ContractError("block_table_tensor", None, f"a tensor: {attn_type} attention reads the cache")
        decoder = attn_type is AttentionType.DECODER
        seq_lens, max_seq_len = self.seq_lens, self.max_seq_len
        if attn_type is AttentionType.ENCODER_DECODER:
            if self.encoder_seq_lens is None or self.max_encoder_seq_len is None:
                missing = "encoder_seq_lens" if self.encoder_seq_lens is None else "max_encoder_seq_len"
                raise ContractError(missing, None, "given: cross-attention sees the encoder's tokens")
            seq_lens, max_seq_len = self.encoder_seq_lens, self.max_encoder_seq_len
        try:
            return Batch(
                query_start_loc=self.query_start_loc,
                seq_lens=seq_lens,
                max_query_len=self.max_query_len,
                max_seq_len=max_seq_len,
                num_actual_tokens=self.num_actual_tokens,
                causal=self.causal if decoder else False,
                block_table=self.block_table_tensor if reads_cache else None,
                slot_mapping=self.slot_mapping if reads_cache else None,
                bidirectional_ranges=self.bidirectional_ranges if decoder else None,
                qq_bias=self.qq_bias if decoder else None,
            )
        except ContractError as error:
            raise ContractError(self._field(error.argument, attn_type), error.got, error.expected) from error

    @staticmethod
    def _field(argument: str, attn_type: AttentionType) -> str:
        """The field of this class that became an argument of Batch."""
        if argument in ("seq_lens", "max_seq_len") and attn_type is AttentionType.ENCODER_DECODER:
            return argument.replace("seq", "encoder_seq")
        return {"block_table": "block_table_tensor"}.get(argument, argument)

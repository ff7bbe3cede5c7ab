"""A step of vLLM as the contract's Batch, built once for all layers of a KV cache group."""

import dataclasses
from dataclasses import dataclass

import torch
from attn_contract import Batch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec, KVCacheSpec


@dataclass
class ParityMetadata(AttentionMetadata):
    """One step for the layers of one KV cache group."""

    batch: Batch
    slot_mapping: torch.Tensor
    """[S] int64: the slots of new keys and values. vLLM's cross-attention sets the encoder's slots after `build`."""

    @property
    def causal(self) -> bool | torch.Tensor:
        """vLLM's block drafter asks every backend whether it heeded causal=False."""
        return self.batch.causal


class ParityMetadataBuilder(AttentionMetadataBuilder[ParityMetadata]):
    """Builds a step's metadata. It reads no value of a tensor, so it never waits for the device."""

    supports_update_block_table = True

    # vLLM's is abstract
    def __init__(self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> ParityMetadata:
        """The metadata of one step.

        Args:
            common_prefix_len: not used: cascade attention is not offered to vLLM.
            common_attn_metadata: for cross-attention, vLLM's wrapper has put in the encoder's lengths and causal=False; for
                encoders, causal=False.
            fast_build: not used: there is only one way to build.

        Raises:
            ContractError: a tensor has another type or shape than the contract's Batch asks for.
        """
        common = common_attn_metadata
        has_cache = not isinstance(self.kv_cache_spec, EncoderOnlyAttentionSpec)
        batch = Batch(
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            num_actual_tokens=common.num_actual_tokens,
            causal=common.causal,
            block_table=common.block_table_tensor if has_cache else None,
            bidirectional_ranges=_bidirectional_ranges(common) if has_cache else None,
        )
        return ParityMetadata(batch, common.slot_mapping)

    def update_block_table(
        self, metadata: ParityMetadata, blk_table: torch.Tensor, slot_mapping: torch.Tensor
    ) -> ParityMetadata:
        return ParityMetadata(dataclasses.replace(metadata.batch, block_table=blk_table), slot_mapping)


def _bidirectional_ranges(common: CommonAttentionMetadata) -> torch.Tensor | None:
    """[R, max_ranges, 2] int32: the inclusive ranges of each request, filled up with the empty range (0, -1)."""
    of_request = common.mm_req_doc_ranges or {}
    most = max(map(len, of_request.values()), default=0)
    if most == 0:
        return None
    ranges = torch.tensor([0, -1], dtype=torch.int32).repeat(common.num_reqs, most, 1)
    for request, given in of_request.items():
        if given:
            ranges[request, : len(given)] = torch.tensor(given, dtype=torch.int32)
    device = common.seq_lens.device
    # only a pinned tensor is copied without waiting for the device
    return (ranges.pin_memory() if device.type == "cuda" else ranges).to(device, non_blocking=True)

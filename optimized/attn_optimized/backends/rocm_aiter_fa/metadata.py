"""A step split into its phases, by lengths that the host knows."""

from dataclasses import dataclass, field

import torch
from attn_contract import AttentionType, Batch, ContractError, UnsupportedError
from attn_contract.arguments import check_int

from attn_optimized.backends.base import AttentionMetadataBuilder
from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.backends.phases import KeySpan, PhaseMetadata, host_query_lens, phase

NAME = "ROCM_AITER_FA"
DECODER_PHASES = "its phases are a decoder's: prefill, extend and decode"
CONTEXT_CHUNK_KEYS = 32 * 1024
"""Keys of all requests together that an extend gathers at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ExtendMetadata(PhaseMetadata):
    """Extends, and their context in chunks that are gathered one after the other."""

    context_chunks: tuple[KeySpan, ...]
    _reaches: dict[int, KeySpan] = field(default_factory=dict)

    def reach(self, left: int) -> KeySpan:
        """The keys that a window with this left edge can see; copied to the device once for all layers that have it."""
        if left not in self._reaches:
            begins = (self.seq_lens - self.query_lens - left).clamp(min=0)
            self._reaches[left] = KeySpan.of(begins, self.seq_lens, self.batch.seq_lens.device)
        return self._reaches[left]


@dataclass(frozen=True, eq=False, kw_only=True)
class AiterFlashAttentionMetadata:
    """A step, whole and split into phases; a phase without requests is None.

    Args:
        step: all requests, on the device.
        query_start_loc_cpu, seq_lens_cpu: on the CPU; the step is split by them.
    """

    step: Batch
    query_start_loc_cpu: torch.Tensor
    seq_lens_cpu: torch.Tensor
    decode: PhaseMetadata | None
    extend: ExtendMetadata | None
    prefill: PhaseMetadata | None


class AiterFlashAttentionMetadataBuilder(AttentionMetadataBuilder[AiterFlashAttentionMetadata]):
    """Splits a step into decode, extend and prefill.

    An engine that keeps its batch in this order spares every copy of rows: each phase is then a slice of the step. Any other
    order is served too.

    Args:
        attn_type: DECODER.
        num_speculative_tokens: the most draft tokens of a request. A request of one query token more than that is still a
            decode.
        context_chunk_keys: keys of all requests together that an extend gathers at a time.

    Raises:
        UnsupportedError: another `attn_type` than DECODER.
        ContractError: an argument is out of range.
    """

    metadata = AiterFlashAttentionMetadata

    def __init__(
        self, attn_type: AttentionType, *, num_speculative_tokens: int = 0, context_chunk_keys: int = CONTEXT_CHUNK_KEYS
    ) -> None:
        super().__init__(attn_type)
        if attn_type is not AttentionType.DECODER:
            raise UnsupportedError(NAME, f"{attn_type} attention", DECODER_PHASES, "TRITON_ATTN")
        check_int("num_speculative_tokens", num_speculative_tokens, minimum=0)
        check_int("context_chunk_keys", context_chunk_keys, minimum=1)
        self.reorder_batch_threshold = 1 + num_speculative_tokens
        self.context_chunk_keys = context_chunk_keys

    def build(self, common_attn_metadata: CommonAttentionMetadata) -> AiterFlashAttentionMetadata:
        """Split a step by the lengths that the host knows; waits for no device.

        Raises:
            ContractError: it is no CommonAttentionMetadata, or what its `batch` refuses; the host does not know `seq_lens_cpu`,
                or its lengths are not as many as the device's, no lengths, or beyond the step's bounds.
            UnsupportedError: a request with more queries than keys.
        """
        return super().build(common_attn_metadata)

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> AiterFlashAttentionMetadata:
        step = common_attn_metadata.batch(self.attn_type)
        query_start_loc_cpu, seq_lens_cpu = common_attn_metadata.query_start_loc_cpu, common_attn_metadata.seq_lens_cpu
        if seq_lens_cpu is None:
            raise ContractError("seq_lens_cpu", None, f"a tensor: {NAME} splits a step by lengths that the host knows")
        query_lens, seq_lens = host_query_lens(step, query_start_loc_cpu, seq_lens_cpu), seq_lens_cpu.long()
        if len(wrong := (query_lens > seq_lens).nonzero()):
            r = int(wrong[0])
            reason = f"its prefill takes them from the same rows (request {r}: {query_lens[r]} and {seq_lens[r]})"
            raise UnsupportedError(NAME, "more queries than keys", reason, "TRITON_ATTN")
        is_short = query_lens <= self.reorder_batch_threshold
        has_context = query_lens < seq_lens

        def of_phase(chosen: torch.Tensor) -> PhaseMetadata | None:
            return phase(step, query_lens, seq_lens, chosen) if chosen.any() else None

        extend = of_phase(~is_short & has_context)
        return AiterFlashAttentionMetadata(
            step=step,
            query_start_loc_cpu=query_start_loc_cpu,
            seq_lens_cpu=seq_lens_cpu,
            decode=of_phase(is_short & (query_lens > 0)),
            extend=None if extend is None else self._with_context(extend),
            prefill=of_phase(~is_short & ~has_context),
        )

    def _with_context(self, extend: PhaseMetadata) -> ExtendMetadata:
        device = extend.batch.seq_lens.device
        context_lens = extend.seq_lens - extend.query_lens
        chunk = max(1, self.context_chunk_keys // len(context_lens))
        chunks = tuple(
            KeySpan.of(context_lens.clamp(max=begin), context_lens.clamp(max=begin + chunk), device)
            for begin in range(0, int(context_lens.max()), chunk)
        )
        return ExtendMetadata(
            batch=extend.batch,
            rows=extend.rows,
            query_lens=extend.query_lens,
            seq_lens=extend.seq_lens,
            context_chunks=chunks,
        )

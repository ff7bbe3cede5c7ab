"""A step of latent attention: its decodes, and its prefills with their context in chunks."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from attn_contract import AttentionType, Batch, ContractError, UnsupportedError
from attn_contract.arguments import check_int

from attn_optimized.backends.base import AttentionMetadataBuilder
from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.backends.phases import PhaseMetadata, host_query_lens, phase, start_loc, to_device

NAME = "TRITON_MLA"
CONTEXT_CHUNK_KEYS = 4096
"""The number of keys of one request in a chunk of its context."""
CHUNKS_AT_A_TIME = 8
"""The number of requests whose chunks, if all are full, are gathered at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MlaDecodeMetadata:
    """The requests that read only the cache.

    Args:
        batch: only these requests. It is the step itself if all of its requests are decodes.
        rows: the rows of the step that belong to them.
    """

    batch: Batch
    rows: slice | torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ContextChunk:
    """Consecutive keys of the context of each request, gathered from the cache into n dense rows.

    Args:
        request, position: [n] int64, the place of a row in the cache: a request, and a position in it.
        batch: every query of the first R requests sees all rows of its request; a block is one row.
    """

    request: torch.Tensor
    position: torch.Tensor
    batch: Batch


@dataclass(frozen=True, eq=False, kw_only=True)
class MlaPrefillMetadata:
    """The requests that attend to this step's own tokens, and to their context in the cache.

    Args:
        batch: only these requests, as a decoder sees them.
        rows: the rows of the step that belong to them.
        own: the same requests with only their own tokens.
        context_chunks: none if no request has a context.
        max_seq_len: the longest of these requests, by the lengths of the host.
    """

    batch: Batch
    rows: slice | torch.Tensor
    own: Batch
    context_chunks: tuple[ContextChunk, ...]
    max_seq_len: int


@dataclass(frozen=True, eq=False, kw_only=True)
class MlaMetadata:
    """A step, whole and split into decodes and prefills; None where there is no such request.

    Args:
        step: all requests, on the device.
        query_start_loc_cpu, seq_lens_cpu: on the CPU; the step is split by them.
    """

    step: Batch
    query_start_loc_cpu: torch.Tensor
    seq_lens_cpu: torch.Tensor | None
    decode: MlaDecodeMetadata | None
    prefill: MlaPrefillMetadata | None


class MlaMetadataBuilder(AttentionMetadataBuilder[MlaMetadata]):
    """Splits a step into decodes and prefills.

    An engine that keeps decodes first spares every copy of rows. Any other order is served too. A step of only decodes copies
    nothing to the device, so that a CUDA graph may hold it.

    Args:
        attn_type: DECODER.
        num_speculative_tokens: the most draft tokens of a request. A request of one query token more than that is still a
            decode.
        context_chunk_keys: keys of one request that a chunk of its context has. It does not depend on the other requests, so
            that a request's output does not either.

    Raises:
        UnsupportedError: another `attn_type` than DECODER.
        ContractError: an argument is out of range.
    """

    metadata = MlaMetadata

    def __init__(
        self, attn_type: AttentionType, *, num_speculative_tokens: int = 0, context_chunk_keys: int = CONTEXT_CHUNK_KEYS
    ) -> None:
        super().__init__(attn_type)
        if attn_type is not AttentionType.DECODER:
            raise UnsupportedError(NAME, f"{attn_type} attention", "only decoders have a latent cache", "TRITON_ATTN")
        check_int("num_speculative_tokens", num_speculative_tokens, minimum=0)
        check_int("context_chunk_keys", context_chunk_keys, minimum=1)
        self.reorder_batch_threshold = 1 + num_speculative_tokens
        self.context_chunk_keys = context_chunk_keys

    def build(self, common_attn_metadata: CommonAttentionMetadata) -> MlaMetadata:
        """Split a step by the lengths that the host knows; waits for no device.

        In a step that is not causal all requests are decodes, for any number of query tokens, as in vLLM, because a prefill
        attends to its own tokens causally.

        Raises:
            ContractError: it is no CommonAttentionMetadata, or what its `batch` refuses; the host does not know the
                `seq_lens_cpu` of a prefill, or its lengths are not as many as the device's, no lengths, or beyond the step's
                bounds.
            UnsupportedError: `causal` for each request by itself, or a prefill with more queries than keys.
        """
        return super().build(common_attn_metadata)

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> MlaMetadata:
        step = common_attn_metadata.batch(self.attn_type)
        query_start_loc_cpu, seq_lens_cpu = common_attn_metadata.query_start_loc_cpu, common_attn_metadata.seq_lens_cpu
        host = {"query_start_loc_cpu": query_start_loc_cpu, "seq_lens_cpu": seq_lens_cpu}
        if not isinstance(step.causal, bool):
            raise UnsupportedError(NAME, "causal for each request by itself", "vLLM's builder has one flag for a step")
        query_lens = host_query_lens(step, query_start_loc_cpu, seq_lens_cpu)
        seq_lens = None if seq_lens_cpu is None else seq_lens_cpu.long()
        is_decode = query_lens <= (self.reorder_batch_threshold if step.causal else step.max_query_len)
        if is_decode.all():
            decode = MlaDecodeMetadata(batch=step, rows=slice(0, step.num_actual_tokens))
            return MlaMetadata(step=step, **host, decode=decode, prefill=None)
        if seq_lens is None:
            raise ContractError(
                "seq_lens_cpu", None, f"a tensor: {NAME} cuts a prefill's context by lengths that the host knows"
            )
        if len(wrong := (~is_decode & (query_lens > seq_lens)).nonzero()):
            r = int(wrong[0])
            reason = f"a prefill takes its last keys from the same rows (request {r}: {query_lens[r]} and {seq_lens[r]})"
            raise UnsupportedError(NAME, "more queries than keys", reason)
        decodes = is_decode & (query_lens > 0)
        decode = phase(step, query_lens, seq_lens, decodes) if decodes.any() else None
        return MlaMetadata(
            step=step,
            **host,
            decode=None if decode is None else MlaDecodeMetadata(batch=decode.batch, rows=decode.rows),
            prefill=self._prefill(phase(step, query_lens, seq_lens, ~is_decode)),
        )

    def _prefill(self, prefill: PhaseMetadata) -> MlaPrefillMetadata:
        device = prefill.batch.seq_lens.device
        return MlaPrefillMetadata(
            batch=prefill.batch,
            rows=prefill.rows,
            own=dataclasses.replace(
                prefill.batch,
                seq_lens=to_device(device, prefill.query_lens.int()),
                max_seq_len=prefill.batch.max_query_len,
                causal=False,  # by the window of the layer
                block_table=None,
            ),
            context_chunks=tuple(self._gathered_from(chunk, device) for chunk in _chunks(prefill, self.context_chunk_keys)),
            max_seq_len=int(prefill.seq_lens.max()),
        )

    def _gathered_from(self, chunk: ContextChunk, device: torch.device) -> ContextChunk:
        """A chunk whose rows are known to the host, as the layers gather it."""
        rows = {"request": to_device(device, chunk.request), "position": to_device(device, chunk.position)}
        return dataclasses.replace(chunk, **rows)


def _chunks(prefill: PhaseMetadata, chunk_keys: int) -> Iterator[ContextChunk]:
    """The contexts in chunks, each request's in order, a few requests at a time."""
    contexts = prefill.seq_lens - prefill.query_lens
    for begin in range(0, int(contexts.max()), chunk_keys):
        begins = contexts.clamp(max=begin)
        lens = contexts.clamp(max=begin + chunk_keys) - begins
        group = (lens.cumsum(0) - lens) // (CHUNKS_AT_A_TIME * chunk_keys)
        for chosen in (group == number for number in group.unique()):
            if int((lens * chosen).sum()):
                yield _chunk(prefill, begins, lens * chosen)


def _chunk(prefill: PhaseMetadata, begins: torch.Tensor, lens: torch.Tensor) -> ContextChunk:
    """`lens` keys of each request from `begins` on, up to the last request that has any; all lengths are the host's.

    Where the rows are is known to the host, too.
    """
    device = prefill.batch.seq_lens.device
    num_requests = int(lens.nonzero()[-1]) + 1
    lens, query_lens = lens[:num_requests], prefill.query_lens[:num_requests]
    starts = start_loc(lens)
    request = torch.repeat_interleave(torch.arange(num_requests, device="cpu"), lens)
    position = torch.arange(len(request), device="cpu") + (begins[:num_requests] - starts[:-1])[request]
    max_len = int(lens.max())
    batch = Batch(
        query_start_loc=prefill.batch.query_start_loc[: num_requests + 1],
        seq_lens=to_device(device, lens.int()),
        max_query_len=int(query_lens.max()),
        max_seq_len=max_len,
        num_actual_tokens=int(query_lens.sum()),
        causal=False,
        block_table=to_device(device, starts[:-1, None] + torch.arange(max_len, dtype=torch.int32, device="cpu")),
    )
    return ContextChunk(request=request, position=position, batch=batch)

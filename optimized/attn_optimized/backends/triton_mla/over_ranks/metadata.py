"""A step of latent attention whose cache ranks share: what this rank attends to, and what it sends of the contexts."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from attn_contract import AttentionType
from attn_contract.arguments import check_type

from attn_optimized.backends.metadata import CommonAttentionMetadata
from attn_optimized.backends.phases import PhaseMetadata, to_device
from attn_optimized.backends.triton_mla.metadata import (
    ContextChunk,
    MlaDecodeMetadata,
    MlaMetadata,
    MlaMetadataBuilder,
    MlaPrefillMetadata,
)
from attn_optimized.context_parallel import Dealing, LocalStep, local_step
from attn_optimized.context_parallel.dealing import local_lengths


@dataclass(frozen=True, eq=False, kw_only=True)
class RankDecodeMetadata(MlaDecodeMetadata):
    """The decodes as this rank attends to them: `local` has the lengths of its keys."""

    local: LocalStep


@dataclass(frozen=True, eq=False, kw_only=True)
class RankContextChunk(ContextChunk):
    """A chunk of the context, of which each rank gathers its own rows from its cache, and gets those of all ranks.

    `request` and `position` are of this rank's rows, and a position counts the rank's own tokens. `batch` is of all rows.

    Args:
        rows_sent: the number of rows that each rank sends, which is that of the rank with the most rows.
        order: [n] int64, which of the rows that all ranks have sent, rank by rank, is the next one in the sequence.
    """

    rows_sent: int
    order: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class RankMlaMetadata(MlaMetadata):
    """A step, whole and split, as this rank sees it. `prefill.batch` has the lengths of its own keys.

    Args:
        dealing: the dealing of tokens.
        context_chunk_keys: keys of one request that a chunk of its context has.
    """

    decode: RankDecodeMetadata | None
    dealing: Dealing
    context_chunk_keys: int


class RankMlaMetadataBuilder(MlaMetadataBuilder):
    """Splits a step into decodes and prefills, of which this rank has a part of the keys.

    The step has the lengths of whole sequences. Its block table and its slots are this rank's: see `local_step`, and -1 is the
    slot of a token that another rank has. All ranks of a group split a step alike.

    Args:
        dealing: the dealing of tokens.
        attn_type, options: MlaMetadataBuilder's.

    Raises:
        UnsupportedError: another `attn_type` than DECODER.
        ContractError: an argument is of another type or out of range.
    """

    metadata = RankMlaMetadata

    def __init__(self, attn_type: AttentionType, *, dealing: Dealing, **options: Any) -> None:
        super().__init__(attn_type, **options)
        check_type("dealing", dealing, Dealing, "a Dealing")
        self.dealing = dealing

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> RankMlaMetadata:
        whole = super()._build(common_attn_metadata)
        decode = whole.decode
        if decode is not None:
            local = local_step(decode.batch, self.dealing)
            decode = RankDecodeMetadata(batch=decode.batch, rows=decode.rows, local=local)
        return RankMlaMetadata(
            step=whole.step,
            query_start_loc_cpu=whole.query_start_loc_cpu,
            seq_lens_cpu=whole.seq_lens_cpu,
            decode=decode,
            prefill=whole.prefill,
            dealing=self.dealing,
            context_chunk_keys=self.context_chunk_keys,
        )

    def _prefill(self, prefill: PhaseMetadata) -> MlaPrefillMetadata:
        whole = super()._prefill(prefill)
        own = dataclasses.replace(whole.batch, seq_lens=local_lengths(whole.batch.seq_lens, self.dealing))
        longest = int(local_lengths(prefill.seq_lens, self.dealing).max())
        return dataclasses.replace(whole, batch=own, max_seq_len=longest)

    def _gathered_from(self, chunk: ContextChunk, device: torch.device) -> RankContextChunk:
        rank = self.dealing.rank_of(chunk.position)
        is_of_rank = rank[:, None] == torch.arange(self.dealing.num_ranks, device=rank.device)
        so_far = is_of_rank.cumsum(0)
        rows_sent = int(so_far[-1].max())
        place = so_far.gather(1, rank[:, None])[:, 0] - 1
        is_own = is_of_rank[:, self.dealing.rank]
        return RankContextChunk(
            request=to_device(device, chunk.request[is_own]),
            position=to_device(device, self.dealing.local_index(chunk.position[is_own])),
            batch=chunk.batch,
            rows_sent=rows_sent,
            order=to_device(device, rank * rows_sent + place),
        )

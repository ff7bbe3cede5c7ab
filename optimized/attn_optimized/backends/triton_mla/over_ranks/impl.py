"""A layer of latent attention whose cache ranks share (decode context parallelism)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, get_args

import torch
import torch.distributed as dist
from attn_contract import FLOAT_DTYPES, ContractError, Layer, UnsupportedError
from attn_contract.arguments import check_type, shown
from attn_contract.signatures import tensor_signature
from attn_contract.validation import check_attention_tensors, check_paged_attention, check_varlen_attention

import attn_optimized
from attn_optimized.arithmetic import joined
from attn_optimized.backends.triton_mla.impl import TritonMlaImpl
from attn_optimized.backends.triton_mla.metadata import NAME, ContextChunk, MlaMetadata, MlaPrefillMetadata
from attn_optimized.backends.triton_mla.over_ranks.metadata import RankContextChunk, RankMlaMetadata
from attn_optimized.context_parallel import Exchange, LocalStep, attend_over_ranks
from attn_optimized.context_parallel.agreement import TIMEOUT, Compared, OneOf, check_timeout, checksum, compare_calls
from attn_optimized.context_parallel.attention import COMPARED, gathered
from attn_optimized.signature_cache import SignatureCache

COMPARED_PREFILL = (
    *("rows of query", "dtype of query", "head size of the latent vector", "head size of the cache", "scale"),
    *("logits_soft_cap", "number of ranks", "interleave", "context_chunk_keys", "query_start_loc_cpu", "seq_lens_cpu"),
)
"""Arguments of a prefill that must be the same on all ranks; the last two by a checksum."""


class TritonMlaOverRanksImpl(TritonMlaImpl):
    """A layer of one rank, which has its part of the heads, and its part of the keys of each request.

    The ranks of a group call `forward_mqa` together, and `forward_mha`. A decode is `attend_over_ranks`. In a prefill, each
    rank attends with its own heads: to this step's own tokens, which all ranks have, and to the context, chunk by chunk. The
    ranks gather the latent rows of a chunk from all caches, and put them into the order of the sequences.

    With `validate`, the ranks compare their calls first, so that a call that is refused on one rank raises an error on all.
    Without it, nothing waits for the device, and the others wait for this rank until a timeout.

    Args:
        layer: of this rank's heads, which are the rank-th part of all heads, and with the scale of this rank's cache.
        group: the group of the ranks; see `attend_over_ranks`.
        exchange: the way in which outputs of decodes meet.
        timeout: the time that a rank waits for the others, where a process waits at all; see `attend_over_ranks`.

    The other arguments are TritonMlaImpl's.

    Raises:
        UnsupportedError: a batch-invariant layer whose outputs the network sums, in an order of its own.
    """

    def __init__(
        self,
        layer: Layer,
        *,
        group: dist.ProcessGroup,
        exchange: Exchange = "reduce_scatter",
        timeout: timedelta = TIMEOUT,
        **arguments: Any,
    ) -> None:
        super().__init__(layer, **arguments)
        self._refuse(self.config.with_rules(over_ranks=True))
        check_type("group", group, dist.ProcessGroup, "a process group of torch.distributed")
        check_timeout(timeout)
        if exchange not in get_args(Exchange):
            raise ContractError("exchange", shown(exchange), " or ".join(map(repr, get_args(Exchange))))
        if exchange == "reduce_scatter" and self.config.asks("batch_invariant"):
            reason = "the network sums outputs in an order that depends on the size of the step"
            raise UnsupportedError(NAME, "batch invariance over ranks by reduce_scatter", reason, "exchange='all_to_all'")
        self.group, self.timeout = group, timeout
        self.exchange: Exchange = exchange
        self.all_heads = replace(self.layer, num_heads=self.layer.num_heads * group.size())

    def forward_mqa(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with self._refusals_told(COMPARED):
            local = self._checked_decode(query, kv_cache, attn_metadata, output, lse)
        out, own_lse = attend_over_ranks(
            self.group,
            query,
            kv_cache,
            self.all_heads,
            local,
            exchange=self.exchange,
            compare=self.validate,
            timeout=self.timeout,
            attention=partial(attn_optimized.paged_attention, batch_invariant=self.config.asks("batch_invariant")),
        )
        # the number of rows that requests own is the device's: a CUDA graph is replayed with other numbers
        is_owned = torch.arange(len(query), device=query.device) < local.whole.query_start_loc[-1]
        by_head = output.view(out.shape)
        by_head.copy_(torch.where(is_owned[:, None, None], out, by_head))
        if lse is not None:
            lse.copy_(torch.where(is_owned, own_lse, lse))
        return output

    def _checked_decode(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> LocalStep:
        """The step's decodes as this rank attends to them. Whatever a kernel or the group refuses is refused here."""
        self._check_metadata(attn_metadata)
        assert isinstance(attn_metadata, RankMlaMetadata)
        self._check_step(query, attn_metadata.step, output, lse)
        if attn_metadata.decode is None:
            raise ContractError("attn_metadata.decode", None, "decodes: this step has none")
        self._check_dealing(attn_metadata)
        local = attn_metadata.decode.local
        check_type("lse", lse, torch.Tensor | None, "None or a tensor")
        call = query, self._own_view(kv_cache), self.layer, local.batch, output, lse
        # calls of one signature pass the same checks, but for those of devices and memory
        signature = (*map(tensor_signature, (query, kv_cache, output, lse)), self.layer.signature, local.batch.signature)
        if self.validate or signature not in _CHECKED:
            check_paged_attention(*call, values=self.validate)
            _CHECKED[signature] = True
        else:
            check_attention_tensors({"q": query, "kv_cache": kv_cache}, *call[2:])
        return local

    def _checked_prefill(
        self,
        query: torch.Tensor,
        kv_c: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: MlaMetadata,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> tuple[MlaPrefillMetadata, torch.Tensor]:
        with self._refusals_told(COMPARED_PREFILL):
            checked = super()._checked_prefill(query, kv_c, k_pe, kv_cache, attn_metadata, output, lse)
            assert isinstance(attn_metadata, RankMlaMetadata)
            self._check_dealing(attn_metadata)
            if self.validate:
                # without it, attention to the step's own tokens checks the same, before any collective
                # of the keys and values, which are not expanded yet, the queries have the shape
                key, value = query, query[..., : self.v_head_dim]
                check_varlen_attention(query, key, value, self.expanded, checked[0].own, output, lse, values=True)
            if is_captured(query):
                reason = "the chunks of its context are those of one step"
                raise UnsupportedError(NAME, "a prefill over ranks in a CUDA graph", reason)
        if self.validate:
            compare_calls(self.group, self._told(query, attn_metadata), COMPARED_PREFILL, self.timeout)
        return checked

    def _gathered(
        self, kv_cache: torch.Tensor, prefill: MlaPrefillMetadata, chunk: ContextChunk
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent vectors [n, Lkv] and rotated keys [n, R] of a chunk, of all ranks, in the order of the sequences."""
        assert isinstance(chunk, RankContextChunk)
        own = joined(*super()._gathered(kv_cache, prefill, chunk))
        sent = torch.nn.functional.pad(own, (0, 0, 0, chunk.rows_sent - len(own)))
        of_all = gathered("gathering a context", self.group, sent, self.timeout)
        rows, latent_size = of_all.flatten(0, 1)[chunk.order], self.layer.v_head_size
        return rows[:, :latent_size], rows[:, latent_size:]

    def _check_dealing(self, attn_metadata: RankMlaMetadata) -> None:
        dealing = attn_metadata.dealing
        if (dealing.num_ranks, dealing.rank) != (self.group.size(), self.group.rank()):
            got = f"rank {dealing.rank} of {dealing.num_ranks}"
            raise ContractError(
                "attn_metadata.dealing", got, f"rank {self.group.rank()} of {self.group.size()}, as in the group"
            )

    @contextmanager
    def _refusals_told(self, names: tuple[str, ...]) -> Iterator[None]:
        """With `validate`, send a refusal to the other ranks, in the collective in which they compare the call."""
        try:
            yield
        except Exception as error:  # whatever it is, the others wait for this rank
            if self.validate:
                compare_calls(self.group, error, names, self.timeout)
            raise

    def _told(self, query: torch.Tensor, attn_metadata: RankMlaMetadata) -> dict[str, Compared]:
        """The values of COMPARED_PREFILL in a prefill, by name."""
        assert attn_metadata.seq_lens_cpu is not None
        dealing = attn_metadata.dealing
        return {
            "rows of query": len(query),
            "dtype of query": OneOf(query.dtype, FLOAT_DTYPES),
            "head size of the latent vector": self.layer.v_head_size,
            "head size of the cache": self.layer.head_size,
            "scale": float(self.layer.scale),
            "logits_soft_cap": float(self.layer.logits_soft_cap or 0.0),
            "number of ranks": dealing.num_ranks,
            "interleave": dealing.interleave,
            "context_chunk_keys": attn_metadata.context_chunk_keys,
            "query_start_loc_cpu": partial(checksum, attn_metadata.query_start_loc_cpu),
            "seq_lens_cpu": partial(checksum, attn_metadata.seq_lens_cpu),
        }


# decodes that were found right, but for the devices and memory of their tensors
_CHECKED: SignatureCache[bool] = SignatureCache()


def is_captured(tensor: torch.Tensor) -> bool:
    """True if what is launched now on the tensor's device becomes part of a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()

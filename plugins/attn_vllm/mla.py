"""PARITY_TRITON_MLA: the project's Triton kernels for latent attention (MLA) in vLLM.

vLLM's layer of latent attention asks two backends. `--attention-backend PARITY_TRITON_MLA` serves decodes and the cache write.
`--attention-config '{"mla_prefill_backend": "PARITY_TRITON"}'` serves prefills: the step's own tokens, and each chunk of the
context, which vLLM gathers, expands and merges itself.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import attn_optimized
import torch
import vllm.envs as envs
from attn_contract import AttentionType, Batch, Layer, Layout, UnsupportedError
from attn_optimized.aiter_adapter import Aiter
from attn_optimized.arithmetic import joined
from attn_optimized.backends.triton_mla import TritonMlaBackend
from attn_optimized.backends.triton_mla.context import attend_to_context, expanded_layer
from attn_optimized.launch.widths import MAX_HEAD_SIZE
from vllm.config.cache import CacheDType
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonDecodeMetadata,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    MLACommonPrefillMetadata,
    QueryLenSupport,
)
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionCGSupport, AttentionLayer, MultipleOf
from vllm.v1.attention.backends.mla.prefill.base import MLADimensions, MLAPrefillBackend

from attn_vllm.backend import refuse_unsupported
from attn_vllm.layer import cache_format

NAME = "PARITY_TRITON_MLA"
CAPABILITIES = dataclasses.replace(TritonMlaBackend.capabilities(Aiter(missing="it is not needed")), backend=NAME)
_A_BLOCK = 16


class ParityTritonMlaBackend(MLACommonBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[CacheDType]] = ["auto", "float16", "bfloat16", "fp8", "fp8_e4m3"]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type["ParityTritonMlaImpl"]:
        return ParityTritonMlaImpl

    @staticmethod
    def get_builder_cls() -> type["ParityMlaMetadataBuilder"]:
        return ParityMlaMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(_A_BLOCK)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in CAPABILITIES.head_sizes

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return bool(CAPABILITIES.answer("non_causal"))

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return bool(CAPABILITIES.answer("batch_invariant"))


@dataclass
class ParityMlaDecodeMetadata(MLACommonDecodeMetadata):
    """Metadata of a step's decodes. With drafts, requests have different numbers of query tokens."""

    query_start_loc: torch.Tensor
    max_query_len: int
    max_seq_len: int


class ParityMlaMetadataBuilder(MLACommonMetadataBuilder[MLACommonMetadata]):
    """vLLM's builder. It adds the first row of each request to the metadata of decodes."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.VARLEN
    supports_non_causal_multi_token_decode: ClassVar[bool] = True

    def _build_decode(
        self,
        block_table_tensor: torch.Tensor,
        seq_lens_device: torch.Tensor,
        max_seq_len: int,
        query_start_loc_cpu: torch.Tensor,
        query_start_loc_device: torch.Tensor,
        num_decode_tokens: int,
        max_query_len: int,
        dcp_tot_seq_lens_device: torch.Tensor | None,
    ) -> ParityMlaDecodeMetadata:
        return ParityMlaDecodeMetadata(
            block_table=block_table_tensor,
            seq_lens=seq_lens_device,
            dcp_tot_seq_lens=dcp_tot_seq_lens_device,
            query_start_loc=query_start_loc_device,
            max_query_len=max_query_len,
            max_seq_len=max_seq_len,
        )


class ParityTritonMlaImpl(MLACommonImpl[MLACommonMetadata]):
    """One layer of latent attention.

    Args:
        mla_args: vLLM's arguments of latent attention, such as `kv_lora_rank`.

    The other arguments are those of vLLM's MLACommonImpl.

    Raises:
        UnsupportedError: the backend does not serve such a layer; the message gives all the reasons.
        ContractError: the arguments contradict each other.
    """

    can_return_lse_for_decode: bool = True
    supports_dcp: bool = True

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        **mla_args: Any,
    ) -> None:
        self.stored = cache_format(kv_cache_dtype)
        self.layer = Layer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            head_size_v=mla_args["kv_lora_rank"],
            scale=scale,
            attn_type=AttentionType(attn_type),
            window=(-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1),
            logits_soft_cap=logits_soft_cap,
            alibi_slopes=None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32),
            layout=Layout.LATENT,
        )
        self.batch_invariant = envs.VLLM_BATCH_INVARIANT
        kv_sharing = kv_sharing_target_layer_name is not None
        refuse_unsupported(CAPABILITIES, self.layer, self.stored, batch_invariant=self.batch_invariant, kv_sharing=kv_sharing)
        super().__init__(
            num_heads,
            head_size,
            scale,
            num_kv_heads,
            alibi_slopes,
            sliding_window,
            kv_cache_dtype,
            logits_soft_cap,
            attn_type,
            kv_sharing_target_layer_name,
            **mla_args,
        )
        # its kernels take queries as they are, and decode a float8 cache themselves
        self.supports_quant_query_input = False

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: MLACommonMetadata,
        layer: AttentionLayer,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to the cache, which holds this step's tokens already.

        Args:
            q: [T_d, N, Lkv + R], or its two parts; under DCP N is the number of heads of all ranks.
            kv_c_and_k_pe_cache: [NB, BS, Lkv + R].
            attn_metadata: metadata of ParityMlaMetadataBuilder.
            layer: vLLM's layer, which has the scale of a float8 cache.

        Returns:
            The output [T_d, N, Lkv], and under DCP its LSE [T_d, N], else None.

        Raises:
            UnsupportedError: under DCP, causal rows of several query tokens: vLLM tells a rank only its own lengths.
        """
        decode = cast(ParityMlaDecodeMetadata, attn_metadata.decode)
        over_ranks = self.dcp_world_size > 1
        if over_ranks and attn_metadata.causal and decode.max_query_len > 1:
            raise UnsupportedError(NAME, "causal decodes of several tokens under DCP", "a rank is told its own lengths alone")
        query = joined(*q) if isinstance(q, tuple) else q
        out = query.new_zeros(*query.shape[:2], self.layer.v_head_size)
        lse = query.new_empty(query.shape[1], len(query), dtype=torch.float32) if over_ranks else None
        batch = Batch(
            query_start_loc=decode.query_start_loc,
            seq_lens=decode.seq_lens,
            max_query_len=decode.max_query_len,
            max_seq_len=decode.max_seq_len,
            num_actual_tokens=len(query),
            causal=attn_metadata.causal,
            block_table=decode.block_table,
        )
        contract_layer = self._with_scale(layer._k_scale, num_heads=query.shape[1])
        cache = self.stored.view(kv_c_and_k_pe_cache)
        attn_optimized.paged_attention(
            query, cache, contract_layer, batch, out=out, lse=lse, batch_invariant=self.batch_invariant
        )
        return out, None if lse is None else lse.T.contiguous()

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache_dtype: str,
        k_scale: torch.Tensor,
        skip_scale: bool = False,
    ) -> None:
        """Write kv_c_normed [T, Lkv] and k_pe [T, 1, R]; nothing while vLLM measures memory, when there is no cache."""
        if kv_cache.numel():
            rotated = k_pe.flatten(1)
            attn_optimized.write_latent_cache(
                kv_c_normed, rotated, self.stored.view(kv_cache), self._with_scale(k_scale), slot_mapping.flatten()
            )

    def _with_scale(self, k_scale: torch.Tensor, **changes: Any) -> Layer:
        """The layer, completed by what vLLM's layer has only after its constructor."""
        if self.stored.quantized is not None:
            changes |= {"kv_cache_dtype": self.stored.quantized, "k_scale": k_scale}
        return dataclasses.replace(self.layer, **changes)


class ParityTritonMlaPrefill(MLAPrefillBackend):
    """The prefills of PARITY_TRITON_MLA, or of any other backend of latent attention."""

    @staticmethod
    def get_name() -> str:
        return "PARITY_TRITON"

    @classmethod
    def supports_mla_dimensions(cls, mla_dimensions: MLADimensions) -> bool:
        head_size = mla_dimensions.qk_nope_head_dim + mla_dimensions.qk_rope_head_dim
        return mla_dimensions.v_head_dim <= head_size <= MAX_HEAD_SIZE

    def run_prefill_new_tokens(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        return_softmax_lse: bool,
        out: torch.Tensor | None = None,
        output_scale: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend to the step's own tokens, causally. The LSE is [N, T]."""
        if output_scale is not None:
            raise UnsupportedError(self.get_name(), "output_scale", "vLLM quantizes after a prefill")
        prefill = self._prefill_metadata
        batch = Batch(
            query_start_loc=prefill.query_start_loc,
            seq_lens=prefill.query_start_loc.diff(),
            max_query_len=prefill.max_query_len,
            max_seq_len=prefill.max_query_len,
            num_actual_tokens=len(q),
            causal=False,  # by the layer's window
        )
        lse = q.new_empty(q.shape[1], len(q), dtype=torch.float32) if return_softmax_lse else None
        out = attn_optimized.varlen_attention(q, k, v, self._layer(), batch, out=out, lse=lse, **_options())
        return out if lse is None else (out, lse)

    def run_prefill_context_chunk(
        self,
        chunk: MLACommonPrefillMetadata.ContextChunk,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend to a chunk of the context, all of which every query of its request sees. The LSE is [N, T]."""
        first_rows = chunk.cu_seq_lens[:-1, None]
        batch = Batch(
            query_start_loc=chunk.query_start_loc,
            seq_lens=chunk.cu_seq_lens.diff(),
            max_query_len=chunk.max_query_len,
            max_seq_len=chunk.max_seq_len,
            num_actual_tokens=len(q),
            causal=False,
            block_table=first_rows + torch.arange(chunk.max_seq_len, dtype=first_rows.dtype, device=first_rows.device),
        )
        return attend_to_context(q, joined(k, v), self._layer(), batch, out=out, **_options())

    def _layer(self) -> Layer:
        head_size = self.qk_nope_head_dim + self.qk_rope_head_dim
        return expanded_layer(self.num_heads, head_size, self.v_head_dim, self.scale)


def _options() -> dict[str, bool]:
    return {"batch_invariant": envs.VLLM_BATCH_INVARIANT}

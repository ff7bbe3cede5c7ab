"""PARITY_TRITON: the project's Triton kernels in vLLM."""

import attn_optimized
from attn_optimized.backends.declaring import triton_capabilities
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheSpec

from attn_vllm.backend import ParityBackend, ParityImpl
from attn_vllm.layer import LAYOUTS, SCALES
from attn_vllm.metadata import ParityMetadata, ParityMetadataBuilder

CAPABILITIES = triton_capabilities("PARITY_TRITON", layouts=LAYOUTS, scales=SCALES)


class ParityTritonMetadataBuilder(ParityMetadataBuilder):
    @classmethod
    def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec) -> AttentionCGSupport:
        """Graphs of any batch; for models with bidirectional ranges, graphs of decodes of one token per request only.

        A graph would replay the ranges of the step in which it was captured. A step of one token per request needs no ranges:
        vLLM does not cut an image, so all tokens of an image come in one step.
        """
        model_config = vllm_config.model_config
        if model_config is not None and model_config.is_mm_prefix_lm:
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return AttentionCGSupport.ALWAYS

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> ParityMetadata:
        """The step that a graph is captured with. Its sequences are cut to one token: at `max_seq_len` a capture takes long.

        `seq_lens` is changed in place. The graph reads this very tensor, and vLLM fills it anew before every replay.
        """
        metadata = self.build(0, common_attn_metadata)
        metadata.batch.seq_lens.fill_(1)
        return metadata


class ParityTritonImpl(ParityImpl):
    capabilities = CAPABILITIES
    kernels = attn_optimized


class ParityTritonBackend(ParityBackend):
    capabilities = CAPABILITIES

    @staticmethod
    def get_name() -> str:
        return CAPABILITIES.backend

    @staticmethod
    def get_impl_cls() -> type[ParityTritonImpl]:
        return ParityTritonImpl

    @staticmethod
    def get_builder_cls() -> type[ParityTritonMetadataBuilder]:
        return ParityTritonMetadataBuilder

"""PARITY_REFERENCE: the project's reference in vLLM, on whatever device the tensors are. It is slow, and for debugging."""

import attn_reference
import torch
from attn_contract import ANY, YES, AttentionType, Capabilities, No, Only

from attn_vllm.backend import ParityBackend, ParityImpl
from attn_vllm.layer import LAYOUTS, SCALES
from attn_vllm.metadata import ParityMetadataBuilder

CAPABILITIES = Capabilities(
    backend="PARITY_REFERENCE",
    available=YES,
    architectures=ANY,
    attn_types={
        AttentionType.DECODER: YES,
        AttentionType.ENCODER: YES,
        AttentionType.ENCODER_ONLY: YES,
        AttentionType.ENCODER_DECODER: YES,
    },
    dtypes=Only((torch.float32, torch.float16, torch.bfloat16), "it was written for no other type"),
    head_sizes=ANY,
    group_sizes=ANY,
    block_sizes=ANY,
    layouts=LAYOUTS,
    kv_cache_dtypes=Only((torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8), "it decodes no other type"),
    scales=SCALES,
    output_dtypes=Only((torch.float8_e4m3fn, torch.float8_e4m3fnuz), "it encodes no other type"),
    rules={
        **dict.fromkeys(attn_reference.IMPLEMENTED_RULES, YES),
        "selection_unit": No("vLLM's step has no selection"),
        "key_unit": No("vLLM's step counts keys by tokens"),
        "non_causal": YES,
        "per_request_causal": YES,
        "lse": YES,
        "rope": YES,
        "kv_sharing": YES,
        "batch_invariant": No("BLAS chooses the order in which it sums by the shapes of a call"),
    },
)


class ParityReferenceImpl(ParityImpl):
    capabilities = CAPABILITIES
    kernels = attn_reference


class ParityReferenceBackend(ParityBackend):
    capabilities = CAPABILITIES

    @staticmethod
    def get_name() -> str:
        return CAPABILITIES.backend

    @staticmethod
    def get_impl_cls() -> type[ParityReferenceImpl]:
        return ParityReferenceImpl

    @staticmethod
    def get_builder_cls() -> type[ParityMetadataBuilder]:
        return ParityMetadataBuilder

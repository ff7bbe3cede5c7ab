"""PARITY_REFERENCE: the project's reference in vLLM, on whatever device the tensors are. Slow: for debugging a model."""

import attn_reference
from attn_contract import ANY, FLOAT8_DTYPES, FLOAT_DTYPES, QUANTIZED_DTYPES, YES, AttentionType, Capabilities, No, Only

from attn_vllm.backend import ParityBackend, ParityImpl
from attn_vllm.layer import LAYOUTS, SCALES
from attn_vllm.metadata import ParityMetadataBuilder

CAPABILITIES = Capabilities(
    backend="PARITY_REFERENCE",
    available=YES,
    architectures=ANY,
    attn_types=dict.fromkeys(AttentionType, YES),
    dtypes=Only(FLOAT_DTYPES, "the contract has no other type"),
    head_sizes=ANY,
    group_sizes=ANY,
    block_sizes=ANY,
    layouts=LAYOUTS,
    kv_cache_dtypes=Only(QUANTIZED_DTYPES, "the contract has no other type"),
    scales=SCALES,
    output_dtypes=Only(FLOAT8_DTYPES, "the contract has no other type"),
    rules={
        **dict.fromkeys(attn_reference.IMPLEMENTED_RULES, YES),
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

"""Other people's kernels, on sources of their packages that are unpacked or installed: docs/guide/foreign-kernels.md."""

from attn_fuzz.targets.registry import Package

_HERE, _OURS = "attn_fuzz.targets.packages", "attn_fuzz.targets"
VLLM = Package(
    "vllm",
    "vllm==0.33.0",
    {
        "vllm-segmented-attention": f"{_HERE}.vllm_segmented:VLLM_SEGMENTED_ATTENTION",
        "vllm-unified-attention": f"{_HERE}.vllm_unified:VLLM_UNIFIED_ATTENTION",
        "vllm-diffkv": f"{_HERE}.vllm_diffkv:VLLM_DIFFKV",
        "vllm-rocm-attention": f"{_HERE}.vllm_rocm:VLLM_ROCM_ATTENTION",
        "vllm-rocm-alibi": f"{_HERE}.vllm_rocm:VLLM_ROCM_ALIBI",
        "vllm-encoder-attention": f"{_HERE}.vllm_encoder:VLLM_ENCODER_ATTENTION",
        "vllm-reshape-and-cache": f"{_HERE}.vllm_write:VLLM_WRITE",
        "vllm-flex-masks": f"{_HERE}.vllm_flex:VLLM_FLEX_MASKS",
        "vllm-dcp-reduce-scatter": f"{_HERE}.vllm_ranks:VLLM_DCP_REDUCE_SCATTER",
        "vllm-dcp-all-to-all": f"{_HERE}.vllm_ranks:VLLM_DCP_ALL_TO_ALL",
        "vllm-triton-mla": f"{_HERE}.vllm_mla:VLLM_TRITON_MLA",
        "vllm-minimax-m3": f"{_HERE}.vllm_minimax:VLLM_MINIMAX_M3",
        "vllm-minimax-m3-rocm": f"{_HERE}.vllm_minimax:VLLM_MINIMAX_M3_ROCM",
        "vllm-sparse-mla": f"{_HERE}.vllm_sparse_mla:VLLM_SPARSE_MLA",
        "vllm-qsa": f"{_HERE}.vllm_qsa:VLLM_QSA",
        "vllm-merge-attn-states": f"{_HERE}.merges:VLLM_MERGE",
    },
)
SGLANG = Package(
    "sglang",
    "sglang==0.5.23",
    {
        "sglang-merge-state": f"{_HERE}.merges:SGLANG_MERGE",
        "sglang-triton": f"{_HERE}.sglang_triton:SGLANG_TRITON",
        "sglang-extend-deterministic": f"{_HERE}.sglang_deterministic:SGLANG_EXTEND_DETERMINISTIC",
        "sglang-decode-deterministic": f"{_HERE}.sglang_deterministic:SGLANG_DECODE_DETERMINISTIC",
        "sglang-encoder-attention": f"{_HERE}.sglang_encoder:SGLANG_ENCODER_ATTENTION",
        "sglang-vision-attention": f"{_HERE}.sglang_encoder:SGLANG_VISION_ATTENTION",
        "sglang-sparse-mla": f"{_HERE}.sglang_sparse_mla:SGLANG_SPARSE_MLA",
        "sglang-sparse-mla-prefill": f"{_HERE}.sglang_sparse_mla:SGLANG_SPARSE_MLA_PREFILL",
        "sglang-verify-splitkv": f"{_HERE}.sglang_verify:SGLANG_VERIFY_SPLITKV",
    },
)
LMDEPLOY = Package(
    "lmdeploy",
    "lmdeploy==0.18.0",
    {
        "lmdeploy-decode": f"{_HERE}.lmdeploy_triton:LMDEPLOY_DECODE",
        "lmdeploy-block-decode": f"{_HERE}.lmdeploy_triton:LMDEPLOY_BLOCK_DECODE",
        "lmdeploy-prefill": f"{_HERE}.lmdeploy_triton:LMDEPLOY_PREFILL",
    },
)
AITER = Package(
    "aiter",
    "amd-aiter==0.1.7.post2.dev18",
    {
        "aiter-unified-attention": f"{_OURS}.aiter:AITER_UNIFIED_ATTENTION",
        "backend-aiter-unified": f"{_OURS}.backends:BACKEND_AITER_UNIFIED",
        "backend-aiter-fa": f"{_OURS}.backends:BACKEND_AITER_FA",
        "aiter-mla-decode": f"{_HERE}.aiter_mla:AITER_MLA_DECODE",
        "aiter-mla-decode-rope": f"{_HERE}.aiter_mla:AITER_MLA_DECODE_ROPE",
        "aiter-sparse-mla": f"{_HERE}.aiter_mla:AITER_SPARSE_MLA",
        "aiter-decode-sparse": f"{_HERE}.aiter_sparse:AITER_DECODE_SPARSE",
        "aiter-paged-decode": f"{_HERE}.aiter_paged:AITER_PAGED_DECODE",
        "aiter-chunked-prefill": f"{_HERE}.aiter_paged:AITER_CHUNKED_PREFILL",
        "aiter-prefill-attention": f"{_HERE}.aiter_dense:AITER_PREFILL_ATTENTION",
        "aiter-extend-attention": f"{_HERE}.aiter_dense:AITER_EXTEND_ATTENTION",
        "aiter-mha-varlen": f"{_HERE}.aiter_dense:AITER_MHA_VARLEN",
        "aiter-paged-prefill": f"{_HERE}.aiter_paged:AITER_PAGED_PREFILL",
    },
)
AITER_EMULATED = Package(
    "aiter",
    AITER.requirement,
    {
        "aiter-gluon-unified": f"{_HERE}.aiter_gluon:AITER_GLUON_UNIFIED",
        "aiter-gluon-sparse": f"{_HERE}.aiter_sparse:AITER_GLUON_SPARSE",
        "aiter-gluon-sparse-gfx1250": f"{_HERE}.aiter_sparse:AITER_GLUON_SPARSE_GFX1250",
        "aiter-gluon-decode": f"{_HERE}.aiter_gluon:AITER_GLUON_DECODE",
        "aiter-gluon-decode-gfx942": f"{_HERE}.aiter_gluon:AITER_GLUON_DECODE_GFX942",
        "aiter-gluon-mla-decode": f"{_HERE}.aiter_gluon:AITER_GLUON_MLA_DECODE",
        "aiter-gluon-mla": f"{_HERE}.aiter_gluon:AITER_GLUON_MLA",
        "aiter-pa-assembly": f"{_HERE}.aiter_pa_assembly:AITER_PA_ASSEMBLY",
        "aiter-pa-mtp-assembly": f"{_HERE}.aiter_pa_assembly:AITER_PA_MTP_ASSEMBLY",
        "aiter-fmha-v3": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3",
        "aiter-fmha-v3-batch": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3_BATCH",
        "aiter-fmha-v3-rtz": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3_RTZ",
        "aiter-fmha-v3-batch-rtz": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3_BATCH_RTZ",
        "aiter-fmha-v3-192": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3_192",
        "aiter-fmha-v3-batch-192": f"{_HERE}.aiter_fmha_assembly:AITER_FMHA_V3_BATCH_192",
        "aiter-mla-assembly": f"{_HERE}.aiter_mla_assembly:AITER_MLA_ASSEMBLY",
        "aiter-mla-prefill-assembly": f"{_HERE}.aiter_mla_assembly:AITER_MLA_PREFILL_ASSEMBLY",
        "aiter-mla-persistent": f"{_HERE}.aiter_mla_assembly:AITER_MLA_PERSISTENT",
        "aiter-mla-persistent-a16w8": f"{_HERE}.aiter_mla_assembly:AITER_MLA_PERSISTENT_A16W8",
        "aiter-hip-pa-v1": f"{_HERE}.aiter_hip:AITER_HIP_PA_V1",
        "aiter-hip-pa-ragged": f"{_HERE}.aiter_hip:AITER_HIP_PA_RAGGED",
        "aiter-hip-pa-rocm": f"{_HERE}.aiter_hip:AITER_HIP_PA_ROCM",
        "aiter-ck-fmha": f"{_HERE}.aiter_ck:AITER_CK_FMHA",
    },
)

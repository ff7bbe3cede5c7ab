"""Other people's kernels, on sources of their packages that are unpacked or installed: docs/guide/foreign-kernels.md."""

from collections.abc import Mapping, Sequence

from attn_fuzz.targets.registry import Package


def _package(name: str, requirement: str, targets: Mapping[str, Sequence[str]]) -> Package:
    """`targets`: the names of the targets of each module. A target is the attribute that has its name, in capitals."""
    found = {each: f"{__name__}.{module}:{each.upper().replace('-', '_')}" for module in targets for each in targets[module]}
    return Package(name, requirement, found)


VLLM = _package(
    "vllm",
    "vllm==0.33.0",
    {
        "vllm.segmented": ("vllm-segmented-attention",),
        "vllm.unified": ("vllm-unified-attention",),
        "vllm.diffkv": ("vllm-diffkv",),
        "vllm.rocm": ("vllm-rocm-attention", "vllm-rocm-alibi"),
        "vllm.encoder": ("vllm-encoder-attention",),
        "vllm.write": ("vllm-reshape-and-cache",),
        "vllm.flex": ("vllm-flex-masks",),
        "vllm.rank_merges": ("vllm-dcp-reduce-scatter", "vllm-dcp-all-to-all"),
        "vllm.mla": ("vllm-triton-mla",),
        "vllm.minimax": ("vllm-minimax-m3", "vllm-minimax-m3-rocm"),
        "vllm.sparse_mla": ("vllm-sparse-mla",),
        "vllm.two_caches": ("vllm-two-caches",),
        "vllm.combined_lists": ("vllm-combined-lists", "vllm-combined-lists-rocm", "vllm-combined-lists-v41"),
        "vllm.selected_slots": ("vllm-selected-slots", "vllm-selected-pools"),
        "vllm.qsa": ("vllm-qsa",),
        "vllm.indexer": (
            "vllm-indexer",
            "vllm-paged-mqa-logits",
            "vllm-paged-mqa-logits-torch",
            "vllm-index-decode",
            "vllm-mqa-logits-torch",
        ),
        "vllm.minimax_indexer": ("vllm-minimax-indexer", "vllm-minimax-index-decode", "vllm-minimax-index-decode-rocm"),
        "merges": ("vllm-merge-attn-states",),
    },
)
SGLANG = _package(
    "sglang",
    "sglang==0.5.23",
    {
        "merges": ("sglang-merge-state",),
        "sglang.triton_backend": ("sglang-triton",),
        "sglang.deterministic": ("sglang-extend-deterministic", "sglang-decode-deterministic"),
        "sglang.encoder": ("sglang-encoder-attention", "sglang-vision-attention"),
        "sglang.sparse_mla": ("sglang-sparse-mla", "sglang-sparse-mla-prefill"),
        "sglang.two_caches": ("sglang-two-caches",),
        "sglang.combined_lists": ("sglang-combined-lists",),
        "sglang.unified_kv": ("sglang-unified-decode", "sglang-unified-prefill"),
        "sglang.verify": ("sglang-verify-splitkv",),
        "sglang.tree": ("sglang-verify-tree",),
        "sglang.rank_merges": ("sglang-dcp-reduce-scatter", "sglang-dcp-all-to-all"),
    },
)
LMDEPLOY = _package(
    "lmdeploy",
    "lmdeploy==0.18.0",
    {
        "lmdeploy.paged": ("lmdeploy-decode", "lmdeploy-block-decode", "lmdeploy-prefill"),
    },
)
AITER = _package(
    "aiter",
    "amd-aiter==0.1.7.post2.dev18",
    {
        "aiter.unified": ("aiter-unified-attention",),
        "aiter.backends": ("backend-aiter-unified", "backend-aiter-fa"),
        "aiter.mla": ("aiter-mla-decode", "aiter-mla-decode-rope", "aiter-sparse-mla"),
        "aiter.sparse": ("aiter-decode-sparse",),
        "aiter.two_sources": ("aiter-prefill-sparse",),
        "aiter.combined_lists": ("aiter-combined-lists",),
        "aiter.mqa_logits": (
            "aiter-mqa-logits",
            "aiter-paged-mqa-logits",
            "aiter-paged-mqa-logits-stage1",
            "aiter-ragged-mqa-logits",
        ),
        "aiter.paged": ("aiter-paged-decode", "aiter-chunked-prefill", "aiter-paged-prefill"),
        "aiter.dense": ("aiter-prefill-attention", "aiter-extend-attention", "aiter-mha-varlen"),
    },
)
AITER_EMULATED = _package(
    "aiter",
    AITER.requirement,
    {
        "aiter.gluon": (
            "aiter-gluon-unified",
            "aiter-gluon-decode",
            "aiter-gluon-decode-gfx942",
            "aiter-gluon-mla-decode",
            "aiter-gluon-mla",
        ),
        "aiter.sparse": ("aiter-gluon-sparse", "aiter-gluon-sparse-gfx1250"),
        "aiter.two_sources": ("aiter-gluon-prefill-sparse", "aiter-gluon-prefill-sparse-gfx1250", "aiter-gluon-two-caches"),
        "aiter.pa_assembly": ("aiter-pa-assembly", "aiter-pa-mtp-assembly"),
        "aiter.fmha_assembly": (
            "aiter-fmha-v3",
            "aiter-fmha-v3-batch",
            "aiter-fmha-v3-rtz",
            "aiter-fmha-v3-batch-rtz",
            "aiter-fmha-v3-192",
            "aiter-fmha-v3-batch-192",
        ),
        "aiter.mla_assembly": (
            "aiter-mla-assembly",
            "aiter-mla-prefill-assembly",
            "aiter-mla-persistent",
            "aiter-mla-persistent-a16w8",
        ),
        "aiter.hip": ("aiter-hip-pa-v1", "aiter-hip-pa-ragged", "aiter-hip-pa-rocm"),
        "aiter.ck": ("aiter-ck-fmha",),
    },
)

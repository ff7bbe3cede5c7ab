"""vLLM's sparse attention of Qwen4 on ROCm (models/qwen4_exp/amd/ops/qsa.py), as models/qwen4_exp/amd/qsa.py:296-347 calls it.

An indexer selects groups of 4 tokens, and each query also sees the tokens of its own, open group. The kernel gets tokens: those
of the groups, then the open ones, then -1 (ops/qsa.py:135-185). It divides by sqrt(D), and takes bfloat16 and a cache of K
beside V.
"""

import dataclasses

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.packages import VLLM
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.latent_rows import SPARSE_TOKENS, decoded_rows, selected_tokens
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

GROUP = 4


def _stubs() -> Stubs:
    stubs = vllm_package.stubs(is_rocm=True)
    stubs["vllm.triton_utils"] |= {"HAS_TRITON": True}
    return stubs


SOURCES = Sources(VLLM, ("models/qwen4_exp/amd/ops/qsa",), _stubs)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [tokens], (request, _) = selected_tokens(layer, batch), decoded_rows(batch)
    rows = len(request)
    if not rows:
        return
    tokens = torch.nn.functional.pad(tokens, (0, GROUP - 1), value=-1)
    k_cache, v_cache = kv_cache.transpose(1, 2).split(layer.head_size, dim=-1)
    with foreign.as_on_a_gpu():
        SOURCES.load()[0].qsa_sparse_paged_attention(
            q[:rows], k_cache, v_cache, tokens, batch.block_table, request.int(), rows_of(out, layer, rows)
        )


VLLM_QSA = SOURCES.target(
    name="vllm-qsa",
    description="qsa_sparse_paged_attention of vLLM for ROCm",
    attention=_attention,
    support=Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16",),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("selection_unit",),
        required_rules=("selection_unit",),
        head_sizes=(128, 32, 256),
        group_sizes=(8, 1, 5, 16),
        block_sizes=(16, 64, 48),
        engine=dataclasses.replace(SPARSE_TOKENS, selection_units=(GROUP,), selections=("top", "some"), other_scales=False),
        max_seq_len=300,
    ),
    rounding=Rounding(keys_per_tile=16, splits=64),
)

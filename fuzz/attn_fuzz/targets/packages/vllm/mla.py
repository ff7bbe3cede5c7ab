"""vLLM's decode of latent attention (v1/attention/ops/triton_decode_attention.py), called as its TRITON_MLA backend calls it.

v1/attention/backends/mla/triton_mla.py:248-341: each row of q has a length of its own and its request's block table, output and
LSE are zeros before the call, and the LSE has the dtype of q. Widths are those of models: DeepSeek, MiniCPM3, and Mistral 4.
"""

import dataclasses

import torch
from attn_fuzz import foreign
from attn_fuzz.findings import vllm
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.packages.latent_rows import decoded_rows, latent_support
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rng import rng_of
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

SOURCES = vllm_package.ops("triton_decode_attention")
SPLITS = (1, 4, 8)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = SOURCES.load()
    request, seq_lens = decoded_rows(batch)
    rows = len(request)
    splits = rng_of((q.shape, batch.seq_lens)).choice(SPLITS)
    new_out = torch.zeros(rows, layer.num_heads, layer.v_head_size, dtype=q.dtype, device=q.device)
    lse_dtype = torch.float32 if "vllm-mla-narrow-lse" in foreign.repaired() else q.dtype
    new_lse = torch.zeros(rows, layer.num_heads, dtype=lse_dtype, device=q.device)
    if rows:
        cache = kv_cache.unsqueeze(2)
        module.decode_attention_fwd(
            q[:rows],
            cache,
            cache[..., : layer.v_head_size],
            new_out,
            new_lse,
            batch.block_table[request],
            seq_lens,
            far.parts((rows, layer.num_heads, splits, layer.v_head_size + 1), q.device),
            splits,
            layer.scale,
            kv_cache.shape[1],
            k_scale=layer.k_scale,
            v_scale=layer.k_scale,
            is_mla=True,
        )
    rows_of(out, layer, rows)[:] = new_out
    if lse is not None:
        lse[:, :rows] = new_lse.T.float()


_SUPPORT = latent_support(
    rules=("non_causal", "per_request_causal", "lse", "head_size_v"),
    cache_dtypes=("fp8_e4m3fn",),
    scales=("tensor",),
    engine=dataclasses.replace(
        VLLM, fused_qkv=(False,), cited={"fused_qkv": "v1/attention/backends/mla/triton_mla.py:257, torch.cat"}
    ),
    latent=LatentSizes(widths=((512, 64), (256, 32), (256, 64)), group_sizes=(16, 12), block_sizes=(16, 64)),
)
VLLM_TRITON_MLA = SOURCES.target(
    name="vllm-triton-mla",
    description="decode_attention_fwd of vLLM, as TRITON_MLA calls it",
    attention=_attention,
    support=_SUPPORT,
    rounding=Rounding(keys_per_tile=32, splits=max(SPLITS), rounds_dequantized=True),
    findings=vllm.TRITON_MLA,
)

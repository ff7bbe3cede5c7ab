"""SGLang's extend attention as its triton backend verifies a tree of drafts (985-1000): by a mask that the engine makes.

The mask has a row for each draft and a column for each key of the request, in bytes, as graphs hold it. Models with relative
biases also hand over relative_bias_score_mod, and a bias for each draft, head and distance (1912).
"""

import dataclasses

import torch
from attn_contract import Batch, Layer
from attn_fuzz import foreign
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.sglang.package import extend_arguments
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.verdict.rounding import Rounding

SOURCES = sglang_package.ops("extend_attention", "score_mod")


def _attention(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    module, score_mods = SOURCES.load()
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    drafts = int(batch.query_start_loc[-1]) // batch.num_requests
    prefixes = batch.seq_lens - drafts
    arguments = extend_arguments(
        *(q, k, v, out.view(q.shape), k_cache, v_cache, batch),
        *slots_of_requests(batch, prefixes, k_cache.shape[1]),
    )[:-3]
    none = q.new_zeros((drafts, drafts), dtype=torch.float32)
    bias = none if batch.qq_bias is None else batch.qq_bias[:drafts, :drafts]
    own = torch.isfinite(bias).tril()
    masks = [torch.nn.functional.pad(own, (prefix, 0), value=True).flatten() for prefix in prefixes.tolist()]
    mask_indptr = torch.nn.functional.pad((drafts * batch.seq_lens.long()).cumsum(0), (1, 0))
    scored = {}
    if bool((bias[own] != 0).any()):
        biases = _by_distance(torch.where(own, bias, 0.0)).repeat(batch.num_requests, 1)[:, None]
        aux = biases.expand(-1, layer.num_heads, -1).contiguous()
        scored = {"score_mod": score_mods.relative_bias_score_mod, "aux_tensors": [aux]}
    foreign.call(
        module.extend_attention_fwd,
        *(*arguments, torch.cat(masks).to(torch.uint8), True, mask_indptr, drafts, 1.0, 1.0, layer.scale),
        logit_cap=layer.logits_soft_cap or 0.0,
        sinks=layer.sinks,
        hints={"page_size": k_cache.shape[1]},
        **scored,
    )


def _by_distance(bias: torch.Tensor) -> torch.Tensor:
    """[Q, Q]: in row i and column d the bias between drafts i and i - d, or 0 where there is no draft i - d."""
    draft = torch.arange(len(bias), device=bias.device)
    other = draft[:, None] - draft
    return torch.where(other < 0, 0.0, bias.gather(1, other.clamp(min=0)))


SGLANG_VERIFY_TREE = SOURCES.target(
    name="sglang-verify-tree",
    description="the Triton extend attention of SGLang, as its triton backend verifies a tree of drafts",
    attention=_attention,
    support=sglang_package.support(
        rules=("qq_bias", "logits_soft_cap", "sinks"),
        engine=dataclasses.replace(sglang_package.ENGINE, query_lens=("equal",), prompts=False),
        max_tokens=48,
    ),
    rounding=Rounding(keys_per_tile=64),
    dense_keys=lambda case: [True] * len(case.requests),
    modules=None,  # what is to be compiled for the emulator carries no function as an argument, as score_mod is one
)

"""vLLM's chunked_prefill_paged_decode as RocmAttentionImpl of v1/attention/backends/rocm_attn.py calls it (444-468).

A request with one query is decoded from the cache; any other request reads this step's keys from k and v (prefix_prefill). The
decode is the Triton kernel: the native one is not in Python. Lines of that file: 281-286 and 460-462 say that a window of W
tokens is W; 288-291 take a soft cap, and 444-468 do not hand it on; 172 has the head sizes, 165 the blocks, 243-248 the
layouts, 180-184 that there are no sinks. ALiBi has a kernel of its own, which refuses a quantized output and steps that are not
causal (ops/prefix_prefill.py: context_attention_fwd), and a target of its own. Slopes of models are positive.
"""

import dataclasses
from collections.abc import Iterable

from attn_contract import Layout
from attn_fuzz import foreign
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.vllm import ROCM_ALIBI, ROCM_ATTN
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages import chunked_prefill
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.verdict.rounding import Rounding

SOURCES = vllm_package.ops("chunked_prefill_paged_decode", "prefix_prefill", is_rocm=True)
_ENGINE = dataclasses.replace(VLLM, writes=(True,), unwritten=False)


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    module, _ = SOURCES.load()
    foreign.call(
        module.chunked_prefill_paged_decode,
        **chunked_prefill.arguments(batch.num_actual_tokens, q, k, v, kv_cache, layer, batch, out),
        max_seq_len=batch.max_seq_len,
        output_scale=layer.output_scale,
        sinks=layer.sinks,
        causal=batch.causal,
        hints={"soft_cap": layer.logits_soft_cap or 0.0},  # of the repair of vllm-rocm-soft-cap
    )


_SUPPORT = vllm_package.support(
    layouts=(Layout.X_PACKED,),
    rules=("window", "non_causal", "logits_soft_cap"),
    output_dtypes=("fp8_e4m3fn",),
    engine=_ENGINE,
    tile_sizes=(32, 64, 128),
    max_tokens=160,
)
_ALIBI_SUPPORT = dataclasses.replace(
    _SUPPORT, rules=("alibi_slopes",), output_dtypes=(), engine=dataclasses.replace(_ENGINE, signed_slopes=False)
)


def _events(step: Step) -> Iterable[str]:
    return {"decode" if length == 1 else "prefill" for length in step.batch.query_start_loc.diff().tolist() if length}


VLLM_ROCM_ATTENTION = SOURCES.target(
    name="vllm-rocm-attention",
    description="the Triton chunked_prefill_paged_decode of vLLM, as its ROCM_ATTN calls it",
    attention=_attention,
    support=_SUPPORT,
    rounding=Rounding(keys_per_tile=128, rounds_dequantized=True),
    dense_keys=lambda case: [request.query_len > 1 for request in case.requests],
    events=_events,
    findings=ROCM_ATTN,
)
VLLM_ROCM_ALIBI = dataclasses.replace(
    VLLM_ROCM_ATTENTION,
    name="vllm-rocm-alibi",
    description="the same for models with ALiBi, which have a prefill kernel of their own",
    support=lambda device: _ALIBI_SUPPORT,
    findings=ROCM_ALIBI,
)

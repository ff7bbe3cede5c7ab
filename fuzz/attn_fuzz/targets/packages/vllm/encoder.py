"""vLLM's triton_prefill_attention as _forward_encoder_attention of TritonAttentionImpl calls it.

Lines 782-796 of v1/attention/backends/triton_attn.py are the call.
"""

from attn_contract import AttentionType
from attn_fuzz.findings.vllm import ENCODER
from attn_fuzz.targets.engine import Engine
from attn_fuzz.targets.packages.vllm import package as vllm_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

SOURCES = vllm_package.ops("triton_prefill_attention")


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = SOURCES.load()
    rows = batch.num_actual_tokens
    module.context_attention_fwd(
        q=q[:rows],
        k=k[:rows],
        v=v[:rows],
        o=rows_of(out, layer, rows),
        b_start_loc=batch.query_start_loc,
        b_seq_len=batch.seq_lens,
        max_input_len=batch.max_query_len,
        is_causal=False,
        softmax_scale=layer.scale,
        sliding_window_q=layer.window[0],
        sliding_window_k=layer.window[1],
        sinks=layer.sinks,
    )


VLLM_ENCODER_ATTENTION = SOURCES.target(
    name="vllm-encoder-attention",
    description="the triton_prefill_attention of vLLM, as its TRITON_ATTN calls it for encoders",
    attention=_attention,
    support=Support(
        attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY),
        dtypes=("float32", "float16", "bfloat16"),
        rules=("window", "sinks"),
        head_sizes=(32, 64, 80, 96, 128),
        engine=Engine(
            windows=("symmetric",),
            one_token_windows=False,  # the kernel takes 0 for none
            scale_signs=(1,),
            empty_batches=False,
            unlike_strides=(False,),
            dense_out=(True,),
            cited={"windows": "v1/attention/backends/triton_attn.py:505-506"},
        ),
        tile_sizes=(32, 128),
        max_tokens=320,
        max_seq_len=256,
    ),
    rounding=Rounding(keys_per_tile=128),
    findings=ENCODER,
)

"""SGLang's Triton attention of encoders: the extend of layers that see both ways, and the attention of vision models.

Layers of ENCODER_ONLY are an extend without a prefix that is not causal (1729-1742), with the window of the layer (1811-1830).
Vision models call context_attention_fwd for q, k and v of all images of a step (srt/layers/attention/vision.py:453-523).
"""

import dataclasses

import torch
from attn_contract import AttentionType
from attn_fuzz import foreign
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

EXTEND, PREFILL = sglang_package.ops("extend_attention"), sglang_package.ops("prefill_attention")


def _extend(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = EXTEND.load()
    rows = int(batch.query_start_loc[-1])
    nothing = k.new_full((1, layer.num_kv_heads, layer.head_size), torch.nan)
    foreign.call(
        module.extend_attention_fwd,
        q[:rows],
        k[:rows].contiguous(),
        v[:rows].contiguous(),
        rows_of(out, layer, rows),
        nothing,
        nothing,
        batch.query_start_loc.long(),
        torch.zeros_like(batch.query_start_loc),
        batch.query_start_loc.new_zeros(0, dtype=torch.int64),
        None,
        False,
        None,
        batch.max_query_len,
        1.0,
        1.0,
        layer.scale,
        sliding_window_size=layer.window[0],
        hints={"page_size": 1},
    )


def _vision(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = PREFILL.load()
    rows = int(batch.query_start_loc[-1])
    foreign.call(
        module.context_attention_fwd,
        q[:rows],
        k[:rows],
        v[:rows],
        rows_of(out, layer, rows),
        batch.query_start_loc,
        batch.seq_lens,
        batch.max_query_len,
        is_causal=False,
        hints={"sm_scale": layer.scale},
    )


_SUPPORT = Support(
    attn_types=(AttentionType.ENCODER_ONLY,),
    dtypes=("float16", "bfloat16"),
    rules=("window",),
    head_sizes=sglang_package.HEAD_SIZES,
    engine=dataclasses.replace(sglang_package.ENGINE, windows=("symmetric",)),
    tile_sizes=(32, 64),
    max_seq_len=256,
)
SGLANG_ENCODER_ATTENTION = EXTEND.target(
    name="sglang-encoder-attention",
    description="the Triton extend attention of SGLang, as its triton backend calls it for encoder-only models",
    attention=_extend,
    support=_SUPPORT,
    rounding=Rounding(keys_per_tile=64),
)
SGLANG_VISION_ATTENTION = PREFILL.target(
    name="sglang-vision-attention",
    description="the Triton prefill attention of SGLang, as its vision models call it",
    attention=_vision,
    support=dataclasses.replace(_SUPPORT, attn_types=(AttentionType.ENCODER,), rules=()),
    rounding=Rounding(keys_per_tile=64, normalizes_first=True),
)

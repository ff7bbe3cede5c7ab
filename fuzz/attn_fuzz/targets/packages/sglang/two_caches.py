"""SGLang's Triton decode over two caches of DeepSeek-V4 (kernels/ops/attention/dsv4/triton_sparse_decode).

srt/layers/attention/hip_flash_mla.py:230 takes it on ROCm by the name "triton". As in `packages.vllm.two_caches`, what a row
selects is dealt onto two caches of 584 bytes a slot. Of each source all rows have one width, and a length that is their own, or
none. The entries at and after a length are not looked at (triton_mla_kernels_decode_fused.py:479). Parts follow from sizes: 4
or 8 if there are few rows (:71). The LSE has no sink in it, and +inf stands for no key, so it is not compared.
"""

import functools
import random

import torch
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.packages import SGLANG
from attn_fuzz.targets.packages.declaring import Sources, choose_config
from attn_fuzz.targets.packages.latent_rows import ENTRIES, selection_target, two_caches
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

FOLDER = "kernels/ops/attention/dsv4/triton_sparse_decode/"
UNREAD = 1 << 30
MORE = (0, 1, 64, 512, 1024)
"""Entries after those of a row: engines have 512 of compressed tokens, and more."""


def _stubs() -> Stubs:
    return sglang_package.stubs() | {"sglang.srt.utils.common": {"is_gfx942_supported": lambda: False}}


SOURCES = Sources(
    SGLANG,
    ("__init__", "triton_mla_kernels_decode_fused"),
    _stubs,
    (FOLDER,),
    (FOLDER,),
    change=functools.partial(choose_config, which=0),
)


def _attend(q, slots, kv_cache, layer, out, rng) -> None:
    rows, tokens, moved, entries = two_caches(kv_cache, slots, layer, rng)
    indices, lengths = _padded(tokens, rng)
    second = (None, None, None)
    if bool((entries >= 0).any()) or rng.choice((False, True)):
        second = (moved.unsqueeze(2), *_padded(entries, rng))
    found, _ = SOURCES.load()[0].triton_fp8_attention_fwd(
        q=q.unsqueeze(1),
        k_cache=rows.unsqueeze(2),
        head_dim_v=layer.v_head_size,
        softmax_scale=layer.scale,
        indices=indices,
        attn_sink=layer.sinks,
        extra_k_cache=second[0],
        extra_indices_in_kvcache=second[1],
        topk_length=lengths,
        extra_topk_length=second[2],
    )
    out[:] = found.squeeze(1)


def _padded(slots: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Slots [rows, 1, at least W], and with a length for each row or with -1 after them."""
    width = slots.shape[1] + rng.choice(MORE)
    has_lengths = rng.choice((False, True))
    padded = torch.nn.functional.pad(slots, (0, width - slots.shape[1]), value=-1)
    places = torch.arange(1, width + 1, device=slots.device)
    lengths = torch.where(padded >= 0, places, 0).amax(1) if width else places.new_zeros(len(slots))
    if has_lengths:
        padded = torch.where(places <= lengths[:, None], padded, UNREAD)
    return padded.unsqueeze(1), lengths.int() if has_lengths else None


SGLANG_TWO_CACHES = selection_target(
    _attend,
    name="sglang-two-caches",
    description="triton_fp8_attention_fwd of SGLang, over two caches of 584 bytes a slot",
    support={**ENTRIES, "latent": LatentSizes(widths=((512, 0),), group_sizes=(16, 128, 12, 64), block_sizes=(16, 4, 64))},
    rounding=Rounding(keys_per_tile=32, splits=8),
    **SOURCES.fields(),
)

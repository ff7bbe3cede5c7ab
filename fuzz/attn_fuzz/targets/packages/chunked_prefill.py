"""chunked_prefill_paged_decode, which vLLM and AITER have a copy of each, and the prefill in it: what both take."""

import torch
from attn_contract import Batch, Layer
from attn_fuzz import foreign
from attn_fuzz.targets.rows import rows_of


def of_layer(layer: Layer, device: torch.device) -> dict[str, object]:
    """Arguments that a layer fixes. A window of W tokens is W, and a cache without scales has scales of 1."""
    one = torch.ones((), device=device)
    return {
        "kv_cache_dtype": "auto" if layer.kv_cache_dtype is None else "fp8",
        "k_scale": one if layer.k_scale is None else layer.k_scale,
        "v_scale": one if layer.v_scale is None else layer.v_scale,
        "alibi_slopes": layer.alibi_slopes,
        "sliding_window": layer.window[0] + 1,
        "sm_scale": layer.scale,
    }


def arguments(
    rows: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
) -> dict[str, object]:
    """The arguments of chunked_prefill_paged_decode that both copies have. Of q, k, v and out it gets the first `rows` rows."""
    key_cache, value_cache = foreign.packed_keys_and_values(kv_cache, layer)
    return {
        "query": q[:rows],
        "key": k[:rows],
        "value": v[:rows],
        "output": rows_of(out, layer, rows),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "block_table": batch.block_table,
        "query_start_loc": batch.query_start_loc,
        "seq_lens": batch.seq_lens,
        "max_query_len": batch.max_query_len,
        **of_layer(layer, q.device),
    }

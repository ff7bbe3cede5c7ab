"""One small call of each op without options, and others that together give every option, on each device that there is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import attn_optimized  # noqa: F401  registers the ops of GPUs
import attn_reference  # noqa: F401  registers the ops of CPUs
import torch
from attn_contract import AttentionType, KVCacheView, Layer, Layout
from attn_contract.layouts import LATENT_FORMATS

from tests.support.calls import HEAD_SCALES, Tokens, op_arguments, padded_rows, paged_call, random_tokens, varlen_call
from tests.support.latent_formats import latent_sizes

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 4, 2, 16, 4
FP8 = torch.float8_e4m3fn
FLOAT8_CACHE = {"kv_cache_dtype": FP8, **HEAD_SCALES}
INT8_CACHE = {"kv_cache_dtype": torch.int8}
INLINE_CACHE = {"kv_cache_dtype": torch.int8, "layout": Layout.CONTENT_PACKED_SCALED}
RULES = {
    "window": (2, 2),
    "sink_tokens": 1,
    "chunked_local": 6,
    "logits_soft_cap": 5.0,
    "alibi_slopes": torch.tensor([0.5, 0.25, 0.1, -0.1]),
    "sinks": [0.5, 1.0, -1.0, 0.0],
}
BATCH_RULES = {
    "causal": [True, False],
    "bidirectional_ranges": [[(1, 7)], [(0, -1)]],
    "ranges_clamped": True,
    "qq_bias": torch.arange(36.0).view(6, 6) / 36,
    "selection_unit": 2,
    "selected": torch.tensor([[[0, -1, 3]] * 3 + [[1, 0, -1]] * 3, [[-1, 4, 2]] * 3 + [[-1, -1, -1]] * 3]).int(),
}


class Call(NamedTuple):
    op: torch._ops.OpOverload
    arguments: dict[str, Any]

    @property
    def written(self) -> list[str]:
        """The tensors among the arguments that the schema says are written."""
        is_write = {a.name: a.alias_info is not None and a.alias_info.is_write for a in self.op._schema.arguments}
        return [name for name, value in self.arguments.items() if is_write[name] and value is not None]


def tokens() -> Tokens:
    """Requests of 3 and 1 query tokens, the first of which continues 6 tokens, and the second 3."""
    return random_tokens([3, 1], [9, 4], num_heads=NUM_HEADS, num_kv_heads=NUM_KV_HEADS, head_size=HEAD_SIZE)


def outputs(q: torch.Tensor, dtype: torch.dtype = torch.float32, *, has_lse: bool = False) -> dict[str, torch.Tensor | None]:
    out = torch.zeros(q.shape, device=q.device).to(dtype)
    return {"out": out, "lse": torch.zeros(q.shape[1], len(q), device=q.device) if has_lse else None}


def paged_attention(device: torch.device, **options: Any) -> dict[str, Any]:
    call = paged_call(tokens(), block_size=BLOCK_SIZE, device=device, **options)
    dtype = torch.float16 if "q_scale" in options else call.q.dtype
    return {**op_arguments(call), **outputs(call.q, FP8 if "output_scale" in options else dtype)}


def varlen_attention(device: torch.device, **options: Any) -> dict[str, Any]:
    encoded = random_tokens([3, 1], [3, 1], head_size=HEAD_SIZE)
    call = varlen_call(encoded, attn_type=AttentionType.ENCODER_ONLY, device=device, **options)
    return {**op_arguments(call), **outputs(call.q, FP8 if "output_scale" in options else call.q.dtype)}


def with_every_rule(attention: Callable[..., dict[str, Any]], device: torch.device, **options: Any) -> dict[str, Any]:
    arguments = attention(device, **RULES, **options)
    return {**arguments, **outputs(arguments["q"], has_lse=True), "batch_invariant": False}


def write_kv_cache(device: torch.device, **cache: Any) -> dict[str, Any]:
    """Three rows, one of which goes nowhere; a fourth belongs to nobody."""
    call = paged_call(tokens(), block_size=BLOCK_SIZE, device=device, **cache)
    k, v = padded_rows(tokens().key[:4], tokens().value[:4], device=device)
    slots = torch.tensor([1, -1, 9], device=device)
    return {
        "k": k,
        "v": v,
        "kv_cache": call.kv_cache,
        "layout": str(call.layer.layout),
        "slot_mapping": slots,
        **scales(call.layer),
    }


def scales(layer: Layer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in layer.tensors.items() if "_scale" in name}


def rope_and_write_kv_cache(device: torch.device, *, is_neox: bool, **cache: Any) -> dict[str, Any]:
    """Rotates a row of q more than it writes of k."""
    arguments = write_kv_cache(device, **cache)
    (q,) = padded_rows(tokens().query, device=device)
    angles = torch.linspace(0, 3, 48, device=device).view(6, 8)
    return {
        **arguments,
        "q": q,
        "positions": torch.tensor([5, 3, 1, 2], device=device),
        "cos_sin_cache": angles,
        "is_neox": is_neox,
    }


def latent_attention(device: torch.device) -> dict[str, Any]:
    """The step of `paged_attention` over rows of HEAD_SIZE elements, of which V is the first 12."""
    arguments = paged_attention(device)
    rows = arguments["kv_cache"][:, 0, :, 0].contiguous()
    latent = {"kv_cache": rows, "layout": "LATENT", "num_kv_heads": 1, "head_size_v": 12}
    return {**arguments, **latent, "out": arguments["out"][..., :12].contiguous()}


def narrow_attention(device: torch.device) -> dict[str, Any]:
    """Dense attention with V of 12 elements."""
    arguments = varlen_attention(device)
    return {**arguments, **{name: arguments[name][..., :12].contiguous() for name in ("v", "out")}, "head_size_v": 12}


def write_latent_cache(device: torch.device, **scale: torch.Tensor) -> dict[str, Any]:
    """Three rows, one of which goes nowhere; a fourth belongs to nobody."""
    rows, cache = torch.randn(4, HEAD_SIZE, device=device), torch.zeros(3, BLOCK_SIZE, HEAD_SIZE, device=device)
    tensors = {"kv_c": rows[:, :12], "k_pe": rows[:, 12:], "kv_cache": cache.to(FP8) if scale else cache}
    return {**tensors, "slot_mapping": torch.tensor([1, -1, 9], device=device), **scale}


def write_scaled_latent_cache(device: torch.device, layout: Layout) -> dict[str, Any]:
    """The same of slots with two scales each."""
    sizes = latent_sizes(layout, scales=2)
    rows = torch.randn(4, sizes["head_size"], dtype=torch.bfloat16, device=device)
    # so many slots need no padding after their scales: opcheck copies the cache without it
    block_size = max(BLOCK_SIZE, layout.block_alignment(**sizes))
    view = KVCacheView.dense(layout, num_blocks=3, block_size=block_size, num_kv_heads=1, itemsize=1, **sizes)
    cache = view.tensor(torch.zeros(view.end, dtype=torch.uint8, device=device)).view(FP8)
    kv_c, k_pe = rows.tensor_split([sizes["head_size_v"]], dim=1)
    slots = torch.tensor([1, -1, 9], device=device)
    return {"kv_c": kv_c, "k_pe": k_pe, "kv_cache": cache, "slot_mapping": slots, "layout": str(layout)}


def merge_attn_states(device: torch.device, *, has_lse: bool = False) -> dict[str, Any]:
    out_a, out_b = torch.randn(2, 6, NUM_HEADS, HEAD_SIZE, device=device)
    lse_a, lse_b = torch.randn(2, NUM_HEADS, 6, device=device)
    return {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, **outputs(out_a, has_lse=has_lse)}


def merge_attn_parts(device: torch.device, **options: Any) -> dict[str, Any]:
    outs, lses = torch.randn(3, 6, NUM_HEADS, HEAD_SIZE, device=device), torch.randn(3, NUM_HEADS, 6, device=device)
    return {"outs": outs, "lses": lses, **outputs(outs[0], has_lse=True), **options}


STEP = {"max_query_len": 2, "max_seq_len": 9, "num_actual_tokens": 3}


def index_step(device: torch.device) -> dict[str, Any]:
    """Requests of 2 and 1 queries, of 9 and 4 keys."""
    starts, lens = torch.tensor([0, 2, 3], device=device), torch.tensor([9, 4], device=device)
    return {"query_start_loc": starts.int(), "seq_lens": lens.int(), **STEP}


def index_cache(device: torch.device, *, is_float8: bool) -> dict[str, Any]:
    if not is_float8:
        return {"index_cache": torch.randn(3, BLOCK_SIZE, HEAD_SIZE, device=device)}
    # zeros: any byte of a scale would do, but NaN is not equal to itself
    cache = torch.zeros(3, BLOCK_SIZE, HEAD_SIZE + 4, dtype=torch.uint8, device=device)
    return {"index_cache": cache, "layout": "FLAT", "cache_dtype": FP8}


def write_index_cache(device: torch.device, *, is_float8: bool = False, **options: Any) -> dict[str, Any]:
    """Three rows, one of which goes nowhere; a fourth belongs to nobody."""
    slots = torch.tensor([1, -1, 9], device=device)
    k = torch.randn(4, HEAD_SIZE, device=device)
    return {"k": k, "slot_mapping": slots, **index_cache(device, is_float8=is_float8), **options}


def index_logits(device: torch.device, *, is_float8: bool = False, **options: Any) -> dict[str, Any]:
    units = -(-STEP["max_seq_len"] // options.get("selection_unit", 1))
    return {
        "q": torch.randn(3, NUM_HEADS, HEAD_SIZE, device=device),
        "weights": None if options.get("score") == "max" else torch.randn(3, NUM_HEADS, device=device),
        **index_step(device),
        **index_cache(device, is_float8=is_float8),
        "block_table": torch.tensor([[1, 2, 0], [0, 1, 2]], dtype=torch.int32, device=device),
        "out": torch.zeros(options.get("num_selections", 1), 3, units, device=device),
        **options,
    }


def select(device: torch.device, **options: Any) -> dict[str, Any]:
    unit = options.get("selection_unit", 1)
    width = 3 + (options.get("key_unit", 1) > 1)
    logits = torch.randn(2, 3, -(-STEP["max_seq_len"] // unit), device=device)
    out = torch.zeros(2, 3, width, dtype=torch.int32, device=device)
    return {"logits": logits, "top_k": 3, **index_step(device), "out": out, **options}


def to_float8(call: dict[str, Any], **options: Any) -> dict[str, Any]:
    out = torch.empty_like(call["out"], dtype=torch.float8_e4m3fn)
    return {**call, "out": out, "output_scale": torch.tensor(0.25, device=out.device), **options}


CALLS: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "paged_attention": paged_attention,
    "paged_attention with every rule": lambda device: with_every_rule(paged_attention, device, **BATCH_RULES),
    "paged_attention of shared keys": lambda device: paged_attention(
        device, key_unit=2, selection_unit=2, selected=torch.tensor([[[0, 1]] * 3 + [[0, -1]] * 3]).int()
    ),
    "paged_attention batch-invariant": lambda device: {**paged_attention(device), "batch_invariant": True},
    "paged_attention of int8": lambda device: paged_attention(device, **INT8_CACHE),
    "paged_attention of int8 with inline scales": lambda device: paged_attention(device, **INLINE_CACHE),
    "paged_attention of float8 queries": lambda device: paged_attention(
        device, **FLOAT8_CACHE, q_scale=torch.tensor([0.5, 2.0])
    ),
    "paged_attention of float8 to float8": lambda device: paged_attention(
        device, **FLOAT8_CACHE, output_scale=torch.tensor(0.25)
    ),
    "varlen_attention": varlen_attention,
    "varlen_attention with every rule": lambda device: with_every_rule(varlen_attention, device),
    "varlen_attention to float8": lambda device: varlen_attention(device, output_scale=torch.tensor([0.25])),
    "write_kv_cache": write_kv_cache,
    "write_kv_cache of int8": lambda device: write_kv_cache(device, **INT8_CACHE),
    "write_kv_cache of int8 with inline scales": lambda device: write_kv_cache(device, **INLINE_CACHE),
    "write_kv_cache of float8": lambda device: write_kv_cache(device, **FLOAT8_CACHE),
    "rope_and_write_kv_cache": lambda device: rope_and_write_kv_cache(device, is_neox=True),
    "rope_and_write_kv_cache of int8": lambda device: rope_and_write_kv_cache(device, is_neox=False, **INT8_CACHE),
    "rope_and_write_kv_cache of float8": lambda device: rope_and_write_kv_cache(device, is_neox=True, **FLOAT8_CACHE),
    "paged_attention of a latent cache": latent_attention,
    "varlen_attention with V of another width": narrow_attention,
    "write_latent_cache": write_latent_cache,
    "write_latent_cache of float8": lambda device: write_latent_cache(device, k_scale=torch.ones(1, device=device)),
    **{
        f"write_latent_cache of {layout}": lambda device, layout=layout: write_scaled_latent_cache(device, layout)
        for layout in LATENT_FORMATS
    },
    "merge_attn_states": merge_attn_states,
    "merge_attn_states with an lse": lambda device: merge_attn_states(device, has_lse=True),
    "merge_attn_states to float8": lambda device: to_float8(merge_attn_states(device), prefill_tokens_with_context=4),
    "merge_attn_parts": merge_attn_parts,
    "merge_attn_parts to float8": lambda device: to_float8(merge_attn_parts(device)),
    "merge_attn_parts of base 2": lambda device: merge_attn_parts(device, lse_base="2"),
    "write_index_cache": write_index_cache,
    "write_index_cache of float8": lambda device: write_index_cache(
        device, is_float8=True, scale_format="ue8m0", largest=224.0
    ),
    "index_logits": index_logits,
    "index_logits of float8": lambda device: index_logits(device, is_float8=True),
    "index_logits of units": lambda device: index_logits(device, num_selections=2, selection_unit=4, key_unit=1, score="max"),
    "select": select,
    "select units": lambda device: select(device, selection_unit=4, key_unit=4, first_units=1, last_units=1),
}
IN_EACH_RUN = {name for name in CALLS if " " not in name or "rule" in name}
"""One call of each op, and those with every rule: torch traces each call for half a second."""


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().flatten().view(torch.uint8)

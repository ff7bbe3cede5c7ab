"""What a function of AITER does not do: one sentence each, before it is called."""

import torch
from attn_contract import AttentionType, Batch, Layer, UnsupportedError
from attn_contract.capabilities import Values

Limit = tuple[bool, str, str]
"""Whether a call asks for it, what it is, and why it is not served."""

NO_SUCH_MASK = "it has no such mask"
NO_ARGUMENT = "it has no argument for it"


def refuse(function: str, *limits: Limit, instead: str = "TRITON_ATTN") -> None:
    """Raise for the first that applies.

    Raises:
        UnsupportedError: it names the function, the feature, the reason and who serves it.
    """
    for applies, feature, reason in limits:
        if applies:
            raise UnsupportedError(f"AITER's {function}", feature, reason, instead)


def size(name: str, value: int, values: Values) -> Limit:
    """That a size is none of those that a kernel takes."""
    return value not in values, f"{name} {value}", f"{values.why} (it takes {values})"


def dtype(given: torch.dtype) -> Limit:
    return given == torch.float32, "float32", "its dots take 16 bits, or round float32 to TF32 or XF32"


def one_token(layer: Layer, batch: Batch) -> tuple[Limit, ...]:
    """That the batch is anything but one query token of each request, at its last key."""
    alone = batch.max_query_len <= 1 and batch.num_actual_tokens == batch.num_requests
    return (
        (
            layer.attn_type is not AttentionType.DECODER,
            f"{layer.attn_type} attention",
            "it takes the last key for the query's own",
        ),
        (not alone, "more or fewer than one query token per request", "it takes row r of q for request r's query"),
    )


def scales(layer: Layer) -> tuple[Limit, ...]:
    """That the cache is quantized in another way than float8 with one scale of K and one of V."""
    fixed = [scale for scale in (layer.k_scale, layer.v_scale) if scale is not None]
    return (
        (layer.kv_cache_dtype == torch.int8, "an int8 cache", "it reads float8 only"),
        (layer.k_scale_cache is not None, "a scale per token", "it has one k_scale and one v_scale"),
        (any(scale.numel() > 1 for scale in fixed), "a scale per head", "it has one k_scale and one v_scale"),
    )

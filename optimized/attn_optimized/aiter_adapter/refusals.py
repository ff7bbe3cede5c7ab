"""Limits of AITER's functions, checked before they are called: one sentence each.

Each adapter names the rules, dtypes, caches and outputs that its function serves. Whatever it does not name is refused.
"""

from collections.abc import Collection, Mapping

import torch
from attn_contract import AttentionType, Batch, Layer, No, UnsupportedError
from attn_contract.arguments import named
from attn_contract.attention_config import Scales, scales_of
from attn_contract.capabilities import NOT_DECLARED, Answer, Values
from attn_contract.rules import active_rules, label_of

Limit = tuple[bool, str, str]
"""Whether the limit applies to a call, the feature, and the reason why it is not supported."""

NO_SUCH_MASK = "it has no such mask"
NO_ARGUMENT = "it has no argument for it"


def refuse(function: str, *limits: Limit, instead: str = "TRITON_ATTN") -> None:
    """Raise an error for the first limit that applies.

    Raises:
        UnsupportedError: it names the function, the feature, the reason and who serves it.
    """
    for applies, feature, reason in limits:
        if applies:
            raise UnsupportedError(f"AITER's {function}", feature, reason, instead)


def size(name: str, value: int, values: Values) -> Limit:
    """The limit that a kernel does not take a size."""
    return value not in values, f"{name} {value}", f"{values.why} (it takes {values})"


def rules(answers: Mapping[str, Answer], *holders: Layer | Batch) -> tuple[Limit, ...]:
    """A limit for each rule of a layer or a step for which a function's answer is not YES."""
    found = {name: answers.get(name, NOT_DECLARED) for name in active_rules(*holders)}
    return tuple((isinstance(answer, No), label_of(name), str(answer)) for name, answer in found.items())


def dtype(given: torch.dtype) -> Limit:
    reason = "its dots take 16 bits, or round float32 to TF32 or XF32"
    return given not in (torch.float16, torch.bfloat16), named(given), reason


def one_token(layer: Layer, batch: Batch, *, values: bool) -> tuple[Limit, ...]:
    """The limits of a decode: one query token of each request, at its last key.

    A request without a query and a row of padding look like one query token to the host. Only the values on the device differ.
    """
    alone = batch.max_query_len <= 1 and batch.num_actual_tokens == batch.num_requests
    if values:
        alone = alone and bool((batch.query_start_loc.diff() == 1).all())
    return (
        (
            layer.attn_type is not AttentionType.DECODER,
            f"{layer.attn_type} attention",
            "it takes the last key for the query's own",
        ),
        (not alone, "more or fewer than one query token per request", "it takes row r of q for request r's query"),
    )


def cache(layer: Layer, served: Collection[Scales | None], why: str) -> Limit:
    """The limit that a function does not read the cache's kind of scales."""
    kind = scales_of(layer)
    return kind not in served, f"a cache of {named(layer.kv_cache_dtype)} with scales per {kind}", why

"""The KV cache of a quantization config."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import check_type, shown
from attn_parity.model_config.fields import printable

_SCALES = {None: "tensor", "tensor": "tensor", "attn_head": "head"}
"""The kind of scales by `strategy`."""
_INERT = {"actorder", "block_structure", "group_size", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"}
_SOUNDS_LIKE_THE_CACHE = ("kv", "cache", "attn", "attention", "softmax")
_KNOWN = ("kv_cache_scheme", "kv_cache_quant_algo")
_NO_CACHE = {"kv_cache_group": [], "kv_cache_quant_config": {}, "kv_cache_post_rope": False, "min_kv_scale": 0}
"""The value that AMD's Quark writes where it does not quantize the cache."""


def kv_cache(quantization: Any, float8: str) -> dict[str, str]:
    """`kv_cache_dtype` and `scales` of a layer, as in a model file; empty if the cache is not quantized.

    Args:
        quantization: the value of `quantization_config`.
        float8: the name of the architecture's own float8 type.

    Raises:
        ContractError: a cache of another kind, or a field about the cache that is not known.
    """
    if quantization is None:
        return {}
    check_type("quantization_config", quantization, Mapping, "an object of fields, or null")
    for name, value in _about_the_cache(quantization):
        expected = "null: of the cache, only kv_cache_scheme and kv_cache_quant_algo are known"
        raise ContractError(name, shown(value), expected)
    algorithm = quantization.get("kv_cache_quant_algo")
    if algorithm not in (None, "FP8"):
        raise ContractError("quantization_config.kv_cache_quant_algo", shown(algorithm), "FP8 or null")
    scheme = quantization.get("kv_cache_scheme")
    if scheme is None:
        return {} if algorithm is None else {"kv_cache_dtype": float8, "scales": "tensor"}
    return {"kv_cache_dtype": float8, "scales": _scales(scheme)}


def _about_the_cache(quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of fields about the cache, at any depth, whose meaning is not known. A name of modules is no field."""
    objects: list[tuple[str, Mapping[str, Any]]] = [("quantization_config", quantization)]
    for outer, fields in objects:
        for name, value in fields.items():
            if value is None or (name in _NO_CACHE and value == _NO_CACHE[name]) or (name in _KNOWN and fields is quantization):
                continue
            path = f"{outer}.{printable(name)}"
            if any(word in name for word in _SOUNDS_LIKE_THE_CACHE) and not re.search("[.*:]", name):
                yield path, value
            elif isinstance(value, Mapping):
                objects.append((path, value))


def _scales(scheme: Any) -> str:
    """The kind of scales of a `kv_cache_scheme`."""
    name = "quantization_config.kv_cache_scheme"
    check_type(name, scheme, Mapping, "an object of fields, or null")
    expected: dict[str, tuple[Any, ...]] = {
        "num_bits": (8,),
        "type": ("float",),
        "dynamic": (False, None),
        "symmetric": (True, None),
        "strategy": tuple(_SCALES),
    }
    for field, allowed in expected.items():
        if not any(scheme.get(field) == one and type(scheme.get(field)) is type(one) for one in allowed):
            raise ContractError(f"{name}.{field}", shown(scheme.get(field)), " or ".join(map(shown, allowed)))
    for field, value in scheme.items():
        if field not in expected and field not in _INERT and value is not None:
            raise ContractError(f"{name}.{printable(field)}", shown(value), "null: it is not known what it asks for")
    return _SCALES[scheme.get("strategy")]

"""The layers of a model config as an engine runs them on one device: its dtypes, its blocks, its share of the heads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attn_contract import RULES, AttentionType, ContractError
from attn_parity import model_file
from attn_parity.model_config import EXPECTED_DTYPE, Group, ModelConfig
from attn_parity.model_config.kv_cache import kv_cache
from attn_parity.model_file import ModelFile


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Choices of an engine, which a config does not have.

    Args:
        float8: the name of the architecture's own float8 type, in which a checkpoint's quantized cache is held.
        tensor_parallel: devices that share the heads.
        fields: of every layer that can have them, as in a model file: dtypes, the block size and rules of steps.
    """

    float8: str
    tensor_parallel: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)


def deployed(config: ModelConfig, engine: Engine) -> ModelFile:
    """The model file of a config. Its layers are the config's groups, whose caches share an allocation.

    Raises:
        ContractError: the dtype is not given, or that number of devices cannot share the heads.
    """
    dtype = engine.fields.get("dtype", config.dtype)
    if dtype is None:
        raise ContractError("dtype", "nothing", EXPECTED_DTYPE)
    cache = kv_cache(config.quantization, engine.float8)
    # vLLM's cache has blocks of one size, which hold whole units of a selection
    block_size = math.lcm(16, *(group.rules.get("selection_unit", 1) for group in config.groups.values()))
    asked = {"block_size": block_size, **cache, **engine.fields, "dtype": dtype}
    layers = {name: _fields(group, asked, engine) for name, group in config.groups.items()}
    _widen_blocks(layers)
    reads = (name for name, group in config.groups.items() if group.attn_type.reads_cache)
    cached = tuple(name for name in reads if name not in config.kv_sharing)
    return ModelFile(
        schema=model_file.SCHEMA,
        model=config.name,
        layers=layers,
        allocations=(cached,) if len(cached) > 1 else (),
        kv_sharing=config.kv_sharing,
    )


_OF_CACHES = ("block_size", "layout", "kv_cache_dtype", "scales")


def _fields(group: Group, asked: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "attn_type": str(group.attn_type),
        "num_heads": _share("query heads", group.num_heads, engine.tensor_parallel),
        "num_kv_heads": _kv_share(group.num_kv_heads, engine.tensor_parallel),
        "head_size": group.head_size,
        **group.rules,
    }
    if group.layout is not None:
        fields["layout"] = str(group.layout)
    if group.top_k is not None:
        fields["top_k"] = group.top_k
    return fields | {name: value for name, value in asked.items() if _can_have(group.attn_type, name)}


def _widen_blocks(layers: Mapping[str, dict[str, Any]]) -> None:
    """Give layers of smaller rows more slots in a block, so that all blocks have the same bytes, as vLLM does."""
    cached = [(fields, fields["num_kv_heads"] * fields["head_size"]) for fields in layers.values() if "block_size" in fields]
    most = max((row for _, row in cached), default=1)
    for fields, row in cached:
        if not most % row:
            fields["block_size"] *= most // row


def _can_have(attn_type: AttentionType, name: str) -> bool:
    """True if a layer of a type can have a field that an engine gives to all layers."""
    if name in _OF_CACHES:
        return attn_type.reads_cache
    return name not in RULES or attn_type in RULES[name].attn_types


def _share(what: str, heads: int, devices: int) -> int:
    if heads % devices:
        raise ContractError("--tensor-parallel", devices, f"a divisor of the number of {what} ({heads})")
    return heads // devices


def _kv_share(heads: int, devices: int) -> int:
    """KV heads of a device: where there are more devices than KV heads, several have the same head."""
    if devices > heads and devices % heads == 0:
        return 1
    return _share("KV heads", heads, devices)

"""A model config of Hugging Face, such as config.json, as the layers that `attn-parity select` asks about.

They are read off the model that transformers builds of the config (`built`, `from_transformers`). `fields` refuses or lists the
fields that its code does not read.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import check_type, shown
from attn_parity.model_config.fields import check_said_twice, printable
from attn_parity.model_config.group import Group

_FIELDS = ("architectures", "model_type", "hidden_size", "num_attention_heads", "num_hidden_layers", "text_config")

EXPECTED_DTYPE = "float32, float16 or bfloat16: the config does not say it, so give --dtype"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's attention, as its config describes it.

    Args:
        model_type: the type of the part that has the KV cache.
        architecture: the name of the model's class; the model type if the config does not say it.
        groups: layers that attend alike, by a name.
        dtype: the dtype of the weights; None if the config does not say it.
        quantization: the config's `quantization_config`.
        filled: sizes that the config leaves out; by name.
        filled_by: who says so.
        left_out: names of parts of the config that have no KV cache, and were not looked at.
        unknown: names of fields that are not known, and do not sound like attention.
        kv_sharing: by the name of a group without keys of its own, the group whose cache it reads.
        not_answered: numbers of layers that are in no group, by the reason.
    """

    model_type: str
    architecture: str
    groups: Mapping[str, Group]
    dtype: str | None
    quantization: Any
    filled: Mapping[str, Any]
    filled_by: str
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    kv_sharing: Mapping[str, str] = field(default_factory=dict)
    not_answered: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.architecture} ({self.model_type})"


def is_model_config(content: object) -> bool:
    """True if JSON is a model config and no model file of this project."""
    return isinstance(content, dict) and "schema" not in content and any(name in content for name in _FIELDS)


def model_config(content: Mapping[str, Any], *, needs_dtype: bool = False) -> ModelConfig:
    """A model's attention, read off the model that transformers builds of its config.

    Args:
        needs_dtype: True if nothing else says the dtype: it is asked for before a model is built, which takes long.

    Raises:
        ContractError: a field is unknown, of another type, or contradicts another one.
        ModuleNotFoundError: transformers is missing.
        UnsupportedError: the model asks for what is out of this project's scope, or cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of names of fields that were renamed
        return _read(content, needs_dtype)


def _read(content: Mapping[str, Any], needs_dtype: bool) -> ModelConfig:
    from attn_parity.model_config import from_transformers

    config = from_transformers.config_of(content)
    text = config.get_text_config(decoder=True)
    text_fields = content
    if text is not config:
        text_fields = next((value for name, value in content.items() if vars(config).get(name) is text), {})
        check_type("text_config", text_fields, dict, "an object: the fields of the text part")
    names = content.get("architectures")
    named = from_transformers.class_of(names, config)
    dtype = _dtype(text_fields, content)
    if dtype is None and needs_dtype:
        raise ContractError("dtype", "nothing", EXPECTED_DTYPE)
    unread = from_transformers.check_fields(content, config)
    groups, kv_sharing, not_answered = from_transformers.layers_of(config, named)
    check_said_twice(text_fields, groups, from_transformers.fields_read(text))
    filled, by = from_transformers.filled(text_fields, text)
    return ModelConfig(
        model_type=text.model_type,
        architecture=config.model_type if names is None else names[0],
        groups=groups,
        dtype=dtype,
        quantization=content.get("quantization_config", text_fields.get("quantization_config")),
        filled=filled,
        filled_by=by,
        left_out=tuple(map(printable, filter(from_transformers.is_another_part, content))),
        unknown=tuple(map(printable, dict.fromkeys(unread))),
        kv_sharing=kv_sharing,
        not_answered=not_answered,
    )


def _dtype(*parts: Mapping[str, Any]) -> str | None:
    """The dtype that a config says, or the part of it with the text."""
    said: dict[str, str] = {}
    for fields in parts:
        for name in ("dtype", "torch_dtype"):
            if (value := fields.get(name)) is None:
                continue
            if value not in ("float32", "float16", "bfloat16"):
                raise ContractError(name, shown(value), "float32, float16 or bfloat16")
            said[name] = value
            if value != (first := next(iter(said.values()))):
                raise ContractError(name, shown(value), f"{shown(first)}, as {next(iter(said))} says")
    return next(iter(said.values()), None)


__all__ = ["Group", "ModelConfig", "is_model_config", "model_config"]

"""A model config of Hugging Face, such as config.json, as the layers that `attn-parity select` asks about.

`model_types` is a table of types that are answered without transformers, and `meaning` says which values a field may have.
`unknown` refuses or lists the rest, `completed` fills in what a file leaves out, and `groups` sorts the layers. Any other type
is answered from the model that transformers builds of it (`from_transformers`, `built`).
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from attn_contract import ContractError
from attn_contract.arguments import check_int, check_type, shown
from attn_contract.scope import OUT_OF_SCOPE, refuse_out_of_scope
from attn_parity.model_config.completed import filled
from attn_parity.model_config.groups import Group, groups
from attn_parity.model_config.meaning import Meaning, Said, read
from attn_parity.model_config.model_types import LATENT, MODEL_TYPES, OUT_OF_SCOPE_TYPES, WRAPPERS, ModelType
from attn_parity.model_config.unknown import printable, unknown

_FIELDS = ("architectures", "model_type", "hidden_size", "num_attention_heads", "num_hidden_layers", "text_config")
_SHOWN = (Meaning.DTYPE, Meaning.LAYER_TYPES)
"""Meanings that are filled in silently: the engine's dtype counts, and `groups` shows the kinds of layers."""
_DTYPE = {"dtype": Meaning.DTYPE, "torch_dtype": Meaning.DTYPE}
_HEADS_OF_DECODERS = (
    *("Model", "LMHeadModel", "DoubleHeadsModel", "ForCausalLM", "ForConditionalGeneration", "ForSequenceClassification"),
    *("ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForPreTraining", "ForMultipleChoice"),
    *("ForNextSentencePrediction", "TextModel"),
)
_HEADS_OF_ENCODER_DECODERS = ("Model", "ForConditionalGeneration", "ForSequenceClassification", "ForQuestionAnswering")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's attention, as its config describes it.

    Args:
        model_type: the type of the part that has the KV cache.
        architecture: the name of the model's class; the model type if the config does not say it.
        groups: layers that attend alike, by a name.
        dtype: of the weights; None if the config does not say it.
        quantization: the config's `quantization_config`.
        filled: values of fields that the config leaves out, and matter; by name.
        filled_by: who says so.
        left_out: names of parts of the config that have no KV cache, and were not looked at.
        unknown: names of fields that are not known, and do not sound like attention.
        kv_sharing: by the name of a group without keys of its own, the group whose cache it reads.
        not_answered: numbers of layers that are in no group, by the reason.
        in_part: an answer of some layers is wanted where no backend serves the others.
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
    in_part: bool = False

    @property
    def name(self) -> str:
        return f"{self.architecture} ({self.model_type})"

    def as_json(self) -> dict[str, Any]:
        """The fields of a model config in the result of `attn-parity select`."""
        return {
            "model_type": self.model_type,
            "groups": {name: dataclasses.asdict(group) for name, group in self.groups.items()},
            "filled": {"by": self.filled_by, "fields": dict(self.filled)},
            "left_out": self.left_out,
            "unknown": self.unknown,
            "not_answered": dict(self.not_answered),
        }


def is_model_config(content: object) -> bool:
    """True if JSON is a model config and no model file of this project."""
    return isinstance(content, dict) and "schema" not in content and any(name in content for name in _FIELDS)


def model_config(content: Mapping[str, Any]) -> ModelConfig:
    """A model's attention, read from its config.

    Raises:
        ContractError: a field is unknown, missing, of another type, or contradicts another one.
        UnsupportedError: the model asks for what is out of this project's scope.
    """
    known = (*MODEL_TYPES, *WRAPPERS, *OUT_OF_SCOPE_TYPES)
    if not _is_of_the_table(content, known):
        return _built(content, known)
    outer = content["model_type"]
    text, model_type = content, outer
    if wrapper := WRAPPERS.get(outer):
        check_type("text_config", content.get("text_config"), dict, f"an object: the fields of the text part of {outer}")
        text = content["text_config"]
        inner = text.get("model_type", wrapper.text)
        model_type = _model_type("text_config.model_type", inner, (*MODEL_TYPES, *OUT_OF_SCOPE_TYPES))
    _refuse_out_of_scope({**content, **text}, model_type)
    record = MODEL_TYPES[model_type]
    architecture = _architecture(content.get("architectures"), record.class_of or outer, record)
    left_out = tuple(name for name in content if name.endswith("config") and ("vision" in name or "audio" in name))
    own = {name: value for name, value in content.items() if name not in left_out}
    unread: tuple[str, ...] = ()
    if wrapper:
        around = ModelType(fields=_DTYPE, inert=("text_config", *(wrapper.image_tokens or ())[:1]))
        unread = unknown(own, outer, around)
    fields = _flat(text if wrapper else own, record)
    unread += unknown(fields, model_type, record)
    read(record.fields, fields)  # so that transformers is given no value that cannot be
    completed = filled(fields, model_type, record)
    said = read(record.fields, {**completed.fields, **fields})
    by_name = groups(said, record)
    completed.check()
    if wrapper and wrapper.image_tokens:
        field, default = wrapper.image_tokens
        tokens = content.get(field, default)
        check_int(field, tokens, minimum=1)
        by_name = {name: group.with_ranges(tokens) for name, group in by_name.items()}
    return ModelConfig(
        model_type=model_type,
        architecture=architecture,
        groups=by_name,
        dtype=_dtype(said, read(_DTYPE, content)),
        quantization=content.get("quantization_config", text.get("quantization_config")),
        filled={name: value for name, value in completed.fields.items() if record.fields[name] not in _SHOWN},
        filled_by=completed.by,
        left_out=tuple(map(printable, left_out)),
        unknown=tuple(map(printable, dict.fromkeys(unread))),
    )


def _is_of_the_table(content: Mapping[str, Any], known: Collection[str]) -> bool:
    """True if the types of a model and of its text part are in the table."""
    outer = content.get("model_type")
    text = content.get("text_config")
    inner = text.get("model_type", outer) if isinstance(outer, str) and outer in WRAPPERS and isinstance(text, dict) else outer
    return all(not isinstance(name, str) or name in known for name in (outer, inner)) and isinstance(outer, str)


def _built(content: Mapping[str, Any], known: Collection[str]) -> ModelConfig:
    """A model of a type that is not in the table, as transformers builds it."""
    from attn_parity.model_config import from_transformers

    config = from_transformers.config_of(content)
    if config is None:
        _model_type("model_type", content.get("model_type"), known)
    assert config is not None, "another type is refused"
    architecture = from_transformers.check_class(content.get("architectures"), config)
    text = content.get("text_config") or {}
    unread = from_transformers.check_fields(content, config)
    layers, sharing, not_answered = from_transformers.layers_of(config)
    return ModelConfig(
        model_type=config.get_text_config(decoder=True).model_type,
        architecture=architecture,
        groups=layers,
        dtype=_dtype(read(_DTYPE, text), read(_DTYPE, content)),
        quantization=content.get("quantization_config", text.get("quantization_config")),
        filled={},
        filled_by="",
        left_out=tuple(
            printable(name) for name in content if name.endswith("config") and ("vision" in name or "audio" in name)
        ),
        unknown=tuple(map(printable, dict.fromkeys(unread))),
        kv_sharing=sharing,
        not_answered=not_answered,
        in_part=True,
    )


def _dtype(said: Said, around: Said) -> str | None:
    """The dtype that a config says, or the part of it with the text."""
    of_text, of_all = said(Meaning.DTYPE), around(Meaning.DTYPE)
    if of_text and of_all and of_text != of_all:
        name = f"text_config.{said.names[Meaning.DTYPE]}"
        raise ContractError(name, shown(of_text), f"{shown(of_all)}, as the config around it says")
    return of_text or of_all


def _model_type(argument: str, name: object, known: Collection[str]) -> str:
    if not isinstance(name, str) or name not in known:
        near = ", ".join(get_close_matches(str(name)[:100], known, n=3, cutoff=0))
        got = "nothing" if name is None else shown(name)
        other = "of any other model, select takes a model file, which says what its layers ask for (docs/guide/models.md)"
        raise ContractError(argument, got, f"one whose attention is known, such as {near}; {other}")
    return name


def _refuse_out_of_scope(fields: Mapping[str, Any], model_type: str) -> None:
    """Refuse all that is out of scope at once, whether a field or the model type asks for it."""
    # a model type that is not served is out of scope by its own reasons, and its latent cache is none
    served = MODEL_TYPES.get(model_type, LATENT)
    known = {*served.fields, *served.inert}
    asked = [name for name in OUT_OF_SCOPE if name not in known and not any(fields.get(name) is no for no in (None, False))]
    refuse_out_of_scope(dict.fromkeys((*OUT_OF_SCOPE_TYPES.get(model_type, ()), *asked)))


def _architecture(names: Any, model_type: str, record: ModelType) -> str:
    """The class of the model, which must be one of transformers: another class may attend in another way."""
    if names is None:
        return model_type
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ContractError("architectures", shown(names), "a list of one name")
    heads = _HEADS_OF_ENCODER_DECODERS if record.kind == "encoder_decoder" else _HEADS_OF_DECODERS
    stem = re.sub("[_-]", "", model_type.removesuffix("_text"))
    if names[0].lower() not in {f"{stem}{head}".lower() for head in heads}:
        expected = f"{stem} and one of {', '.join(heads)}: a class of another name may attend in another way"
        raise ContractError("architectures", shown(names[0]), expected)
    return names[0]


def _flat(fields: Mapping[str, Any], record: ModelType) -> dict[str, Any]:
    """The fields, with those of an object that the record knows as `object.field`."""
    objects = {name.partition(".")[0] for name in (*record.fields, *record.fixed) if "." in name}
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if name in objects and value is not None:
            check_type(name, value, dict, "an object of fields")
            flat |= {f"{name}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            flat[name] = value
    return flat


__all__ = [
    "MODEL_TYPES",
    "OUT_OF_SCOPE_TYPES",
    "WRAPPERS",
    "Group",
    "ModelConfig",
    "is_model_config",
    "model_config",
]

"""A model file: the layers of a model as JSON, for `attn-parity select`."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import torch
from attn_contract import RULES, AttentionConfig, AttentionType, ContractError, Layout
from attn_contract.arguments import shown as short
from attn_contract.scope import refuse_out_of_scope
from attn_fuzz.cases.poison import DTYPES

SCHEMA = "attn-parity.model/1"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The fields of a model file.

    Attributes:
        schema: names this format.
        model: the model's name.
        source: the source of its numbers.
        layers: by a layer's name, the fields of AttentionConfig and the rules that the layer has; one entry may stand for all
            layers that are alike.
        allocations: for each allocation, the names of the layers that share it.
        kv_sharing: by the name of a layer that has no keys of its own, the layer whose cache it reads.
    """

    schema: str
    model: str
    source: str = ""
    layers: Mapping[str, Any]
    allocations: tuple[tuple[str, ...], ...] = ()
    kv_sharing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ContractError("schema", short(self.schema), repr(SCHEMA))
        for field, name in (("model", self.model), ("source", self.source)):
            _check(field, name, isinstance(name, str), "a string")
        _check("layers", self.layers, isinstance(self.layers, dict) and self.layers, "an object with at least one layer")
        _check("kv_sharing", self.kv_sharing, isinstance(self.kv_sharing, dict), "an object of names")
        for layer in self.kv_sharing.values():
            _check("kv_sharing", layer, isinstance(layer, str), "the name of a layer")
        _check("allocations", self.allocations, isinstance(self.allocations, tuple), "a list of lists of names")
        for group in self.allocations:
            are_names = isinstance(group, tuple) and all(isinstance(layer, str) for layer in group)
            _check("allocations", group, are_names, "a list of names of layers")
        for name in (self.model, *self.layers):
            _check("a name", name, name.isprintable(), "one that can be printed", shown=ascii)


def model_file(content: object) -> ModelFile:
    """The model file that JSON holds.

    Raises:
        ContractError: naming the field that is wrong.
    """
    return ModelFile(**_checked_fields(_with_tuples(content), ModelFile))


def config(layer: str, fields: object) -> AttentionConfig:
    """The AttentionConfig of a layer, from fields as JSON has them: dtypes, layouts and attention types are names.

    Raises:
        ContractError: a field is unknown, missing, of another type, or contradicts another one; it names the layer, too.
        UnsupportedError: a field asks for what is out of this project's scope.
    """
    try:
        if isinstance(fields, dict):
            refuse_out_of_scope(fields)
        known = _checked_fields(fields, AttentionConfig, also=RULES)
        rules = {name: value for name, value in known.items() if name in RULES}
        types = get_type_hints(AttentionConfig)
        plain = {name: _read(name, value, types[name]) for name, value in known.items() if name not in RULES}
        return AttentionConfig(**plain, rules=rules)
    except ContractError as error:
        raise ContractError(f"{layer}: {error.argument}", error.got, error.expected) from error


def _read(name: str, value: Any, kind: Any) -> Any:
    """A field's value, where its type is one that JSON writes as a name; other values are checked by AttentionConfig."""
    kinds = get_args(kind) or (kind,)
    if value is None:
        return None
    if torch.dtype in kinds:
        _check(name, value, isinstance(value, str) and value in DTYPES, f"one of {', '.join(DTYPES)}")
        return DTYPES[value]
    for enum in (AttentionType, Layout):
        if enum in kinds:
            _check(name, value, isinstance(value, str) and value in list(enum), f"one of {', '.join(enum)}")
            return enum(value)
    return value


def _checked_fields(content: object, record: type, also: Collection[str] = ()) -> dict[str, Any]:
    """The content, an object with every field that a dataclass must have, and no others than its fields and those in `also`."""
    if not isinstance(content, dict):
        raise ContractError("content", short(content), "an object of fields")
    fields = [field for field in dataclasses.fields(record) if field.name != "rules"]
    names = [*(field.name for field in fields), *also]
    for name in content:
        _check("field", name, name in names, f"one of {', '.join(names)}")
    for field in fields:
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in content and not has_default:
            raise ContractError(field.name, "nothing", "a value: this field has no default")
    return content


def _check(name: str, got: object, is_right: object, expected: str, shown: Callable[[object], str] = short) -> None:
    if not is_right:
        raise ContractError(name, shown(got), expected)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

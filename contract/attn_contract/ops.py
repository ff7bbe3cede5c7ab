"""Schemas of the torch ops `attn_parity::*`: one op, two devices.

`attn_reference` registers the CPU implementations, `attn_optimized` those of CUDA and HIP. A model that is moved to the CPU
runs the reference without a change of its code. Every op writes into tensors that it is given, and returns nothing.

An op takes the fields of Layer and Batch as arguments of the same names. Its schema is the only list of them: options are
written by the rules' records, and a call comes back as values by the schema's names.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import StrEnum
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch

from attn_contract.arguments import check_dims, check_int
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.indexer import Indexer, IndexLayout, IndexScore, ScaleFormat
from attn_contract.layer import FLOAT_DTYPES, Layer
from attn_contract.layouts import Layout
from attn_contract.rules import Rule, held_rules

_SCHEMA_TYPES = {
    tuple[int, int]: "int[]",
    int: "int",
    int | None: "int?",
    float | None: "float?",
    bool: "bool",
    torch.Tensor | None: "Tensor?",
}


def option(rule: Rule) -> str:
    """A rule as an optional argument of a schema, such as `int? chunked_local=None`.

    Raises:
        TypeError: no schema has values of the rule's type.
    """
    if rule.type not in _SCHEMA_TYPES:
        raise TypeError(f"rule {rule.name}: an op takes no {rule.type}, but one of {', '.join(map(str, _SCHEMA_TYPES))}")
    off = list(rule.off) if isinstance(rule.off, tuple) else rule.off
    return f"{_SCHEMA_TYPES[rule.type]} {rule.name}={off}"


def _options(rules: Iterable[Rule]) -> str:
    return ", ".join(map(option, rules))


_INDEXER_FIELDS = tuple(field.name for field in fields(Indexer))
_RULES = (*held_rules(Layer).values(), *held_rules(Batch).values())
_ENCODER_RULES = tuple(rule for rule in _RULES if AttentionType.ENCODER in rule.attn_types)
# A SymInt may change from step to step without a new compilation; an int would be a constant of the compiled graph.
_STEP = "Tensor query_start_loc, Tensor seq_lens, SymInt max_query_len, SymInt max_seq_len, SymInt num_actual_tokens"
_OUTPUTS = "Tensor(a!) out, Tensor(b!)? lse"
_SCALES = "Tensor? k_scale=None, Tensor? v_scale=None"
_SCALE_CACHES = "Tensor? k_scale_cache=None, Tensor? v_scale_cache=None"
_WRITTEN_SCALE_CACHES = "Tensor(c!)? k_scale_cache=None, Tensor(d!)? v_scale_cache=None"
_OUTPUT_SCALE = "Tensor? output_scale=None"
_INDEX_CACHE = 'str layout="PLAIN", ScalarType? cache_dtype=None'
_UNITS = "int selection_unit=1, int key_unit=1"
_ATTENTION_OPTIONS = f"{_OUTPUT_SCALE}, bool batch_invariant=False"

_SCHEMAS = {
    "paged_attention": (
        f"Tensor q, Tensor kv_cache, str layout, int num_kv_heads, float scale, str attn_type, {_STEP}, Tensor block_table, "
        f"bool? causal, Tensor? causal_per_request, {_OUTPUTS}, *, Tensor? selected=None, {_options(_RULES)}, {_SCALES}, "
        f"{_SCALE_CACHES}, {_ATTENTION_OPTIONS}"
    ),
    "varlen_attention": (
        f"Tensor q, Tensor k, Tensor v, float scale, str attn_type, {_STEP}, {_OUTPUTS}, *, {_options(_ENCODER_RULES)}, "
        f"{_ATTENTION_OPTIONS}"
    ),
    "write_kv_cache": (
        f"Tensor k, Tensor v, Tensor(a!) kv_cache, str layout, Tensor slot_mapping, *, {_SCALES}, {_WRITTEN_SCALE_CACHES}"
    ),
    "rope_and_write_kv_cache": (
        "Tensor(a!) q, Tensor k, Tensor v, Tensor positions, Tensor cos_sin_cache, bool is_neox, Tensor(b!) kv_cache, "
        f"str layout, Tensor slot_mapping, *, {_SCALES}, {_WRITTEN_SCALE_CACHES}"
    ),
    "write_latent_cache": (
        'Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache, Tensor slot_mapping, *, str layout="LATENT", Tensor? k_scale=None'
    ),
    "merge_attn_states": (
        f"Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b, {_OUTPUTS}, *, SymInt? prefill_tokens_with_context=None, "
        f"{_OUTPUT_SCALE}"
    ),
    "merge_attn_parts": f'Tensor outs, Tensor lses, {_OUTPUTS}, *, str lse_base="e", {_OUTPUT_SCALE}',
    "write_index_cache": (
        f'Tensor k, Tensor(a!) index_cache, Tensor slot_mapping, *, {_INDEX_CACHE}, str scale_format="float32", '
        "float? largest=None"
    ),
    "index_logits": (
        f"Tensor q, Tensor? weights, Tensor index_cache, {_STEP}, Tensor block_table, Tensor(a!) out, *, "
        f'int num_selections=1, {_UNITS}, str score="sum_relu", {_INDEX_CACHE}'
    ),
    "select": (f"Tensor logits, int top_k, {_STEP}, Tensor(a!) out, *, {_UNITS}, int first_units=0, int last_units=0"),
}

Given = dict[str, Any]
"""The arguments of one call of an op, by the names of its schema. torch leaves out options that have their default."""


def _named_arguments(op: str, call: Callable[[Given], None]) -> Callable[..., None]:
    """The function that torch calls, with positions as the op's schema has them.

    Raises:
        ContractError: None in place of a tensor, for which torch has an undefined tensor and lets the call pass.
    """

    def function(*values: Any, **options: Any) -> None:
        names, must_be_tensors = _arguments_of(op)
        given = dict(zip(names, values, strict=False)) | options
        for name in must_be_tensors:
            if given[name] is None:
                raise ContractError(name, None, "a tensor")
        call(given)

    return function


@cache
def _arguments_of(op: str) -> tuple[list[str], list[str]]:
    """The names of an op's arguments in their order, and of those that must be tensors."""
    arguments = getattr(torch.ops.attn_parity, op).default._schema.arguments
    return [one.name for one in arguments], [one.name for one in arguments if isinstance(one.type, torch.TensorType)]


def _write_nothing(given: Given) -> None:
    """An op on tensors without memory. torch calls it where any argument is on meta, even if the outputs have memory."""
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    on_meta = [name for name, tensor in tensors.items() if tensor.device.type == "meta"]
    if on_meta and len(on_meta) < len(tensors):
        first = next(name for name in tensors if name not in on_meta)
        raise ContractError(on_meta[0], "a tensor on meta", f"{tensors[first].device}, where {first} is")


_library = torch.library.Library("attn_parity", "DEF")
for _op, _arguments in _SCHEMAS.items():
    _library.define(f"{_op}({_arguments}) -> ()")
    torch.library.register_fake(f"attn_parity::{_op}", _named_arguments(_op, _write_nothing))


def register(implementation: ModuleType, dispatch_key: str) -> None:
    """Make a package's functions the ops of a device.

    Args:
        implementation: has a function of the name of each op with the signature of `attn_reference`, and `batch_invariant` for
            the first two.
        dispatch_key: "CPU", or "CUDA" (HIP's devices dispatch there too).
    """
    attention, merges = (_paged_attention, _varlen_attention), (_merge_attn_states, _merge_attn_parts)
    writes = (_write_kv_cache, _rope_and_write_kv_cache, _write_latent_cache)
    index_layer = (_write_index_cache, _index_logits, _select)
    for call in (*attention, *writes, *merges, *index_layer):
        op = call.__name__.removeprefix("_")
        kernel = _named_arguments(op, partial(call, implementation))
        torch.library.impl(f"attn_parity::{op}", dispatch_key, lib=_library)(kernel)


def _paged_attention(implementation: ModuleType, given: Given) -> None:
    layer, batch = _described(_of_paged_attention, given)
    implementation.paged_attention(given["q"], given["kv_cache"], layer, batch, **_outputs(given))


def _varlen_attention(implementation: ModuleType, given: Given) -> None:
    layer, batch = _described(_of_varlen_attention, given)
    implementation.varlen_attention(given["q"], given["k"], given["v"], layer, batch, **_outputs(given))


def _write_kv_cache(implementation: ModuleType, given: Given) -> None:
    (layer,) = _described(_of_write, given)
    implementation.write_kv_cache(given["k"], given["v"], given["kv_cache"], layer, given["slot_mapping"])


def _rope_and_write_kv_cache(implementation: ModuleType, given: Given) -> None:
    (layer,) = _described(_of_rope_and_write, given)
    tensors = [given[name] for name in ("q", "k", "v", "positions", "cos_sin_cache", "kv_cache")]
    implementation.rope_and_write_kv_cache(*tensors, layer, given["slot_mapping"], is_neox=given["is_neox"])


def _write_latent_cache(implementation: ModuleType, given: Given) -> None:
    (layer,) = _described(_of_latent_write, given)
    implementation.write_latent_cache(given["kv_c"], given["k_pe"], given["kv_cache"], layer, given["slot_mapping"])


def _merge_attn_states(implementation: ModuleType, given: Given) -> None:
    implementation.merge_attn_states(**given)


def _merge_attn_parts(implementation: ModuleType, given: Given) -> None:
    implementation.merge_attn_parts(**given)


def _write_index_cache(implementation: ModuleType, given: Given) -> None:
    check_dims("k", given["k"], ("T_k", "head_size"))
    indexer = _indexer(given, head_size=given["k"].shape[1])
    implementation.write_index_cache(given["k"], given["index_cache"], indexer, given["slot_mapping"])


def _index_logits(implementation: ModuleType, given: Given) -> None:
    check_dims("q", given["q"], ("T", "num_heads", "head_size"))
    _, num_heads, head_size = given["q"].shape
    indexer = _indexer(given, num_heads=num_heads, head_size=head_size)
    (batch,) = _described(_of_index_layer, given)
    implementation.index_logits(given["q"], given["weights"], given["index_cache"], indexer, batch, out=given["out"])


def _select(implementation: ModuleType, given: Given) -> None:
    check_dims("logits", given["logits"], ("num_selections", "T", "units"))
    selections = given["logits"].shape[0]
    indexer = _indexer(given, num_heads=selections, num_selections=selections)
    (batch,) = _described(_of_index_layer, given)
    implementation.select(given["logits"], indexer, batch, out=given["out"])


Describe = Callable[[Given], tuple[Layer | Batch, ...]]
"""From the arguments of a call to its layer and its step, with all checks of both."""


def _described(describe: Describe, given: Given) -> list[Any]:
    """`describe(given)`, with what an earlier call of the same signature has checked.

    An op has no Layer or Batch that its caller made once for all steps. To check both in each call took the host five times as
    long as the call of a function. The first call of a signature is described with tensors on meta, so that nothing but shapes,
    strides and dtypes can count.
    """
    values, tensors = [], []
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            tensors.append((name, value.shape, value.stride(), value.dtype))
        elif isinstance(value, list):  # a schema has no tuples
            values.append((name, tuple(value)))
        elif name != "max_seq_len":  # each step of a decode has another one
            values.append((name, value))
    holders = []
    for described in _checked(describe, tuple(values), tuple(tensors)):
        holder = object.__new__(described.holder)
        own = {field: given[argument] for field, argument in described.tensors}
        vars(holder).update(described.fields, tensors=own, **own)
        holders.append(holder)
    if "max_seq_len" in given:
        check_int("max_seq_len", given["max_seq_len"], minimum=0)
        vars(holders[-1])["max_seq_len"] = given["max_seq_len"]
    return holders


class _Described(NamedTuple):
    """A Layer or a Batch: what all calls of one signature share, and the arguments that its tensors are.

    Attributes:
        fields: values by the names of attributes, also of those that Layer and Batch keep once they were asked for: each call
            has new objects.
        tensors: the names of a field and of the argument.
    """

    holder: type[Layer | Batch]
    fields: Given
    tensors: list[tuple[str, str]]


@lru_cache(maxsize=4096)
def _checked(
    describe: Describe,
    values: tuple[tuple[str, Any], ...],
    tensors: tuple[tuple[str, torch.Size, tuple[int, ...], torch.dtype], ...],
) -> list[_Described]:
    given: Given = {name: torch.empty_strided(*sizes, dtype=dtype, device="meta") for name, *sizes, dtype in tensors}
    argument_of = {id(tensor): name for name, tensor in given.items()}
    found = []
    for made in describe({**given, **dict(values), "max_seq_len": 0}):
        settings = {field.name: getattr(made, field.name) for field in fields(made)}
        own = [(name, argument_of[id(tensor)]) for name, tensor in made.tensors.items()]
        kept = {"signature": made.signature} | ({"num_requests": made.num_requests} if isinstance(made, Batch) else {})
        found.append(_Described(type(made), settings | kept, own))
    return found


def _of_paged_attention(given: Given) -> tuple[Layer, Batch]:
    q = given["q"]
    check_dims("q", q, ("T", "num_heads", "head_size"))
    return _layer(given, num_heads=q.shape[1], head_size=q.shape[2]), _batch(given, causal=_causal(given))


def _of_varlen_attention(given: Given) -> tuple[Layer, Batch]:
    q, k = given["q"], given["k"]
    check_dims("q", q, ("T", "num_heads", "head_size"))
    check_dims("k", k, ("T_kv", "num_kv_heads", "head_size"))
    layer = _layer(given, num_heads=q.shape[1], num_kv_heads=k.shape[1], head_size=q.shape[2])
    return layer, _batch(given, causal=False)


def _of_write(given: Given) -> tuple[Layer]:
    return (_written_layer(given),)


def _of_rope_and_write(given: Given) -> tuple[Layer]:
    check_dims("q", given["q"], ("T", "num_heads", "head_size"))
    return (_written_layer(given, num_heads=given["q"].shape[1]),)


def _of_latent_write(given: Given) -> tuple[Layer]:
    kv_c, k_pe = given["kv_c"], given["k_pe"]
    check_dims("kv_c", kv_c, ("T_kv", "head_size_v"))
    check_dims("k_pe", k_pe, ("T_kv", "head_size - head_size_v"))
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_size": kv_c.shape[1] + k_pe.shape[1], "head_size_v": kv_c.shape[1]}
    return (_layer({"layout": Layout.LATENT, **given}, **sizes, scale=1.0),)


def _of_index_layer(given: Given) -> tuple[Batch]:
    return (_batch(given, causal=True),)


def _indexer(given: Given, **sizes: int) -> Indexer:
    """The index layer that a call describes: the arguments that are fields of Indexer, and sizes that shapes of tensors say."""
    terms = {name: given[name] for name in _INDEXER_FIELDS if name in given}
    return _made_indexer(**terms, **sizes)


@cache
def _made_indexer(**terms: Any) -> Indexer:
    for name, kind in (("layout", IndexLayout), ("score", IndexScore), ("scale_format", ScaleFormat)):
        if name in terms:
            terms[name] = _named(kind, name, terms[name])
    # an op has no argument for a size that it does not use
    settings: Given = {"num_heads": 1, "head_size": 1, "top_k": 1, **terms}
    return Indexer(**settings)


def _layer(given: Given, **sizes: Any) -> Layer:
    """The layer that a call describes: the arguments that are fields of Layer, and sizes that shapes of tensors say."""
    settings: Given = {field.name: given[field.name] for field in fields(Layer) if field.name in given}
    for name, kind in (("attn_type", AttentionType), ("layout", Layout)):
        if name in settings:
            settings[name] = _named(kind, name, settings[name])
    if "kv_cache" in given:
        dtype = given["kv_cache"].dtype
        settings["kv_cache_dtype"] = None if dtype in FLOAT_DTYPES else dtype
    return Layer(**settings, **sizes)


def _written_layer(given: Given, num_heads: int | None = None) -> Layer:
    """As much of a layer as a cache write knows: it has no scale of logits, and without q no query heads."""
    k = given["k"]
    check_dims("k", k, ("T_kv", "num_kv_heads", "head_size"))
    num_kv_heads, head_size = k.shape[1:]
    if given["layout"] == Layout.CONTENT_PACKED:
        check_dims("v", given["v"], ("T_kv", "num_kv_heads", "head_size_v"))
        given = {**given, "head_size_v": given["v"].shape[2]}
    return _layer(
        given,
        num_heads=num_kv_heads if num_heads is None else num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        scale=1.0,
    )


def _batch(given: Given, *, causal: bool | torch.Tensor) -> Batch:
    """The step that a call describes: the arguments that are fields of Batch."""
    settings = {field.name: given[field.name] for field in fields(Batch) if field.name in given}
    return Batch(**{**settings, "causal": causal})


def _causal(given: Given) -> bool | torch.Tensor:
    one, per_request = given["causal"], given["causal_per_request"]
    if (one is None) == (per_request is None):
        both = f"{one}, and {'no' if one is None else 'a'} causal_per_request"
        raise ContractError("causal", both, "either a bool or causal_per_request")
    return one if per_request is None else per_request


def _outputs(given: Given) -> Given:
    return {"out": given["out"], "lse": given["lse"], "batch_invariant": given.get("batch_invariant", False)}


_Name = TypeVar("_Name", bound=StrEnum)


def _named(kind: type[_Name], argument: str, value: str) -> _Name:
    if value not in set(kind):
        raise ContractError(argument, repr(value), f"one of {', '.join(kind)}")
    return kind(value)

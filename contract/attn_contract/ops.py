"""Schemas of the torch ops `attn_parity::*`: one op, two devices.

`attn_reference` registers the CPU implementations, `attn_optimized` those of CUDA and HIP. A model that is moved to the CPU
runs the reference without a change of its code. Every op writes into tensors that it is given, and returns nothing.

An op takes the fields of Layer and Batch as arguments of the same names. Its schema is the only list of them: options are
written by the rules' records, and a call comes back by the places of the schema's arguments.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import cache, lru_cache
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch

from attn_contract.arguments import check_dims, check_int, check_tensor, refuse_vmap
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.indexer import Indexer, IndexLayout, IndexScore, ScaleFormat
from attn_contract.layer import FLOAT_DTYPES, Layer
from attn_contract.layouts import Layout
from attn_contract.rules import Rule, held_rules
from attn_contract.signatures import tensor_signature

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

SCHEMAS = {
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
"""The arguments of a call of an op, by the names of its schema. torch leaves out options with their default."""
Described = Layer | Batch | Indexer
Describe = Callable[[Given], tuple[Described, ...]]
"""Makes the layer and the step that arguments describe, and checks both."""


class Required(NamedTuple):
    """The arguments of an op that are no options: torch passes them by position.

    Attributes:
        names: the names of all arguments.
        tensors, values: places of arguments that are tensors, and of the others but `max_seq_len`.
        written: the names of written tensors, of options too.
        must_be_tensors: places and names of arguments that cannot be None.
        describing: takes the arguments that may describe a layer or a step, `num_tensors` tensors first. Outputs do not, and
            `max_seq_len` is another one in each step of a decode.
        described: the names of these.
        max_seq_len: its place, or None.
    """

    names: list[str]
    tensors: list[int]
    values: list[int]
    written: frozenset[str]
    must_be_tensors: list[tuple[int, str]]
    describing: Callable[[Sequence[Any]], tuple[Any, ...]]
    num_tensors: int
    described: list[str]
    max_seq_len: int | None

    def check(self, given: Sequence[Any]) -> None:
        """Refuse None in place of a tensor: torch makes an undefined tensor of it, and lets the call pass."""
        for place, name in self.must_be_tensors:
            if given[place] is None:
                raise ContractError(name, None, "a tensor")


@cache
def _required(op: str) -> Required:
    schema = getattr(torch.ops.attn_parity, op).default._schema.arguments
    arguments = [one for one in schema if not one.kwarg_only]
    names, types = [one.name for one in arguments], [str(one.type) for one in arguments]
    tensors = [place for place, kind in enumerate(types) if "Tensor" in kind]
    describing = [place for place, name in enumerate(names) if name not in ("out", "lse", "max_seq_len")]
    describing.sort(key=lambda place: "Tensor" not in types[place])
    return Required(
        names,
        tensors,
        values=[place for place, name in enumerate(names) if place not in tensors and name != "max_seq_len"],
        written=frozenset(one.name for one in schema if one.alias_info is not None and one.alias_info.is_write),
        must_be_tensors=[(place, name) for place, name in enumerate(names) if types[place] == "Tensor"],
        describing=itemgetter(*describing),
        num_tensors=sum("Tensor" in types[place] for place in describing),
        described=[names[place] for place in describing],
        max_seq_len=names.index("max_seq_len") if "max_seq_len" in names else None,
    )


def _fake(op: str) -> Callable[..., None]:
    """An op on tensors without memory. torch calls it where any argument is on meta, even if the outputs have memory."""

    def write_nothing(*required: Any, **options: Any) -> None:
        _required(op).check(required)
        given = dict(zip(_required(op).names, required, strict=True)) | options
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        on_meta = [name for name, tensor in tensors.items() if tensor.device.type == "meta"]
        if on_meta and len(on_meta) < len(tensors):
            first = next(name for name in tensors if name not in on_meta)
            raise ContractError(on_meta[0], "a tensor on meta", f"{tensors[first].device}, where {first} is")

    return write_nothing


def _refuse_views(op: str) -> Callable[..., None]:
    """An op on tensors that are negated or stand for many: torch resolves no written one, and names none in its message."""

    def refuse(*required: Any, **options: Any) -> None:
        given = dict(zip(_required(op).names, required, strict=True)) | options
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        refuse_vmap(tensors)
        for name, tensor in tensors.items():
            check_tensor(name, tensor)

    return refuse


_library = torch.library.Library("attn_parity", "DEF")
for _op, _arguments in SCHEMAS.items():
    _library.define(f"{_op}({_arguments}) -> ()")
    torch.library.register_fake(f"attn_parity::{_op}", _fake(_op))
    for _key in ("Negative", "FuncTorchBatched"):
        _library.impl(_op, _refuse_views(_op), _key)


Arrange = Callable[[Sequence[Any], Given], tuple[tuple[Any, ...], Given]]
"""Turns an op's required arguments and options into those of the function with the op's name: by place, and by name."""


class Repeats(Protocol):
    """Makes calls of an op that are like an earlier one in a shorter way; see `attn_optimized.repeats`."""

    def read(self, required: Sequence[Any], options: Given) -> Any: ...
    def made(self, call: Any) -> bool: ...
    def note(self, call: Any, required: Sequence[Any], options: Given) -> None: ...


def register(
    implementation: ModuleType, dispatch_key: str, repeats: Callable[[str, Required, Arrange], Repeats] | None = None
) -> None:
    """Make a package's functions the ops of a device.

    Args:
        implementation: has a function of the name of each op with the signature of `attn_reference`, and `batch_invariant` for
            the first two.
        dispatch_key: "CPU", or "CUDA" (HIP's devices dispatch there too).
        repeats: of an op that describes a layer or a step. None: all calls are made in one way.
    """
    for op in SCHEMAS:
        torch.library.impl(f"attn_parity::{op}", dispatch_key, lib=_library)(kernel_of(op, implementation, repeats))


def kernel_of(
    op: str, implementation: ModuleType, repeats: Callable[[str, Required, Arrange], Repeats] | None = None
) -> Callable[..., None]:
    """The function that torch calls for an op, with its required arguments by place and its options by name."""
    arguments, arrange = _required(op), _arrange(op, implementation)

    def whole(*required: Any, **options: Any) -> None:
        arguments.check(required)
        by_place, by_name = arrange(required, options)
        getattr(implementation, op)(*by_place, **by_name)

    if repeats is None or op not in _DESCRIBE:
        return whole
    of_op = repeats(op, arguments, arrange)

    def repeating(*required: Any, **options: Any) -> None:
        call = of_op.read(required, options)
        if not of_op.made(call):
            whole(*required, **options)
            of_op.note(call, required, options)

    return repeating


def _arrange(op: str, implementation: ModuleType) -> Arrange:
    """Turn an op's arguments into those of the implementation's function, with the layer and the step that they describe."""
    arguments, parameters = _required(op), inspect.signature(getattr(implementation, op)).parameters
    names = [*arguments.names, *(name for name in parameters if name in ("layer", "indexer", "batch"))]
    by_name = [name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    positional = itemgetter(*(names.index(name) for name in parameters if name in names and name not in by_name))
    required_by_name = [(name, names.index(name)) for name in by_name if name in names]
    options_by_name = [name for name in by_name if name not in names]

    def arrange(required: Sequence[Any], options: Given) -> tuple[tuple[Any, ...], Given]:
        given = (*required, *_described(op, required, options)) if op in _DESCRIBE else required
        named = {name: given[place] for name, place in required_by_name}
        if options:
            named |= {name: options[name] for name in options_by_name if name in options}
        return positional(given), named

    return arrange


def _described(op: str, required: Sequence[Any], options: Given) -> list[Any]:
    """The layer and the step of a call, with what an earlier call of the same signature has checked.

    The caller of an op makes no Layer or Batch that could be checked once for all steps, and checking both in each call would
    take five times as long as a call of the function. So the first call of a signature is checked with tensors on meta, where
    only shapes, strides and dtypes matter.
    """
    arguments, given = _required(op), required
    describing, num_tensors = arguments.describing(required), arguments.num_tensors
    signature = (*map(tensor_signature, describing[:num_tensors]), *describing[num_tensors:])
    if options:
        signature += tuple(map(_hashable, options.values()))
        given = (*required, *options.values())
    holders = []
    for made in _checked(op, tuple(options), signature):
        holder = made.holder
        if made.tensors:
            holder = object.__new__(type(holder))
            own = {field: given[place] for field, place in made.tensors}
            vars(holder).update(made.fields, tensors=own, **own)
            if made.extents:
                starts = {name: tensor.data_ptr() for name, tensor in own.items()}
                vars(holder)["memory"] = {name: (start, start + made.extents[name]) for name, start in starts.items()}
        holders.append(holder)
    if arguments.max_seq_len is not None:
        max_seq_len = vars(holders[-1])["max_seq_len"] = required[arguments.max_seq_len]
        check_int("max_seq_len", max_seq_len, minimum=0)
    return holders


def _hashable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tensor_signature(value)
    return tuple(value) if isinstance(value, list) else value  # a schema has no tuples


class _Made(NamedTuple):
    """The parts of a Layer, a Batch or an Indexer that all calls of one signature share.

    Attributes:
        holder: the object, with tensors on meta. Without tensors it serves every call.
        fields: values by the names of attributes, also of those that Layer and Batch keep once they were asked for: each call
            has new objects.
        tensors: the names of fields, with their places among the arguments.
        extents: the bytes from the first to the last one of each of a step's tensors.
    """

    holder: Described
    fields: Given
    tensors: list[tuple[str, int]]
    extents: dict[str, int]


@lru_cache(maxsize=4096)
def _checked(op: str, options: tuple[str, ...], signature: tuple[Any, ...]) -> list[_Made]:
    """The holders that calls of an op describe, with options of these names and this signature of arguments."""
    arguments = _required(op)
    given = {name: _on_meta(part) for name, part in zip((*arguments.described, *options), signature, strict=True)}
    places = {id(given.get(name)): place for place, name in enumerate((*arguments.names, *options))}
    found = []
    for holder in _DESCRIBE[op](given | {"max_seq_len": 0}):
        settings = {field.name: getattr(holder, field.name) for field in fields(holder)}
        own = {name: value for name, value in settings.items() if isinstance(value, torch.Tensor)}
        extents = {}
        if not isinstance(holder, Indexer):
            settings["signature"] = holder.signature
        if isinstance(holder, Batch):
            settings |= {"num_requests": holder.num_requests, "device": None}
            extents = {name: end - start for name, (start, end) in holder.memory.items()}
        found.append(_Made(holder, settings, [(name, places[id(tensor)]) for name, tensor in own.items()], extents))
    return found


def _on_meta(part: Any) -> Any:
    """A tensor on meta for its signature, and any other value as it is."""
    if not isinstance(part, tuple) or not part or not isinstance(part[0], torch.Size):
        return part
    shape, stride, dtype = part
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _check_sizes(name: str, tensor: torch.Tensor, dims: tuple[str, ...]) -> None:
    """Check the dimensions of a tensor, some of which become fields of the same name. A field's own check would not name it."""
    check_dims(name, tensor, dims)
    if 0 in (size for size, dim in zip(tensor.shape, dims, strict=True) if dim in _SIZES):
        free = " and ".join(dim for dim in dims if dim not in _SIZES)
        expected = f"shape ({', '.join(dims)}), each of its sizes but {free} at least 1"
        raise ContractError(name, f"shape {tuple(tensor.shape)}", expected)


_SIZES = {field.name for holder in (Layer, Indexer) for field in fields(holder)}


def _of_paged_attention(given: Given) -> tuple[Layer, Batch]:
    q = given["q"]
    _check_sizes("q", q, ("T", "num_heads", "head_size"))
    return _layer(given, num_heads=q.shape[1], head_size=q.shape[2]), _batch(given, causal=_causal(given))


def _of_varlen_attention(given: Given) -> tuple[Layer, Batch]:
    q, k = given["q"], given["k"]
    _check_sizes("q", q, ("T", "num_heads", "head_size"))
    _check_sizes("k", k, ("T_kv", "num_kv_heads", "head_size"))
    layer = _layer(given, num_heads=q.shape[1], num_kv_heads=k.shape[1], head_size=q.shape[2])
    return layer, _batch(given, causal=False)


def _of_rope_and_write(given: Given) -> tuple[Layer]:
    _check_sizes("q", given["q"], ("T", "num_heads", "head_size"))
    return (_written_layer(given, num_heads=given["q"].shape[1]),)


def _of_latent_write(given: Given) -> tuple[Layer]:
    kv_c, k_pe = given["kv_c"], given["k_pe"]
    _check_sizes("kv_c", kv_c, ("T_kv", "head_size_v"))
    _check_sizes("k_pe", k_pe, ("T_kv", "head_size - head_size_v"))
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_size": kv_c.shape[1] + k_pe.shape[1], "head_size_v": kv_c.shape[1]}
    return (_layer({"layout": Layout.LATENT, **given}, **sizes, scale=1.0),)


def _of_index_call(name: str, *dims: str) -> Describe:
    """The description of a call whose tensor of that name has these dimensions, of which some are fields of Indexer."""

    def describe(given: Given) -> tuple[Described, ...]:
        _check_sizes(name, given[name], dims)
        indexer = _indexer(given, dict(zip(dims, given[name].shape, strict=True)))
        return (indexer, _batch(given, causal=True)) if "seq_lens" in given else (indexer,)

    return describe


_DESCRIBE: dict[str, Describe] = {
    "paged_attention": _of_paged_attention,
    "varlen_attention": _of_varlen_attention,
    "write_kv_cache": lambda given: (_written_layer(given),),
    "rope_and_write_kv_cache": _of_rope_and_write,
    "write_latent_cache": _of_latent_write,
    "write_index_cache": _of_index_call("k", "T_k", "head_size"),
    "index_logits": _of_index_call("q", "T", "num_heads", "head_size"),
    "select": _of_index_call("logits", "num_selections", "T", "units"),
}
"""The merges take neither a layer nor a batch."""


def _indexer(given: Given, sizes: dict[str, int]) -> Indexer:
    """The index layer that a call describes: the arguments that are fields of Indexer, and sizes that shapes of tensors say."""
    # an op has no argument for a size that it does not use
    settings: Given = {"num_heads": sizes.get("num_selections", 1), "head_size": 1, "top_k": 1}
    kinds = {"layout": IndexLayout, "score": IndexScore, "scale_format": ScaleFormat}
    return Indexer(**settings | _fields_of(Indexer, given | sizes, kinds))


def _layer(given: Given, **sizes: Any) -> Layer:
    """The layer that a call describes: the arguments that are fields of Layer, and sizes that shapes of tensors say."""
    settings = _fields_of(Layer, given, {"attn_type": AttentionType, "layout": Layout})
    if "kv_cache" in given:
        dtype = given["kv_cache"].dtype
        settings["kv_cache_dtype"] = None if dtype in FLOAT_DTYPES else dtype
    return Layer(**settings, **sizes)


def _written_layer(given: Given, num_heads: int | None = None) -> Layer:
    """The layer of a cache write. The write knows no scale of logits, and without q no number of query heads."""
    k = given["k"]
    _check_sizes("k", k, ("T_kv", "num_kv_heads", "head_size"))
    num_kv_heads, head_size = k.shape[1:]
    if given["layout"] == Layout.CONTENT_PACKED:
        _check_sizes("v", given["v"], ("T_kv", "num_kv_heads", "head_size_v"))
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
    return Batch(**{**_fields_of(Batch, given, {}), "causal": causal})


def _causal(given: Given) -> bool | torch.Tensor:
    one, per_request = given["causal"], given["causal_per_request"]
    if (one is None) == (per_request is None):
        both = f"{one}, and {'no' if one is None else 'a'} causal_per_request"
        raise ContractError("causal", both, "either a bool or causal_per_request")
    return one if per_request is None else per_request


def _fields_of(holder: type[Described], given: Given, kinds: dict[str, type[StrEnum]]) -> Given:
    """The arguments that are fields of a class. A schema has the members of enumerations by name."""
    settings = {field.name: given[field.name] for field in fields(holder) if field.name in given}
    for name in (name for name in kinds if name in settings):
        if settings[name] not in set(kinds[name]):
            raise ContractError(name, repr(settings[name]), f"one of {', '.join(kinds[name])}")
        settings[name] = kinds[name](settings[name])
    return settings

"""The attention of a model that transformers builds of a config: what its layers hand to a function of attention.

The model is built on the device meta, which holds shapes and no numbers, and run once over a few tokens. Nothing is loaded and
no code that a config names is run. An attention registered for that run keeps the arguments of each call. A mask is kept as the
function of positions that it is made of, and read at far positions: once for all layers that share it.
"""

import contextlib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import CellType, FunctionType
from typing import Any

import torch
from attn_contract import AttentionType, UnsupportedError
from attn_contract.arguments import shown
from attn_parity.model_config.own_code import READERS

NAME = "attn-parity-select"
_TOKENS = 8
_TOKENS_OF_ENCODER = 12
_FAR = 2**20 + 4321
"""A position past the reach of any window."""
_WITHOUT_EFFECT = frozenset(
    {
        *("position_ids", "use_cache", "output_hidden_states", "output_attentions", "output_router_logits", "return_dict"),
        *("cache_position", "layer_idx"),
    }
)


class Reason(StrEnum):
    """The reason why a layer, or all of a model, is not answered. There are no other reasons."""

    NOT_BUILT = "transformers builds no model of it on meta"
    NO_CALL = "no call of transformers' attention"
    ARGUMENT = "an argument of attention that is not known"
    MASK = "a mask that is no rule of the contract"
    SHAPE = "q, k and v of shapes that are no layer's"


class NotAnsweredError(UnsupportedError):
    """A model or a layer that is not answered, by one of the closed list of reasons and what there was."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__("transformers", str(reason), textwrap.shorten(detail, 300))

    def __str__(self) -> str:
        return f"{self.feature}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of attention.

    Args:
        layer: the number of the layer, counted from 0 in its list of layers.
        path: the module's name in the model, without that number and the names of lists.
        num_heads, num_kv_heads, head_size, v_head_size: the sizes of q, k and v as handed.
        rules: window, chunked_local, selection_unit, logits_soft_cap and sinks, as in AttentionConfig.
        attn_type, top_k: as in AttentionConfig.
        shared_with: the layer whose keys it is handed; None: its own.
        in_two_parts: the model is an encoder and a decoder.
        refused: why the call is no layer of the contract; None if it is one.
    """

    layer: int
    path: str
    num_heads: int = 0
    num_kv_heads: int = 0
    head_size: int = 0
    v_head_size: int = 0
    scale: float = 0.0
    rules: Mapping[str, Any] = field(default_factory=dict)
    attn_type: AttentionType = AttentionType.DECODER
    top_k: int | None = None
    shared_with: int | None = None
    in_two_parts: bool = False
    refused: NotAnsweredError | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model's calls, and by the number of a layer the classes of its parts that make none."""

    calls: tuple[Call, ...]
    without: Mapping[int, str]


def built(config: Any, model_class: Any) -> Built:
    """The calls of a model. NotAnsweredError: it cannot be built, or it calls no attention.

    Args:
        config: a PreTrainedConfig of the part with the cache.
        model_class: the class of transformers to build.
    """
    kept: list[tuple[Any, ...]] = []
    with _recording(kept), torch.device("meta"), torch.no_grad():
        try:
            model = _model(config, model_class)
        except Exception as error:  # any of a model's code
            raise NotAnsweredError(Reason.NOT_BUILT, f"{type(error).__name__}: {error}") from error
        names = {module: name for name, module in model.named_modules()}
        calls = tuple(_own_calls(names, config))
        if not calls:
            _skip_modules_without_attention(names)
            _run(model, kept)
    others = [one for one in kept if not _is_over_tokens(one[1], model.config)]
    kept = [one for one in kept if _is_over_tokens(one[1], model.config)]
    if not calls and not kept:
        mixers = ", ".join(dict.fromkeys(_without(names, (), set()).values()))
        mixers += "".join(f", {name} not over tokens" for name in dict.fromkeys(type(module).__name__ for module, *_ in others))
        raise NotAnsweredError(Reason.NO_CALL, f"{model_class.__name__} of {mixers or 'code of its own'}")
    keys: dict[int, int] = {}
    called = [module for module, *_ in kept] or [module for module in names if type(module).__name__ in READERS]
    calls = calls or tuple(_call(names, keys, model.config.is_encoder_decoder, *one) for one in kept)
    return Built(calls=calls, without=_without(names, called, {call.layer for call in calls}))


def _model(config: Any, model_class: Any) -> Any:
    """A model whose attention is the one that keeps its arguments, or the model's own where it has no other."""
    config.output_hidden_states = True  # of all tokens: if only the last are kept, some models cut masks
    config._attn_implementation = NAME
    try:
        model = model_class(config).eval()
    except KeyError as error:
        if error.args != (NAME,):
            raise
        config._attn_implementation = "eager"
        return model_class(config).eval()
    for module in model.modules():
        own: Any = getattr(module, "config", None)
        if hasattr(own, "_attn_implementation"):
            own._attn_implementation = NAME
    return model


def _run(model: Any, kept: list[tuple[Any, ...]]) -> None:
    """Runs a model. Some code reads numbers, which meta has not, with a cache, or of positions where it is given no mask."""
    whole = {"attention_mask": torch.ones(1, _TOKENS, dtype=torch.int64)}
    failed: Exception | None = None
    for options in ({}, {"use_cache": False}, whole, {"use_cache": False, **whole}):
        kept.clear()
        try:
            model.base_model(**_inputs(model), **options)
        except Exception as error:  # any of a model's code
            failed = failed or error
        else:
            return
    raise NotAnsweredError(Reason.NOT_BUILT, f"{type(failed).__name__}: {failed}") from failed


def _inputs(model: Any) -> dict[str, torch.Tensor]:
    config, tokens = model.config, torch.zeros(1, _TOKENS, dtype=torch.int64)
    if not config.is_encoder_decoder:
        return {"input_ids": tokens}
    if model.main_input_name == "input_features":
        sound = {"input_features": torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}
        return {**sound, "decoder_input_ids": tokens}
    return {"input_ids": torch.zeros(1, _TOKENS_OF_ENCODER, dtype=torch.int64), "decoder_input_ids": tokens}


@contextlib.contextmanager
def _recording(kept: list[tuple[Any, ...]]) -> Iterator[None]:
    """Registers an attention that keeps its arguments, and masks that keep their function, for a time."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(module, query, key, value, attention_mask, scaling=None, **options):
        kept.append((module, query, key, value, attention_mask, scaling, options))
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    def mask(batch_size, q_length, kv_length, mask_function, **others):
        made = torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool, device="meta")
        made.seen = functools.cache(functools.partial(_seen, mask_function))  # type: ignore[attr-defined]
        return made

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    try:
        yield
    finally:
        del AttentionInterface._global_mapping[NAME], AttentionMaskInterface._global_mapping[NAME]


def _is_over_tokens(query: torch.Tensor, config: Any) -> bool:
    """False of attention over something else, such as the blocks of layers before: no backend serves it, so it is left out."""
    return config.is_encoder_decoder or query.dim() != 4 or query.shape[2] == _TOKENS


def _attends(module: torch.nn.Module) -> bool:
    return "Attention" in type(module).__name__ or hasattr(module, "num_key_value_groups")


def _skip_modules_without_attention(names: Mapping[torch.nn.Module, str]) -> None:
    """Lets parts of layers that cannot run on meta, such as a choice of experts, hand on zeros. No attention is in them."""
    around = [name for module, name in names.items() if _attends(module)]
    for module, name in names.items():
        inside = any(name.startswith(f"{one}.") or one == name or one.startswith(f"{name}.") for one in around)
        if re.search(r"\.\d+\.", name) and not inside:
            module.forward = _or_zeros(module.forward)


def _or_zeros(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args, **options):
        try:
            return forward(*args, **options)
        except Exception:  # any of a model's code
            tensors = (x for x in (*args, *options.values()) if isinstance(x, torch.Tensor) and x.is_floating_point())
            if (first := next(tensors, None)) is None:
                raise
            return torch.zeros_like(first)

    return run


def _call(
    names: Mapping[Any, str], keys: dict[int, int], in_two_parts: bool, module, query, key, value, mask, scaling, options
) -> Call:
    layer, path = _place(names.get(module, type(module).__name__), module)
    of = keys.setdefault(id(key), layer)
    try:
        _, num_heads, _, head_size = query.shape
        _, num_kv_heads, _, key_size = key.shape
        if key_size != head_size or num_heads % num_kv_heads or value.shape[1] != num_kv_heads:
            raise NotAnsweredError(Reason.SHAPE, f"q {tuple(query.shape)}, k {tuple(key.shape)}, v {tuple(value.shape)}")
        options = dict(options)
        unit, top_k = _selection_of(module, options)
        rules, ahead = _asked(module, mask, options)
        attn_type = _attn_type(ahead, key.shape[2] != query.shape[2], path.partition(".")[0] if in_two_parts else None)
    except NotAnsweredError as error:
        return Call(layer=layer, path=path, refused=error)
    return Call(
        layer=layer,
        path=path,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        v_head_size=value.shape[-1],
        scale=_scaled_before(module) * (head_size**-0.5 if scaling is None else float(scaling)),
        rules=rules if unit is None else rules | {"selection_unit": unit},
        attn_type=attn_type,
        top_k=top_k,
        in_two_parts=in_two_parts,
        shared_with=None if of == layer else of,
    )


def _attn_type(ahead: bool, is_cross: bool, part: str | None) -> AttentionType:
    """`part`: encoder or decoder; None in a model that has not both."""
    if not ahead:
        return AttentionType.DECODER
    if part is None:
        return AttentionType.ENCODER_ONLY
    if part == "encoder":
        return AttentionType.ENCODER
    if is_cross:
        return AttentionType.ENCODER_DECODER
    raise NotAnsweredError(Reason.MASK, "a decoder after an encoder, with queries that see keys after them")


_SCALED = re.compile(r"(?:query|key)_states = .*\* self\.scaling")


def _scaled_before(module: Any) -> float:
    """The factor of q.k that a module multiplies q, or q and k, by before it hands them on."""
    return float(getattr(module, "scaling", 1.0)) ** _times_scaled(type(module))


@functools.cache
def _times_scaled(module_class: type) -> int:
    return len(_SCALED.findall(inspect.getsource(module_class)))


def _own_calls(names: Mapping[torch.nn.Module, str], config: Any) -> Iterator[Call]:
    """Calls of modules that attend by code of their own."""
    for module, name in names.items():
        if (reader := READERS.get(type(module).__name__)) is not None:
            layer, path = _place(name, module)
            if not getattr(config, "is_causal", True):
                refused = NotAnsweredError(
                    Reason.ARGUMENT, f"is_causal={config.is_causal}, which {type(module).__name__} does not read"
                )
                yield Call(layer=layer, path=path, refused=refused)
            else:
                yield Call(layer=layer, path=path, **reader(module, config))


def _place(name: str, module: Any) -> tuple[int, str]:
    """The number of a module's layer, and its path."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    layer = int(numbers[0]) if numbers else getattr(module, "layer_idx", 0) or 0
    path = re.sub(r"\.\d+(?=\.|$)", "", name, count=1)
    return layer, re.sub(r"^(model|transformer)\.|\b(layers|block|layer)\.", "", path)


def _asked(module: Any, mask: Any, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The rules that a call asks for, and whether its queries see ahead."""
    if mask is None and options.get("is_causal", getattr(module, "is_causal", True)) is not False:
        raise NotAnsweredError(
            Reason.MASK, "none, for a layer that may be causal: implementations of attention differ about it"
        )
    if mask is not None and not hasattr(mask, "seen"):
        raise NotAnsweredError(Reason.MASK, "the model's own, or one that the model changed")
    rules, ahead = ({}, True) if mask is None else mask.seen()
    rules = dict(rules)
    options.pop("dropout", None)
    is_causal, width = options.pop("is_causal", None), options.pop("sliding_window", None)
    config = getattr(module, "config", None)
    if width is None and getattr(config, "layer_types", None) is None:
        width = getattr(config, "sliding_window", None)  # a cache drops keys by it
    if is_causal is None and not ahead and getattr(module, "is_causal", True) is False:
        is_causal = False
    if is_causal not in (None, not ahead):
        raise NotAnsweredError(Reason.ARGUMENT, f"is_causal={is_causal} beside a mask that says otherwise")
    if width is not None and "window" in rules and rules["window"][0] not in (width, width - 1):
        raise NotAnsweredError(
            Reason.ARGUMENT, f"sliding_window={width} beside a mask of {rules['window'][0]} keys before a query"
        )
    if width is not None and "window" not in rules:
        raise NotAnsweredError(Reason.ARGUMENT, f"sliding_window={width} beside a mask without a window")
    if (cap := options.pop("softcap", None)) is not None:
        rules["logits_soft_cap"] = float(cap)
    if options.pop("s_aux", None) is not None:
        rules["sinks"] = True
    elif isinstance(getattr(module, "sinks", None), torch.Tensor):
        raise NotAnsweredError(Reason.ARGUMENT, "the layer has sinks and does not hand them on")
    for name, value in options.items():
        if name not in _WITHOUT_EFFECT and value is not None:
            what = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else shown(value)
            raise NotAnsweredError(Reason.ARGUMENT, f"{name} ({what})")
    return rules, ahead


def _selection_of(module: Any, options: dict[str, Any]) -> tuple[int | None, int | None]:
    """The tokens of a unit that the indexer of a layer, or of a layer before it, selects, and the number of units.

    Nothing: the call is for all keys.
    """
    tokens, blocks = options.pop("indices", None), options.pop("block_indices", None)
    if tokens is None and blocks is None:
        return None, None
    selections = [each for each in (tokens, blocks) if each is not None]
    if len(selections) > 1 or (tokens is not None and tokens.dim() != 3):
        shapes = " and ".join(str(tuple(each.shape)) for each in selections)
        raise NotAnsweredError(Reason.ARGUMENT, f"indices or block_indices ({shapes})")
    if tokens is not None:
        return 1, getattr(module.config, "index_topk", None)
    if blocks.dim() != 4 or blocks.shape[1] != module.config.num_key_value_heads:
        raise NotAnsweredError(
            Reason.ARGUMENT, f"block_indices ({tuple(blocks.shape)}), which are not one row for each KV head"
        )
    return module.indexer.block_size, module.indexer.topk_blocks


def _seen(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The rules of a mask that a function of positions makes, and whether queries see keys after them."""
    function = _on_cpu(function)
    probes = (0, 1, 2, 300, _FAR, _FAR + 1, _FAR + 2)
    spans = {query: _span(function, query) for query in probes}
    ahead = spans[0][1] > 0
    before = _FAR - spans[_FAR][0]
    if ahead and all(last - query == spans[0][1] for query, (_, last) in spans.items()):
        after = spans[0][1]
        return _window(spans, before, None if after >= _AHEAD - 1 else after), True
    if ahead or any(last != query for query, (_, last) in spans.items()):
        raise NotAnsweredError(Reason.MASK, "neither all keys after a query, nor the same number for each query")
    if before != _FAR and spans[_FAR + 1][0] in (spans[_FAR][0], spans[_FAR + 2][0]):
        return _chunk(function, spans), False
    return _window(spans, before, before), False


_AHEAD = 2**16


def _window(spans: Mapping[int, tuple[int, int]], before: int, after: int | None) -> dict[str, Any]:
    if any(first != (0 if before == _FAR else max(0, query - before)) for query, (first, _) in spans.items()):
        raise NotAnsweredError(Reason.MASK, "neither all keys before a query, nor the same number for each query")
    if before == _FAR:
        if after not in (None, before):
            raise NotAnsweredError(Reason.MASK, f"all keys before a query, and {after} after it")
        return {}
    if after is None:
        raise NotAnsweredError(Reason.MASK, f"{before} keys before a query, and all after it")
    return {"window": (before, after)}


def _chunk(function: Callable[..., Any], spans: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    queries = torch.arange(_FAR, 2 * _FAR)
    seeing = torch.as_tensor(function(torch.tensor(0), torch.tensor(0), queries, torch.tensor(_FAR))).expand(len(queries))
    size = _FAR + int(seeing.sum()) - spans[_FAR][0]
    if any(first != query // size * size for query, (first, _) in spans.items()):
        raise NotAnsweredError(Reason.MASK, "keys before a query that are neither a window nor a chunk")
    return {"chunked_local": size}


def _span(function: Callable[..., Any], query: int) -> tuple[int, int]:
    """The first and the last key that a query sees, of those up to _AHEAD after it."""
    keys = torch.arange(query + _AHEAD)
    try:
        with torch.device("cpu"):
            seen = function(torch.tensor(0), torch.tensor(0), torch.tensor(query), keys)
        at = torch.as_tensor(seen).expand(len(keys)).nonzero()[:, 0]
    except Exception as error:
        raise NotAnsweredError(Reason.MASK, f"its function cannot be read: {type(error).__name__}: {error}") from error
    if not len(at) or int(at[-1] - at[0]) + 1 != len(at):
        raise NotAnsweredError(Reason.MASK, "a query that sees no keys, or keys with others between them")
    return int(at[0]), int(at[-1])


def _on_cpu(function: Any) -> Any:
    """The function of a mask, with the paddings of its chunks, which are none without an attention mask, on the CPU."""
    if not isinstance(function, FunctionType) or function.__closure__ is None:
        return function

    def here(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(here, value))
        if isinstance(value, torch.Tensor) and value.is_meta and function.__qualname__.startswith("chunked_overlay."):
            return torch.zeros(value.shape, dtype=value.dtype, device="cpu")
        return _on_cpu(value)

    cells = tuple(CellType(here(cell.cell_contents)) for cell in function.__closure__)
    return FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)


_KEEPS_A_STATE = re.compile("Mamba|Mixer|SSM|Delta")
_LISTS = re.compile(r"(layers?|blocks?|\bh)$")
_OF_ANY_LAYER = re.compile(r"Norm$|Linear$|Dropout$|Activation$")


def _without(names: Mapping[Any, str], called: Collection[Any], calling: set[int]) -> dict[int, str]:
    """The classes of parts that are no attention of ours, by the number of their layer.

    Of a layer that called none: those that layers with calls do not have. Of another layer: those that keep a state, by name.
    """
    lists = [module for module, name in names.items() if isinstance(module, torch.nn.ModuleList) and _LISTS.search(name)]
    if not lists:
        return {}
    of_calls = [one for one in lists if any(names.get(module, "").startswith(f"{names[one]}.") for module in called)]
    layers = max(of_calls or lists, key=len)
    common = {type(part).__name__ for number, one in enumerate(layers) if number in calling for part in one.children()}
    own: dict[int, str] = {}
    for number, one in enumerate(layers):
        if number in calling:
            if states := [name for part in one.children() if _KEEPS_A_STATE.search(name := type(part).__name__)]:
                own[number] = f"{', '.join(states)}, beside attention"
        else:
            parts = [type(part).__name__ for part in one.children()]
            parts = [name for name in dict.fromkeys(parts) if name not in common and not _OF_ANY_LAYER.search(name)]
            own[number] = ", ".join(parts) or type(one).__name__
    return own

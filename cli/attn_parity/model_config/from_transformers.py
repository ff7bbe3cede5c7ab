"""A config of any other model type, answered from the model that transformers builds of it (`built`)."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from attn_contract import AttentionType, ContractError, Layout
from attn_contract.arguments import shown
from attn_contract.scope import OUT_OF_SCOPE, refuse_out_of_scope
from attn_parity.model_config.built import Call, NotAnsweredError, Reason, built
from attn_parity.model_config.groups import Group
from attn_parity.model_config.model_types import CHUNKED, FULL, SLIDING, ModelType
from attn_parity.model_config.unknown import unknown

_MOST_LAYERS = 1000
"""No model has as many. A larger number is refused before a layer is built."""
_NOT_OF_THE_MODEL = ("architectures", "auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
_IMAGE_TOKENS = {"gemma4": 280}
"""Tokens of an image, the most by default, by the type of a model whose images see themselves both ways in windowed layers."""


def config_of(content: Mapping[str, Any]) -> Any:
    """transformers' config of what a file says; None where transformers has no such type.

    Raises:
        ContractError: transformers is missing, or takes no such fields.
    """
    model_type = content.get("model_type")
    try:
        from transformers import CONFIG_MAPPING
        from transformers.utils import logging
    except ImportError as error:
        expected = (
            "one of the small table (docs/guide/models.md), or transformers to build it: pip install attn-parity[transformers]"
        )
        raise ContractError("model_type", shown(model_type), expected) from error
    logging.set_verbosity_error()
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    layers = [part.get("num_hidden_layers") for part in (content, content.get("text_config")) if isinstance(part, dict)]
    if any(isinstance(number, int) and number > _MOST_LAYERS for number in layers):
        raise ContractError("num_hidden_layers", max(filter(None, layers)), f"an int up to {_MOST_LAYERS}")
    try:
        return CONFIG_MAPPING[model_type](**{name: value for name, value in content.items() if name not in _NOT_OF_THE_MODEL})
    except Exception as error:  # each of its checks has an error of its own
        raise ContractError(
            "config", "fields that contradict each other", f"fields that transformers takes: {error}"
        ) from error


def check_class(names: Any, config: Any) -> str:
    """The class of the model, which must be transformers' own of the type: another one may attend in another way."""
    import transformers

    if names is None:
        return config.model_type
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ContractError("architectures", shown(names), "a list of one name")
    of_it = getattr(getattr(transformers, names[0], None), "config_class", None)
    if of_it is None or of_it.model_type not in (config.model_type, config.get_text_config(decoder=True).model_type):
        expected = f"a class of transformers for {config.model_type}: another class may attend in another way"
        raise ContractError("architectures", shown(names[0]), expected)
    return names[0]


def layers_of(config: Any) -> tuple[dict[str, Group], dict[str, str], dict[str, tuple[int, ...]]]:
    """Groups by name, whose cache a group reads by its name, and the numbers of layers that are not answered by the reason.

    Raises:
        NotAnsweredError: of all layers.
        UnsupportedError: the config asks for what is out of scope.
    """
    text = config.get_text_config(decoder=True)
    if getattr(text, "index_topk", None):
        refuse_out_of_scope(["index_topk"])
    model = built(text, _class_of(text))
    images = _images(config, text)
    of_groups: dict[tuple[Any, ...], list[Call]] = {}
    refused: dict[str, list[int]] = {}
    first: NotAnsweredError | None = None
    for call in model.calls:
        try:
            group = _group(call, text, images)
        except NotAnsweredError as error:
            first = first or error
            refused.setdefault(str(error), []).append(call.layer)
        else:
            of_groups.setdefault(
                (_kind(call), call.path, call.shared_with is not None, repr(dataclasses.replace(group, layers=()))), []
            ).append(call)
    for layer, mixer in model.without.items():
        refused.setdefault(f"{mixer}: {Reason.NO_CALL}", []).append(layer)
    if not of_groups:
        raise NotAnsweredError(Reason.NO_CALL, "; ".join(refused)) if first is None or len(refused) > 1 else first
    return *_named(of_groups, text, images), {why: tuple(numbers) for why, numbers in refused.items()}


def _named(
    of_groups: Mapping[tuple[Any, ...], list[Call]], text: Any, images: int | None
) -> tuple[dict[str, Group], dict[str, str]]:
    groups: dict[str, Group] = {}
    sharing: dict[str, str] = {}
    home: dict[tuple[str, int], str] = {}
    for (kind, path, shares, _), calls in of_groups.items():
        name = f"{kind}_shared" if shares else kind
        if name in groups:
            name = next(other for count in range(2, len(of_groups) + 2) if (other := f"{name}_{count}") not in groups)
        numbers = tuple(dict.fromkeys(call.layer for call in calls))
        groups[name] = dataclasses.replace(_group(calls[0], text, images), layers=numbers)
        home |= {(path, number): name for number in numbers}
        if shares:
            targets = {home[path, call.shared_with] for call in calls if call.shared_with is not None}
            if len(targets) > 1:
                raise NotAnsweredError(Reason.SHAPE, f"layers {numbers} read caches of {' and '.join(sorted(targets))}")
            sharing[name] = targets.pop()
    return groups, sharing


def _class_of(text: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    for names in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES):
        name = names.get(text.model_type)
        if isinstance(name, str) and getattr(transformers, name).config_class is type(text):
            return getattr(transformers, name)
    raise NotAnsweredError(Reason.NOT_BUILT, f"no class of a language model of {text.model_type}")


def _images(config: Any, text: Any) -> int | None:
    """The tokens of an image that sees itself both ways; None if none does. NotAnsweredError: its code is not known."""
    if config is text or "block_sequence_ids" not in _source(config):
        return None
    if config.model_type in _IMAGE_TOKENS and text.use_bidirectional_attention != "vision":
        return None
    if config.model_type not in _IMAGE_TOKENS:
        raise NotAnsweredError(Reason.MASK, f"the code of {config.model_type} makes one of images, beside that of its text")
    return _IMAGE_TOKENS[config.model_type]


def _source(config: Any) -> str:
    """The code of a config and of its models, as text."""
    from pathlib import Path

    package = Path(sys.modules[type(config).__module__].__file__ or "").parent
    files = (file for kind in ("configuration", "modeling") for file in sorted(package.glob(f"{kind}_*.py")))
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _kind(call: Call) -> str:
    return next((name for rule, name in (("window", SLIDING), ("chunked_local", CHUNKED)) if rule in call.rules), FULL)


def _group(call: Call, text: Any, images: int | None) -> Group:
    """A call as a group of its layer alone. NotAnsweredError: it is none."""
    if call.refused is not None:
        raise call.refused
    rules = dict(call.rules)
    sizes = {"num_heads": call.num_heads, "num_kv_heads": call.num_kv_heads, "head_size": call.head_size}
    layout = None
    if call.shared_with is not None:
        rules["kv_sharing"] = True
    latent, rope = getattr(text, "kv_lora_rank", None), getattr(text, "qk_rope_head_dim", None)
    if latent and rope and call.head_size == (getattr(text, "qk_nope_head_dim", None) or 0) + rope:
        # the absorbed form, which reads the cache, of the expanded form that transformers computes
        sizes |= {"num_kv_heads": 1, "head_size": latent + rope}
        rules["head_size_v"] = latent
    elif call.value_size != call.head_size:
        rules["head_size_v"], layout = call.value_size, Layout.CONTENT_PACKED
    attn_type = AttentionType.ENCODER_ONLY if call.sees_ahead else AttentionType.DECODER
    group = Group(layers=(call.layer,), scale=call.scale, rules=rules, layout=layout, attn_type=attn_type, **sizes)
    return group.with_ranges(images) if images is not None and "window" in rules else group


def check_fields(content: Mapping[str, Any], config: Any) -> tuple[str, ...]:
    """Refuse fields that transformers' config class does not have and that sound like attention; names of other such fields."""
    unread: list[str] = []
    text = config.get_text_config(decoder=True)
    parts: Iterable[tuple[Mapping[str, Any], Any]] = [(content, config)]
    if text is not config:
        parts = [
            *parts,
            *((content[name], text) for name in ("text_config", "llm_config") if isinstance(content.get(name), dict)),
        ]
    for fields, of_it in parts:
        known = {
            "is_causal",
            "is_decoder",
            *type(of_it)().to_dict(),
            *_reads(_source(of_it)),
            *getattr(of_it, "attribute_map", {}),
        }
        record = ModelType(fields={}, inert=tuple(known | set(OUT_OF_SCOPE)))
        mine = {name: value for name, value in fields.items() if name not in known}
        unread += unknown(mine, of_it.model_type, record)
    return tuple(unread)


def _reads(source: str) -> set[str]:
    """Names of fields that code reads of a config, or of the arguments of a config's class."""
    patterns = (r"config\.(\w+)", r'getattr\([\w.]*config, "(\w+)"', r'kwargs\.(?:pop|get|setdefault)\(\s*"(\w+)"')
    return {name for pattern in patterns for name in re.findall(pattern, source)}

"""A model config by transformers: its class, the class of its models, and the layers of the model that is built (`built`)."""

import copy
import dataclasses
import importlib
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attn_contract import AttentionType, ContractError, Layout
from attn_contract.arguments import check_int, shown
from attn_contract.scope import refuse_out_of_scope
from attn_parity.model_config import fields
from attn_parity.model_config.built import Call, NotAnsweredError, Reason, built
from attn_parity.model_config.group import Group
from attn_parity.versions import version

FULL, SLIDING, CHUNKED, ENCODER = "full_attention", "sliding_attention", "chunked_attention", "encoder"
INDEXED = "indexed_attention"
_MOST_LAYERS = 1000
"""No model has as many. A larger number is refused before a layer is built."""
_NOT_OF_THE_MODEL = ("architectures", "auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
_OUT_OF_SCOPE = (
    *("compress_rates", "compress_ratios", "index_kpool", "indexer_budget", "region_block_size"),
    "relative_attention_num_buckets",
)
_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "layer_types"),
    *("sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping"),
)


def config_of(content: Mapping[str, Any]) -> Any:
    """transformers' config of what a file says.

    Raises:
        ContractError: transformers has no such type, or takes no such fields.
        ModuleNotFoundError: transformers is missing.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    config_class = _config_class(content)
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for name in ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"):
            if isinstance(number := part.get(name), int) and number > _MOST_LAYERS:
                raise ContractError(name, number, f"an int up to {_MOST_LAYERS}")
    given = {name: value for name, value in content.items() if name not in _NOT_OF_THE_MODEL}
    try:
        return config_class(**copy.deepcopy(given))  # a class writes into the dicts that it is given
    except Exception as error:  # each of its checks has an error of its own
        by = f"transformers {version('transformers')}"
        said = textwrap.shorten(str(error.__cause__ or error), 200)
        raise ContractError("config", "fields that contradict each other", f"fields that {by} takes: {said}") from error


def _config_class(content: Mapping[str, Any]) -> Any:
    """The config class of a model type, or else of the model's class: other code may have its own type and transformers' class.

    If the type is unknown and a field asks for something out of scope, that field is the reason.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    model_type, architectures = content.get("model_type"), content.get("architectures")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    if isinstance(model_type, str) and isinstance(architectures, list) and len(architectures) == 1:
        of_it = getattr(getattr(transformers, str(architectures[0]), None), "config_class", None)
        if of_it is not None:
            return of_it
    refuse_out_of_scope(name for name in _names(content) if name in _OUT_OF_SCOPE)
    near = ", ".join(get_close_matches(str(model_type)[:100], CONFIG_MAPPING, n=3, cutoff=0))
    other = "of any other model, select takes a model file, which says what its layers ask for (docs/guide/models.md)"
    got = "nothing" if model_type is None else shown(model_type)
    raise ContractError("model_type", got, f"one that transformers {version('transformers')} has, such as {near}; {other}")


def _names(fields: Mapping[str, Any]) -> Iterator[str]:
    """The names of fields, at any depth of a text's config."""
    for name, value in fields.items():
        yield name
        if isinstance(value, dict) and not is_another_part(name):
            yield from _names(value)


def text_of(config: Any) -> Any:
    """The config of the part with the KV cache; of an encoder and a decoder, the config itself."""
    text = config.get_text_config(decoder=True)
    return config if type(text) is type(config) else text


def class_of(names: Any, config: Any) -> Any:
    """The model's class in `architectures`, or None. It must be transformers' own: another one may attend in another way."""
    import transformers

    if names is None:
        return None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ContractError("architectures", shown(names), "a list of one name")
    found = getattr(transformers, names[0], None)
    if found is None:  # files write MPT for Mpt, and KimiK25 for Kimi_K25; to list all names takes a second
        name = next((one for one in dir(transformers) if _plain(one) == _plain(names[0])), "")
        found = getattr(transformers, name, None)
    if getattr(found, "config_class", None) not in (type(config), type(text_of(config))):
        expected = f"a class of transformers for {config.model_type}: another class may attend in another way"
        raise ContractError("architectures", shown(names[0]), expected)
    return found


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def layers_of(config: Any, named: Any) -> tuple[dict[str, Group], dict[str, str], dict[str, tuple[int, ...]]]:
    """Groups by name, whose cache a group reads by its name, and the numbers of layers that are not answered by the reason.

    Args:
        named: the model's class; None if the config names none.

    Raises:
        NotAnsweredError: of all layers.
    """
    text = text_of(config)
    model = built(text, named if getattr(named, "config_class", None) is type(text) else _class_of(text))
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
    of_groups: Mapping[tuple[Any, ...], list[Call]], text: Any, images: "Images | None"
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
    """transformers' class of the models of a config: the one of its type, else the first of its module that takes tokens."""
    import transformers
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto

    of_decoders = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES)
    for names in (modeling_auto.MODEL_MAPPING_NAMES,) if text.is_encoder_decoder else of_decoders:
        if isinstance(name := names.get(text.model_type), str):
            return getattr(transformers, name)
    module = importlib.import_module(type(text).__module__.replace(".configuration_", ".modeling_"))
    classes = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, PreTrainedModel)]
    of_tokens = [one for one in classes if one.config_class is type(text) and one.main_input_name == "input_ids"]
    for ending in (r"ForCausalLM", r"TextModel", r"(?<!PreTrained)Model", r"Decoder"):
        if found := next((one for one in of_tokens if re.search(f"{ending}$", one.__name__)), None):
            return found
    raise NotAnsweredError(Reason.NOT_BUILT, f"no class of a language model of {text.model_type}")


@dataclass(frozen=True)
class Images:
    """Images that see themselves both ways, which a text-only model does not show.

    Args:
        longest: the tokens of an image, at most.
        in_all_layers: False if layers without a window are causal.
    """

    longest: float
    in_all_layers: bool


def _images(config: Any, text: Any) -> Images | None:
    """None: images are causal, as text is. NotAnsweredError: the code for images is not known."""
    if config is text or "block_sequence_ids" not in _source(config):
        return None
    if config.model_type in ("gemma4", "gemma4_unified"):
        both_ways = text.use_bidirectional_attention == "vision"
        return Images(280 if config.model_type == "gemma4" else math.inf, False) if both_ways else None
    if config.model_type == "gemma3":
        check_int("mm_tokens_per_image", config.mm_tokens_per_image, minimum=1)
        return Images(config.mm_tokens_per_image, True)
    if config.model_type == "paligemma" and "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
        return Images(math.inf, True)  # one range: the images and the prompt behind them
    raise NotAnsweredError(Reason.MASK, f"the code of {config.model_type} makes a mask for images, beside the mask of its text")


def _source(config: Any) -> str:
    """The code of a config and of its models, as text."""
    package = Path(sys.modules[type(config).__module__].__file__ or "").parent
    files = (file for kind in ("configuration", "modeling") for file in sorted(package.glob(f"{kind}_*.py")))
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _kind(call: Call) -> str:
    """The name of a call's group."""
    if call.attn_type is AttentionType.ENCODER_ONLY:
        return ENCODER
    if call.in_two_parts:
        return call.path
    names = {"selection_unit": INDEXED, "window": SLIDING, "chunked_local": CHUNKED}
    return next((name for rule, name in names.items() if rule in call.rules), FULL)


def _group(call: Call, text: Any, images: Images | None) -> Group:
    """A call as a group of its layer alone. NotAnsweredError: it is none."""
    if call.refused is not None:
        raise call.refused
    rules = dict(call.rules)
    sizes = {"num_heads": call.num_heads, "num_kv_heads": call.num_kv_heads, "head_size": call.head_size}
    layout = None
    if call.shared_with is not None:
        rules["kv_sharing"] = True
    own = text.per_layer_config[call.layer] if text.is_heterogeneous else text
    latent, rope = getattr(own, "kv_lora_rank", None), getattr(own, "qk_rope_head_dim", None)
    if latent and rope and call.head_size == (getattr(own, "qk_nope_head_dim", None) or 0) + rope:
        # the absorbed form, which reads the cache, of the expanded form that transformers computes
        sizes |= {"num_kv_heads": 1, "head_size": latent + rope}
        rules["head_size_v"] = latent
    elif call.v_head_size != call.head_size:
        rules["head_size_v"], layout = call.v_head_size, Layout.CONTENT_PACKED
    group = Group(
        layers=(call.layer,),
        scale=call.scale,
        rules=rules,
        top_k=call.top_k,
        layout=layout,
        attn_type=call.attn_type,
        **sizes,
    )
    if images is not None and (images.in_all_layers or "window" in rules):
        return group.with_ranges(images.longest)
    return group


def check_fields(content: Mapping[str, Any], config: Any) -> tuple[str, ...]:
    """Refuse fields that sound like attention and that transformers does not read; the names of other such fields.

    An object of fields is looked into, unless it is about another sense than text.

    Raises:
        ContractError: naming the field.
        UnsupportedError: the config asks for what is out of scope, whatever its other fields say.
    """
    refuse_out_of_scope(name for name in _OUT_OF_SCOPE if getattr(text_of(config), name, None))
    unread: list[str] = []
    for of_it, part in _parts(content, config):
        own = {name: value for name, value in part.items() if not is_another_part(name)}
        _check_aliases(own, of_it.attribute_map)
        if of_it is not text_of(config):  # masks are made of the text's config
            own = {name: value for name, value in own.items() if (name, value) != ("is_causal", True)}
            read = fields_read(of_it) - {"is_causal"}
        else:
            read = fields_read(of_it)
        unread += fields.check_fields(own, of_it.model_type or config.model_type, read)
    return tuple(unread)


def _check_aliases(given: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """ContractError: two names of one field have different values. transformers takes one of them."""
    for alias, name in names.items():
        if alias in given and name in given and given[alias] != given[name]:
            raise ContractError(alias, shown(given[alias]), f"{shown(given[name])}, as {name} says")


def _parts(content: Mapping[str, Any], config: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    from transformers import PreTrainedConfig

    yield config, content
    for name, value in content.items():
        inner = vars(config).get(name)  # an attribute that layers differ in is an error
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig) and not is_another_part(name):
            yield from _parts(value, inner)


def is_another_part(name: str) -> bool:
    """True for the name of a config of a part that has no KV cache."""
    return name.endswith("config") and fields.is_of_other_senses(name)


def fields_read(config: Any) -> frozenset[str]:
    """Fields that the class of a config has, and names that the model's code reads of a config."""
    patterns = (r"config\.(\w+)", r'getattr\([\w.]*config, "(\w+)"', r'kwargs\.(?:pop|get|setdefault)\(\s*"(\w+)"')
    source = _source(config)
    in_code = (name for pattern in patterns for name in re.findall(pattern, source))
    try:
        of_class = [*type(config)().to_dict()]
    except Exception:  # some classes refuse their own defaults
        of_class = [name for one in type(config).__mro__ for name in vars(one).get("__annotations__", ())]
    return frozenset({"is_causal", "is_decoder", *of_class, *config.attribute_map, *in_code})


def filled(given: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], str]:
    """Sizes that a file leaves out, of transformers' config class, and who says so."""
    aliases = {config.attribute_map.get(name, name) for name in given}
    left_out = [name for name in _SIZES if name not in given and config.attribute_map.get(name, name) not in aliases]
    has = config.to_dict()
    values = {name: has[name] for name in left_out if has.get(name) is not None}
    return values, f"transformers {version('transformers')}"

"""`attn-parity select`: which backend serves a layer, or each layer of a model, and why the others do not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from attn_contract import RULES, AttentionConfig, AttentionType, ContractError, Layout, UnsupportedError
from attn_contract.attention_config import Scales
from attn_fuzz.errors import EXIT_LIMIT, InputError
from attn_parity import model_file
from attn_parity.commands.select import selection_input
from attn_parity.commands.select.selected import print_assignments, print_config, print_findings, print_runs, print_vllm
from attn_parity.commands.select.selection_input import SelectionInput, of_options, own_float8
from attn_parity.commands.select.vllm_arguments import CACHE_WORDS, FLOAT8, VllmArguments, vllm_arguments
from attn_parity.console import results
from attn_parity.files import check_writable, write_json
from attn_parity.options import json_option

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter
    from attn_parity.commands.select.record import Select, Selected

_FLOATS = ("float32", "float16", "bfloat16")
_FLOAT8 = ("fp8_e4m3fn", "fp8_e4m3fnuz")
_OWN_BACKENDS = "this project's backends alone: FLASH_ATTN, FLASHINFER and others of vLLM's are not considered"
"""The note for machines without ROCm, and so without AITER: this project has no backend that vLLM prefers there."""

_OPTION_TYPES: dict[Any, dict[str, Any]] = {
    int: {"type": int},
    int | None: {"type": int},
    float | None: {"type": float},
    tuple[int, int]: {"type": int, "nargs": 2, "metavar": "LEFT RIGHT"},
}


def _rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each rule: a number, or a flag if the rule's value is a tensor or a bool."""
    for rule in reversed(list(RULES.values())):
        name = f"--{rule.name.replace('_', '-')}"
        kind = _OPTION_TYPES.get(rule.type, {"is_flag": True})
        words = rule.label.removesuffix(f" ({rule.name})")
        command = click.option(name, rule.name, help=f"{words[0].upper()}{words[1:]}.", **kind)(command)
    return command


@click.command("select")
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--attn-type", type=click.Choice([str(attn_type) for attn_type in AttentionType]), help="Attention type; default: decoder."
)
@click.option("--heads", "num_heads", type=int, help="Number of query heads.")
@click.option("--kv-heads", "num_kv_heads", type=int, help="Number of KV heads; default: the number of query heads.")
@click.option("--head-size", type=int, help="Head size of q and K.")
@click.option("--dtype", type=click.Choice(_FLOATS), help="Dtype of q; default: bfloat16.")
@click.option("--block-size", type=int, help="Slots of a block of the cache; default: 16.")
@click.option(
    "--layout", type=click.Choice([str(layout) for layout in Layout]), help="Layout of the cache; default: the backend chooses."
)
@click.option(
    "--kv-cache-dtype",
    type=click.Choice((*_FLOAT8, "int8", *CACHE_WORDS)),
    help="Element type of a quantized cache, or vLLM's word for a cache; fp8: the architecture's own float8.",
)
@click.option("--scales", type=click.Choice(get_args(Scales)), help="What one scale of a quantized cache covers.")
@click.option(
    "--sliding-window",
    type=click.IntRange(min=1),
    help="Number of keys that a token sees, itself included, as in a model's config.",
)
@click.option("--output-dtype", type=click.Choice(_FLOAT8), help="Dtype of a quantized output.")
@click.option("--top-k", type=int, help="Number of units that each query selects, where the layer has --selection-unit.")
@_rule_options
@click.option("--tensor-parallel", type=click.IntRange(min=1), help="Devices that share the heads of a model config.")
@click.option("--arch", metavar="NAME", help="Architecture, such as gfx942 or sm90; default: this machine's.")
@click.option(
    "--aiter",
    "aiter_version",
    metavar="installed|none|VERSION",
    default="installed",
    show_default=True,
    help="The AITER to plan for: this machine's, none, or a version whose signatures are recorded, such as 2026-08.",
)
@click.option(
    "--backend", "backends", multiple=True, metavar="[LAYER=]NAME", help="Use only this backend, for LAYER or for all layers."
)
@click.option(
    "--write-model-file",
    "written",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the layers to a new model file, to be edited.",
)
@json_option
def command(
    file: Path | None,
    arch: str | None,
    aiter_version: str,
    backends: tuple[str, ...],
    written: Path | None,
    json_file: Path | None,
    **layer: Any,
) -> int:
    """Select the backend of a layer, given by options, or of each layer of the model in FILE. Runs nothing; needs no GPU.

    FILE is a config of Hugging Face (config.json, or its folder) or a model file of this project. Exit code 1 where no backend
    serves a layer, or where a model asks for what is out of this project's scope; 3 where a layer is not answered.
    """
    check_writable(json_file)
    given = {name: value for name, value in layer.items() if value is not None and value is not False}
    serve = str(file) if file is not None and file.is_dir() else "MODEL"
    if file is not None and file.is_dir():
        file /= "config.json"
    if file is not None and json_file is not None and json_file.exists() and file.exists() and json_file.samefile(file):
        raise click.UsageError(f"--json: {json_file} is FILE itself")
    name = str(file)
    word = given.pop("kv_cache_dtype", None)
    if word is not None:
        given |= _cache_of(word, given, arch)
    try:
        model_input = selection_input.read(file, given)  # first: a wrong file is refused before much is imported
        name = model_input.name
        if written is not None:
            if written.exists():
                raise click.UsageError(f"--write-model-file: {written} exists")
            write_json(written, model_input.model_on(_architecture(arch)))
        _check_cache_of_floats(word, model_input.model_on(_architecture(arch)).layers)
        result = _select(model_input, _architecture(arch), _aiter(aiter_version), backends, serve)
    except ContractError as error:
        named = of_options(error, file, given)
        raise (InputError(f"{file}: {named}") if file else click.UsageError(str(named))) from error
    except UnsupportedError as error:
        result: Selected = {"error": str(error), "layers": {}}
        results.print(f"{file}: {error}" if file else str(error))
    if json_file:
        record: Select = {
            "schema": "attn-parity.select/1",
            "model": name,
            "architecture": _architecture(arch),
            "aiter": str(_aiter(aiter_version)),
            **result,
        }
        write_json(json_file, record)
    return 1 if result["error"] else EXIT_LIMIT if result.get("not_answered") else 0


def _cache_of(word: str, given: Mapping[str, Any], arch: str | None) -> dict[str, Any]:
    """The fields of a layer that --kv-cache-dtype sets. --scales may say another kind of scales than `fp8`."""
    if word not in CACHE_WORDS:
        return {"kv_cache_dtype": word}
    element, scales = CACHE_WORDS[word]
    asked = given.get("scales", scales)
    if asked != scales and word != "fp8":
        raise click.UsageError(f"--scales: got {asked}, expected no --scales beside --kv-cache-dtype {word}")
    if word == "auto":
        return {}
    return {"kv_cache_dtype": own_float8(_architecture(arch)) if element == FLOAT8 else element, "scales": asked}


def _check_cache_of_floats(word: str | None, layers: Mapping[str, Any]) -> None:
    """Refuse a cache of another float type than q's: no backend here has one."""
    dtypes = {fields["dtype"] for fields in layers.values() if isinstance(fields, Mapping) and "dtype" in fields}
    if word in _FLOATS and (others := sorted(dtypes - {word})):
        raise click.UsageError(f"--kv-cache-dtype: got {word}, expected {others[0]}, which is q's, or a quantized type")


def _select(
    model_input: SelectionInput, architecture: str, aiter: "Aiter", backends: tuple[str, ...], serve: str
) -> "Selected":
    """Select, print, and return the result. `serve` names the model for `vllm serve`."""
    from attn_optimized.selector import select_model

    model = model_input.model_on(architecture)
    layers = {name: model_file.config(name, fields) for name, fields in model.layers.items()}
    wanted = _by_layer(backends, layers)
    unserved, every = dict[str, str](), layers
    if model_input.config is not None:
        unserved = _unserved(layers, model.kv_sharing, architecture, aiter)
        layers = {name: config for name, config in layers.items() if name not in unserved}
        wanted = {name: backend for name, backend in wanted.items() if name in layers}
    _refuse_of_all_backends(layers, architecture, aiter)
    allocations, kv_sharing = model.allocations, model.kv_sharing
    if unserved:
        allocations = [names for group in allocations if len(names := [name for name in group if name not in unserved]) > 1]
        kv_sharing = {name: target for name, target in kv_sharing.items() if name not in unserved}
    shared = {"allocations": allocations, "kv_sharing": kv_sharing}
    assignments = select_model(layers, **shared, architecture=architecture, aiter=aiter, backends=wanted)
    result: Selected = {"error": "; ".join(unserved.values()) or None, "layers": assignments}
    considered = aiter if architecture.startswith("gfx") else _OWN_BACKENDS
    results.print(f"{model_input.name} on {architecture}, {considered}")
    engine = model_input.engine(architecture)
    if model_input.config is not None:
        print_config(model_input.config, layers, engine.tensor_parallel)
        for why in unserved.values():
            results.print(f"not served: {why}")
    print_assignments(assignments)
    print_findings(layers, assignments)
    print_runs(assignments)
    if model_input.config is not None:
        vllm = vllm_arguments(every, engine, model=serve, architecture=architecture, aiter=aiter, wanted=wanted)
        if model_input.config.not_answered:
            vllm = VllmArguments(None, None, {"any": ("some layers are not answered",)})
        print_vllm(vllm, assignments)
        config = model_input.config
        result = {
            **result,
            "model_type": config.model_type,
            "groups": config.groups,
            "filled": {"by": config.filled_by, "fields": config.filled},
            "left_out": config.left_out,
            "unknown": config.unknown,
            "not_answered": config.not_answered,
            "vllm": vllm,
        }
    return result


def _unserved(
    layers: dict[str, AttentionConfig], kv_sharing: Mapping[str, str], architecture: str, aiter: "Aiter"
) -> dict[str, str]:
    """The reasons why layers, by name, are not served while others are. UnsupportedError: no layer is served."""
    from attn_optimized.selector import select_model

    why: dict[str, UnsupportedError] = {}
    for name, config in layers.items():
        alone = {name: config, **{target: layers[target] for reader, target in kv_sharing.items() if reader == name}}
        sharing = {name: kv_sharing[name]} if name in kv_sharing else {}
        try:
            _refuse_of_all_backends(alone, architecture, aiter)
            select_model(alone, kv_sharing=sharing, architecture=architecture, aiter=aiter)
        except UnsupportedError as error:
            why[name] = error
    if len(why) == len(layers):
        raise next(iter(why.values()))
    return {name: str(error) for name, error in why.items()}


def _refuse_of_all_backends(layers: dict[str, AttentionConfig], architecture: str, aiter: "Aiter") -> None:
    """Refuse a model that all backends refuse for one reason. The reason is this project's, not that of a backend of vLLM."""
    from attn_optimized.backends import BACKENDS
    from attn_optimized.selector import cache_kind, priorities

    for name, config in layers.items():
        names = priorities(architecture, cache_kind(config))
        of_each = [BACKENDS[backend].capabilities(aiter).refusals(config) for backend in names]
        if shared := [refusal for refusal in of_each[0] if all(refusal in others for others in of_each)]:
            reasons = "; ".join(refusal.reason for refusal in shared)
            features = " and ".join(refusal.property for refusal in shared)
            why = f"{reasons}; all backends of this project have this limit, and vLLM's backends of the same names may not"
            raise UnsupportedError(name, features, why)


def _by_layer(choices: tuple[str, ...], layers: dict[str, AttentionConfig]) -> dict[str, str]:
    """The backend that the user wants, by layer. A backend without a layer's name is for all other layers."""
    wanted: dict[str | None, str] = {}
    for choice in choices:
        name, is_given, backend = choice.rpartition("=")
        if is_given and name not in layers:
            raise click.UsageError(f"--backend {choice}: got layer {name!r}, expected one of {', '.join(layers)}")
        chosen_for = name if is_given else None
        if chosen_for in wanted:
            raise click.UsageError(f"--backend {choice}: there is one already for {name if is_given else 'all layers'}")
        wanted[chosen_for] = backend
    return {name: backend for name in layers if (backend := wanted.get(name, wanted.get(None))) is not None}


def _architecture(name: str | None) -> str:
    from attn_optimized.selector import parse_architecture, this_architecture

    try:
        return this_architecture() if name is None else parse_architecture(name)
    except ContractError as error:
        raise click.UsageError(f"--arch: got {error.got}, expected {error.expected}") from error


def _aiter(version: str) -> "Aiter":
    from attn_optimized.aiter_adapter import Aiter, find_aiter, recorded

    if version == "none":
        return Aiter(missing="AITER is not installed (--aiter none)")
    try:
        return find_aiter() if version == "installed" else recorded(version)
    except ValueError as error:
        raise click.UsageError(f"--aiter: {error}") from error

"""`attn-parity select`: which backend serves a layer, or each layer of a model, and why the others do not."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from attn_contract import RULES, AttentionConfig, AttentionType, ContractError, Layout, UnsupportedError
from attn_contract.attention_config import Scales
from attn_fuzz.findings.aiter import BACKENDS
from attn_parity import model_file
from attn_parity.console import results
from attn_parity.model_file import ModelFile
from attn_parity.options import check_writable, json_option, plain_table, write_json

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter
    from attn_optimized.selector import Assignment

SCHEMA = "attn-parity.select/1"
ONE_LAYER = "layer"


_NEEDED = {"num_heads": "--heads", "head_size": "--head-size"}
_FLOATS = ("float32", "float16", "bfloat16")
_FLOAT8 = ("fp8_e4m3fn", "fp8_e4m3fnuz")


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
        command = click.option(name, rule.name, help=f"{rule.words[0].upper()}{rule.words[1:]}.", **kind)(command)
    return command


@click.command("select")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--attn-type", type=click.Choice([str(attn_type) for attn_type in AttentionType]), help="Attention type; default: decoder."
)
@click.option("--heads", "num_heads", type=int, help="Number of query heads.")
@click.option("--kv-heads", "num_kv_heads", type=int, help="Number of KV heads; default: the number of query heads.")
@click.option("--head-size", type=int)
@click.option("--dtype", type=click.Choice(_FLOATS), help="Dtype of q; default: bfloat16.")
@click.option("--block-size", type=int, help="Slots of a block of the cache; default: 16.")
@click.option(
    "--layout", type=click.Choice([str(layout) for layout in Layout]), help="Layout of the cache; default: the backend chooses."
)
@click.option("--kv-cache-dtype", type=click.Choice((*_FLOAT8, "int8")), help="Of a quantized cache.")
@click.option("--scales", type=click.Choice(get_args(Scales)), help="Of a quantized cache.")
@click.option(
    "--sliding-window", type=click.IntRange(min=1), help="Keys that a token sees, itself included, as models give the number."
)
@click.option("--output-dtype", type=click.Choice(_FLOAT8), help="Dtype of a quantized output.")
@_rule_options
@click.option("--arch", metavar="NAME", help="Architecture, such as gfx942 or sm90; default: this machine's.")
@click.option(
    "--aiter",
    "aiter_version",
    metavar="installed|none|VERSION",
    default="installed",
    show_default=True,
    help="Which AITER there is: this machine's, none, or a version whose signatures are recorded, such as 2026-08.",
)
@click.option(
    "--backend", "backends", multiple=True, metavar="[LAYER=]NAME", help="Use only this backend, for LAYER or for all layers."
)
@json_option
def command(
    file: Path | None, arch: str | None, aiter_version: str, backends: tuple[str, ...], json_file: Path | None, **layer: Any
) -> int:
    """Which backend serves a layer, given by options, or each layer of the model in FILE. Runs nothing; needs no GPU.

    Exit code 1 where no backend does.
    """
    # imported here: Triton decides at import whether kernels are interpreted, and other commands set that first
    from attn_optimized.selector import select_model

    check_writable(json_file)
    given = {name: value for name, value in layer.items() if value is not None and value is not False}
    if file is not None and given:
        raise click.UsageError(f"FILE says all about its layers: leave out {', '.join(sorted(given))}")
    if file is not None and json_file is not None and json_file.exists() and json_file.samefile(file):
        raise click.UsageError(f"--json: {json_file} is FILE itself")
    model = _one_layer(given) if file is None else model_file.load(file)
    aiter, architecture = _aiter(aiter_version), _architecture(arch)
    try:
        layers = {name: model_file.config(name, fields) for name, fields in model.layers.items()}
        assignments = select_model(
            layers,
            allocations=model.allocations,
            kv_sharing=model.kv_sharing,
            architecture=architecture,
            aiter=aiter,
            backends=_by_layer(backends, layers),
        )
    except ContractError as error:
        raise click.ClickException(f"{file}: {error}" if file else str(error)) from error
    except UnsupportedError as error:
        result = {"error": str(error), "layers": {}}
        results.print(str(error), soft_wrap=True)
    else:
        result = {"error": None, "layers": {name: dataclasses.asdict(assignment) for name, assignment in assignments.items()}}
        results.print(f"{model.model} on {architecture}, {aiter}", soft_wrap=True)
        _print_assignments(assignments)
        _print_findings(layers, assignments)
    if json_file:
        about = {"schema": SCHEMA, "model": model.model, "architecture": architecture, "aiter": str(aiter)}
        write_json(json_file, {**about, **result})
    return 1 if result["error"] else 0


def _one_layer(given: dict[str, Any]) -> ModelFile:
    if missing := [option for name, option in _NEEDED.items() if name not in given]:
        raise click.UsageError(f"give a model's FILE, or of a layer at least {', '.join(missing)}")
    fields = {"dtype": "bfloat16", "num_kv_heads": given["num_heads"], **given}
    if (width := fields.pop("sliding_window", None)) is not None:
        fields["window"] = (width - 1, width - 1)
    if AttentionType(fields.get("attn_type", AttentionType.DECODER)).reads_cache:
        fields.setdefault("block_size", 16)
    return ModelFile(schema=model_file.SCHEMA, model="one layer", layers={ONE_LAYER: fields})


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
        raise click.ClickException(str(error)) from error


def _aiter(version: str) -> "Aiter":
    from attn_optimized.aiter_adapter import Aiter, find_aiter, recorded

    if version == "none":
        return Aiter(missing="AITER is not installed (--aiter none)")
    try:
        return find_aiter() if version == "installed" else recorded(version)
    except ValueError as error:
        raise click.ClickException(f"--aiter: {error}") from error


def _print_assignments(assignments: dict[str, "Assignment"]) -> None:
    table = plain_table("layer", "backend", "layout", "why")
    for name, chosen in assignments.items():
        layout = str(chosen.layout or "no cache")
        if chosen.allocation_layout:
            layout += f", as planes beside {chosen.allocation_layout}"
        table.add_row(name, chosen.backend, layout, chosen.why)
    results.print(table)
    layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, chosen in assignments.items():
        for one in chosen.skipped:
            for refusal in one.refusals:
                layers[one.backend, refusal.property, refusal.reason].append(name)
    _print_by_backend(("skipped", "for", "not supported", "why"), layers)


def _print_findings(configs: dict[str, AttentionConfig], assignments: dict[str, "Assignment"]) -> None:
    """Known bugs that layers can meet in the backends that were selected for them."""
    layers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, chosen in assignments.items():
        for finding in BACKENDS.get(chosen.backend, ()):
            if finding.meets(configs[name]):
                layers[chosen.backend, finding.name, finding.seen_in].append(name)
    _print_by_backend(("known bugs of", "for", "finding", "seen in"), layers)


def _print_by_backend(columns: tuple[str, ...], layers: Mapping[tuple[str, str, str], list[str]]) -> None:
    """What is said of a backend, after the layers of which it is; no table if nothing is."""
    if layers:
        table = plain_table(*columns)
        for (backend, what, why), names in layers.items():
            table.add_row(backend, ", ".join(names), what, why)
        results.print()
        results.print(table)

"""The input of `attn-parity select`: one layer by options, a model file of this project, or a model config."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from attn_contract import RULES, AttentionType, ContractError
from attn_fuzz import inputs
from attn_parity import model_file
from attn_parity.model_config import ModelConfig, is_model_config, model_config
from attn_parity.model_config.deployed import Engine, deployed
from attn_parity.model_file import ModelFile

ONE_LAYER = "layer"
_NEEDED = ("num_heads", "head_size")
_OF_THE_ENGINE = frozenset(
    {
        *("dtype", "block_size", "layout", "kv_cache_dtype", "scales", "output_dtype", "tensor_parallel"),
        *(name for name, rule in RULES.items() if rule.holder != "Layer" and name != "kv_sharing"),
    }
)
"""Options about how an engine runs a model, which are allowed with a model config. The config has everything else."""


@dataclass(frozen=True, kw_only=True)
class SelectionInput:
    """The model of a selection: a model file, or a config with options of an engine."""

    source: ModelFile | ModelConfig
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig | None:
        return self.source if isinstance(self.source, ModelConfig) else None

    @property
    def name(self) -> str:
        return self.source.model if isinstance(self.source, ModelFile) else self.source.name

    def engine(self, architecture: str) -> Engine:
        fields = {name: value for name, value in self.given.items() if name != "tensor_parallel"}
        return Engine(float8=own_float8(architecture), tensor_parallel=self.given.get("tensor_parallel", 1), fields=fields)

    def model_on(self, architecture: str) -> ModelFile:
        """The model file, of one device. ContractError: the config does not say all, or contradicts an option."""
        return deployed(self.source, self.engine(architecture)) if isinstance(self.source, ModelConfig) else self.source


def own_float8(architecture: str) -> str:
    """The float8 type that an architecture computes with: e4m3fnuz on gfx940 to gfx942, and OCP's on all later ones."""
    return "fp8_e4m3fnuz" if architecture.startswith("gfx94") else "fp8_e4m3fn"


def read(file: Path | None, given: Mapping[str, Any]) -> SelectionInput:
    """The layers that a file and the given options describe.

    Raises:
        ContractError: a field of the file is wrong.
        UnsupportedError: a model config asks for what is out of this project's scope.
        click.UsageError: options that do not go together.
        InputError: a file that cannot be read.
    """
    if file is None:
        if "tensor_parallel" in given:
            raise click.UsageError("--tensor-parallel goes with a model config: --heads are those of one device")
        return SelectionInput(source=_one_layer(given))
    content = inputs.read_json(file, inputs.MAX_LARGE_BYTES, constant=float)  # its quantization may name each part of the model
    if not is_model_config(content):
        _refuse(given, "FILE says all about its layers")
        return SelectionInput(source=model_file.model_file(inputs.read_json(file)))
    _refuse([name for name in given if name not in _OF_THE_ENGINE], "the config says it")
    return SelectionInput(source=model_config(content, needs_dtype="dtype" not in given), given=given)


def of_options(error: ContractError, file: Path | None, given: Mapping[str, Any]) -> ContractError:
    """The error, which names the options that set its fields. Fields that a file has set keep their names.

    Args:
        given: the options, by the fields that they set.
    """
    is_unset = error.got is None
    options = {
        name: option
        for name, option in _options().items()
        if file is None or name in given or (is_unset and name in _OF_THE_ENGINE)
    }
    if "sliding_window" in given:
        options["window"] = options["sliding_window"]
    options["backend"] = "--backend"
    where, _, field = error.argument.rpartition(": ")
    option = options.get(field.partition("[")[0])
    if option is None:
        return error
    # names of one word, such as `window`, may be words of a sentence
    expected = re.sub(r"[a-z]+_\w+", lambda found: options.get(found[0], found[0]), error.expected)
    got = "nothing" if is_unset else error.got
    return ContractError(f"{where}: {option}" if where not in ("", ONE_LAYER) else option, got, expected)


def _options() -> dict[str, str]:
    """The options of the running command, by the names of its parameters, which are fields of a layer."""
    parameters = click.get_current_context().command.params
    return {str(one.name): one.opts[0] for one in parameters if isinstance(one, click.Option)}


def _refuse(names: Iterable[str], why: str) -> None:
    options = _options()
    if given := sorted(options[name] for name in names):
        raise click.UsageError(f"{why}: leave out {', '.join(given)}")


def _one_layer(given: Mapping[str, Any]) -> ModelFile:
    options = _options()
    if missing := [options[name] for name in _NEEDED if name not in given]:
        raise click.UsageError(f"give a model's FILE, or of a layer at least {', '.join(missing)}")
    if "sliding_window" in given and "window" in given:
        raise click.UsageError("--sliding-window N means --window N-1 N-1: give one of the two")
    if "kv_sharing" in given:
        raise click.UsageError("--kv-sharing: only a model file says whose cache a layer reads")
    fields = {"dtype": "bfloat16", "num_kv_heads": given["num_heads"], **given}
    if (width := fields.pop("sliding_window", None)) is not None:
        fields["window"] = (width - 1, width - 1)
    if AttentionType(fields.get("attn_type", AttentionType.DECODER)).reads_cache:
        fields.setdefault("block_size", 16)
    return ModelFile(schema=model_file.SCHEMA, model="one layer", layers={ONE_LAYER: fields})

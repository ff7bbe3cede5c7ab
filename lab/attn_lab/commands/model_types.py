"""`python -m attn_lab model-types`: which model types of transformers `attn-parity select` answers, and why not the others."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import click
from attn_contract import ContractError, UnsupportedError
from attn_lab.options import check_option
from attn_lab.pages import PAGES, table, write_or_check
from attn_parity.console import notes
from attn_parity.model_config import ModelConfig, model_config
from attn_parity.versions import version

PAGE = PAGES / "model-types.md"
GIVEN: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 500000.0}},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128, "eod_token_id": 0}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
}
"""Fields for types whose defaults make no model in transformers, or a model without attention."""


@click.command("model-types")
@click.argument("names", nargs=-1)
@check_option
def command(names: tuple[str, ...], check: bool) -> int:
    """Ask `attn-parity select` about each causal and image-text model type, and write docs/generated/model-types.md.

    The configs are the defaults of transformers' classes. With NAMES, of these types alone, and without a page. Each model is
    built on meta, which takes half an hour of a CPU for all.
    """
    from transformers.models.auto import modeling_auto

    warnings.simplefilter("ignore")
    sections = {
        "Causal language models": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "Image-text models": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    if names:
        for name in names:
            notes.print(f"{name}: {answer(name)}")
        return 0
    given = "A type whose defaults make no model is given the fields that it needs."
    lines = [
        "# Which model types are answered",
        "",
        "`python -m attn_lab model-types` asks `attn-parity select` about the defaults of each config class of",
        f"transformers {version('transformers')}, and writes this page. {given}",
    ]
    for heading, types in sections.items():
        lines += ["", f"## {heading}", "", *_section({name: answer(name) for name in sorted(types)})]
    return write_or_check({PAGE: "\n".join((*lines, ""))}, "python -m attn_lab model-types", checks=check)


def answer(name: str) -> ModelConfig | str:
    """The config that `select` reads from a type's defaults, or the reason why it refuses them."""
    from transformers import CONFIG_MAPPING

    try:
        return model_config({**GIVEN.get(name, {}), "model_type": name})
    except (ContractError, UnsupportedError) as error:
        return str(error).removeprefix("attn_contract: ").replace(CONFIG_MAPPING[name].__name__, "its config")


def _section(answers: Mapping[str, ModelConfig | str]) -> Iterator[str]:
    whole = [name for name, one in answers.items() if isinstance(one, ModelConfig) and not one.not_answered]
    parts = {name: one for name, one in answers.items() if isinstance(one, ModelConfig) and one.not_answered}
    refused: dict[str, list[str]] = defaultdict(list)
    for name, one in answers.items():
        if isinstance(one, str):
            refused[one].append(name)
    yield f"{len(whole)} are answered, {len(parts)} in part, {len(answers) - len(whole) - len(parts)} refused."
    yield from ("", f"**Answered**: {', '.join(f'`{name}`' for name in whole)}.", "")
    rows = ((f"`{name}`", "; ".join(one.not_answered)) for name, one in parts.items())
    yield from table(("in part", "layers that are not answered"), rows)
    yield ""
    yield from table(("refused", "why"), ((", ".join(f"`{one}`" for one in of_it), why) for why, of_it in refused.items()))

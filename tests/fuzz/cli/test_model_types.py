"""The table of model types, held to the config classes and the attention modules of transformers."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from attn_parity.model_config import MODEL_TYPES, OUT_OF_SCOPE_TYPES, WRAPPERS, model_config
from attn_parity.model_config.unknown import INERT

transformers = pytest.importorskip("transformers")
MODELS = Path(transformers.__file__).parent / "models"
OF_NORMS_AND_DROPOUT = re.compile(r"(eps|epsilon|dropout|pdrop|norm)$")
OF_OTHER_PARTS = {"attn_config"}  # the table has its fields


def attributes_of_config(source: str) -> set[str]:
    """What the classes of a module named Attention read of a config: `config.x`, `self.config.x` and getattr(config, "x")."""
    read = set()
    for part in ast.parse(source).body:
        if not isinstance(part, ast.ClassDef) or "Attention" not in part.name or re.search("Vision|Audio", part.name):
            continue
        for node in ast.walk(part):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == "config":
                read.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and "config" in ast.unparse(node.args[0]):
                read.add(ast.literal_eval(node.args[1]))
    return read


def class_of(model_type: str) -> Any:
    """The config class of a type's models."""
    record = MODEL_TYPES.get(model_type)
    return transformers.CONFIG_MAPPING[(record and record.class_of) or model_type]


def module_of(model_type: str) -> str:
    name = class_of(model_type).__module__.split(".")[-2]
    return (MODELS / name / f"modeling_{name}.py").read_text()


def unknown_reads(model_type: str, source: str) -> set[str]:
    record = MODEL_TYPES[model_type]
    known = {*record.fields, *record.fixed, *record.inert, *INERT, *OF_OTHER_PARTS}
    return {name for name in attributes_of_config(source) - known if not OF_NORMS_AND_DROPOUT.search(name)}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_field_that_attention_reads_is_known(model_type):
    assert unknown_reads(model_type, module_of(model_type)) == set()


def test_a_field_that_a_new_version_reads_is_found():
    source = module_of("llama").replace("config.attention_dropout", "config.attention_sinks")
    assert unknown_reads("llama", source) == {"attention_sinks"}
    source = module_of("llama").replace('getattr(config, "head_dim"', 'getattr(config, "sliding_window"')
    assert unknown_reads("llama", source) == {"sliding_window"}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_the_config_class(model_type):
    defaults = MODEL_TYPES[model_type].defaults
    windows = {"use_sliding_window": True} if "use_sliding_window" in defaults else {}
    built = class_of(model_type)(**windows).to_dict()
    for name, expected in defaults.items():
        outer, _, inner = name.partition(".")
        got: Any = built[outer][inner] if inner else built[outer]
        assert (name, got) == (name, True if name in windows else expected)


@pytest.mark.parametrize("model_type", [*MODEL_TYPES, *WRAPPERS])
def test_a_file_that_transformers_writes_is_read(model_type):
    # the default heads of GLM-4.5 do not divide its default hidden size
    changes = {"head_dim": 128} if model_type == "glm4_moe" else {}
    written = class_of(model_type)(**changes).to_json_string(use_diff=False)
    read = model_config(json.loads(written))
    assert read.groups
    assert read.unknown == ()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_two_names_of_a_field_mean_the_same(model_type):
    """A class takes the value of an alias for the field's."""
    fields = MODEL_TYPES[model_type].fields
    aliases = {alias: name for alias, name in class_of(model_type).attribute_map.items() if name in fields}
    assert {alias: fields.get(alias) for alias in aliases} == {alias: fields[name] for alias, name in aliases.items()}


def test_wrappers_hold_the_text_part_that_is_said():
    for model_type, wrapper in WRAPPERS.items():
        assert transformers.CONFIG_MAPPING[model_type]().text_config.model_type == wrapper.text


SAID_OTHERWISE = {
    "state_size": ("state_size",),
    "mamba_d_state": ("mamba_d_state",),
    "linear_attention": ("layer_types", "linear_num_heads"),
}


@pytest.mark.parametrize("model_type", [name for name in OUT_OF_SCOPE_TYPES if name in transformers.CONFIG_MAPPING])
def test_a_type_out_of_scope_has_what_is_refused(model_type):
    built = transformers.CONFIG_MAPPING[model_type]().to_dict()
    for name in OUT_OF_SCOPE_TYPES[model_type]:
        fields = SAID_OTHERWISE.get(name, (name,))
        assert any(field in built for field in fields), name

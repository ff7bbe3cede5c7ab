"""A model config that is wrong, or asks for what is not known, is one line that names the field, and exit code 2."""

import json
from pathlib import Path

import pytest
from attn_contract import ContractError, UnsupportedError
from attn_parity.model_config import model_config
from attn_parity.model_config.deployed import Engine, deployed
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")
CONFIGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parents[1] / "configs").glob("*.json")}
LLAMA = {**CONFIGS["llama-3.1-8b"], "num_hidden_layers": 2}
ON_MI300 = ("--arch", "gfx942", "--aiter", "2026-08")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([128, 64, 1 << 70]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_json_in_any_field_is_answered_or_refused(data):
    name = data.draw(st.sampled_from(["llama-3.1-8b", "gemma-2-9b", "gemma-3-4b", "mimo-v2-flash", "falcon-7b"]))
    config = json.loads(json.dumps(CONFIGS[name]))
    inner = config.get("text_config", config)
    names = st.sampled_from(sorted({*inner, *config, "quantization_config", "attention_sinks", "layer_types", "index_topk"}))
    part = data.draw(st.sampled_from([inner, config]))
    inner["num_hidden_layers"] = 2
    part.update(data.draw(st.dictionaries(names, JSON, min_size=1, max_size=3)))
    said = ""
    try:
        deployed(model_config(config), Engine(float8="fp8_e4m3fn", fields={"dtype": "float16"}))
    except (ContractError, UnsupportedError) as error:
        said = str(error)
    assert len(said) < 600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_attention_heads": 36, "head_dim": 128},
            "num_attention_heads: got 36, expected a multiple of num_key_value_heads (8)",
        ),
        (
            {"hidden_size": 4097},
            "hidden_size: got 4097, expected a multiple of num_attention_heads (32), since no field says the",
        ),
        (
            {"attention_sinks": 4},
            "attention_sinks: got 4, expected null: it is not known what it asks of llama (near: attention_",
        ),
        ({"sliding_window": 4096}, "sliding_window: got 4096, expected null: it is not known what it asks of llama"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types: got ['sliding_attention', "),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config: got {'chunk_size': 8}"),
        ({"attention_window": 0}, "attention_window: got 0"),
        ({"window\u001b[2J": 4}, "'window\\x1b[2J': got 4"),
        ({"window" * 1000: "x" * 1000}, "'windowwindow...wwindowwindow': got 'xxxxxx"),
        ({"model_type": "lama"}, "model_type: got 'lama', expected one whose attention is known, such as llama"),
        (
            {"model_type": "lama"},
            "; of any other model, select takes a model file, which says what its layers ask for (docs/guide/",
        ),
        ({"model_type": None}, "model_type: got nothing"),
        ({"model_type": ["llama"]}, "model_type: got ['llama']"),
        (
            {"torch_dtype": None},
            "dtype: got nothing, expected float32, float16 or bfloat16: the config does not say it, so give",
        ),
        ({"dtype": "float16"}, "torch_dtype: got 'bfloat16', expected 'float16', as dtype says"),
        (
            {"architectures": ["LlamaBidirectionalModel"]},
            "architectures: got 'LlamaBidirectionalModel', expected llama and one of Model",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures: got 'LlamaForCausalLM', expected a list of one name"),
        ({"quantization_config": 8}, "quantization_config: got 8"),
        ({"quantization_config": {"kv_cache_quant_algo": "NVFP4"}}, "kv_cache_quant_algo: got 'NVFP4', expected FP8"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 4, "type": "int"}}}, "kv_cache_scheme.num_bits: got 4"),
        ({"quantization_config": {"kv_cache_bits": 8}}, "quantization_config.kv_cache_bits: got 8"),
    ],
)
def test_what_is_wrong_is_named(changes, said, attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    run = attn_parity("select", "config.json", *ON_MI300)
    assert run.code == 2
    assert run.err.startswith("attn-parity: config.json: ")
    assert said in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: got True, expected False"),
        ("mpt-7b", {"attn_config": {"alibi": False}}, "attn_config.alibi: got False, expected True"),
        ("mpt-7b", {"attn_config": {"window": 8}}, "attn_config.window: got 8"),
        ("mpt-7b", {"attn_config": 5}, "attn_config: got 5"),
        ("bert-base", {"add_cross_attention": True}, "add_cross_attention: got True"),
        ("gemma-2-9b", {"use_bidirectional_attention": True}, "use_bidirectional_attention: got True"),
        ("gemma-2-9b", {"sliding_window": None}, "sliding_window: got nothing, expected a value: there are layers of sliding"),
        ("qwen2.5-7b", {"layer_types": ["sliding_attention"] * 28}, "use_sliding_window: got False, expected true: there are"),
        ("gemma-3-4b", {"text_config": 5}, "text_config: got 5"),
        ("gemma-3-4b", {"text_config": {"model_type": "llava"}}, "text_config.model_type: got 'llava', expected one whose"),
        ("llama-3.1-8b", {"attn_scale": 0.5}, "attn_scale: got 0.5"),
        ("gemma-3-4b", {"mm_tokens_per_image": 0}, "mm_tokens_per_image: got 0"),
        ("internvl3-8b", {"cross_attention_layers": [3, 8]}, "cross_attention_layers: got [3, 8]"),
        ("bloom-7b1", {"num_attention_heads": 16}, "n_head: got 32, expected 16, as num_attention_heads says"),
        (
            "bart-large-cnn",
            {"decoder_attention_heads": 15},
            "d_model: got 1024, expected a multiple of decoder_attention_heads",
        ),
        ("bart-large-cnn", {"architectures": ["BartForCausalLM"]}, "architectures: got 'BartForCausalLM'"),
    ],
)
def test_what_is_not_known_of_a_model_is_refused(name, changes, said):
    with pytest.raises(ContractError) as error:
        model_config({**CONFIGS[name], **changes})
    assert said in str(error.value)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_a_size_that_nobody_says_is_asked_for(field, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = {name: value for name, value in LLAMA.items() if name != field}
    with pytest.raises(ContractError) as error:
        model_config(config)
    assert str(error.value).startswith(f"{field}: got nothing, expected a value: ")


def test_a_field_out_of_scope_is_refused_in_any_model():
    for name in ("kv_lora_rank", "index_topk", "rswa_window", "state_size"):
        with pytest.raises(UnsupportedError) as error:
            model_config({**LLAMA, name: 8})
        assert f"({name})" in str(error.value)
    with pytest.raises(UnsupportedError, match="V of another width than K"):
        model_config({**LLAMA, "v_head_dim": 64})


def test_what_is_elsewhere_is_ignored_and_what_is_not_known_is_told():
    elsewhere = {"vocab_size": -1, "num_experts": "many", "rms_norm_eps": [], "hidden_act": 5}
    assert model_config({**LLAMA, **elsewhere}).unknown == ()
    assert model_config({**LLAMA, **dict.fromkeys(sorted(INERT), 1)}).unknown == ()
    others = {"rocket": 5, "attention_sinks": None, "rocket\x1b": 5, "steps": 1}
    assert model_config({**LLAMA, **others}).unknown == ("rocket", "attention_sinks", "'rocket\\x1b'", "steps")
    gemma = CONFIGS["gemma-3-4b"]
    told = model_config({**gemma, "text_config": {**gemma["text_config"], "inner": 1}, "outer": 1}).unknown
    assert told == ("outer", "inner")


def test_the_command_prints_what_is_not_known(attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **{f"rocket{i}": i for i in range(30)}}))
    run = attn_parity("select", "config.json", *ON_MI300, "--json", "selected.json")
    assert "not known, so not looked at: rocket0, rocket1, " in run.out
    assert "rocket19 and 10 more\n" in run.out
    assert len(json.loads((tmp_path / "selected.json").read_text())["unknown"]) == 30


SIZES = {
    **dict.fromkeys((Meaning.NUM_LAYERS, Meaning.DECODER_LAYERS, Meaning.KV_HEADS), 2),
    **dict.fromkeys((Meaning.HEADS, Meaning.DECODER_HEADS), 4),
    **dict.fromkeys((Meaning.HIDDEN_SIZE, Meaning.LATENT_SIZE, Meaning.NOPE_SIZE, Meaning.ROPE_SIZE), 64),
}
SOUNDING = {
    *("use_bidirectional_attention", "attn_logit_softcapping", "logits_soft_cap", "softcap", "softmax_scale", "softmax_plus"),
    *("sparse_attention", "use_sparse", "use_mla", "mla_scale", "decoder_only", "encoder_only", "index_topk_pattern"),
    *("compression_config", "quantization", "per_layer_config", "is_heterogeneous", "block_configs", "hidden_size_per_head"),
    *("dual_chunk_attention_config", "llama_4_scaling", "is_mm_prefix_lm", "text_config", "pruned_heads", "is_causal"),
    *(field.rpartition(".")[2] for record in MODEL_TYPES.values() for field in (*record.fields, *record.fixed, *record.inert)),
} - {"attention_probs_dropout_prob", "attn_pdrop"}  # of training alone


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_field_of_another_type_is_passed_over_in_silence(model_type, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: [])  # takes most of the time
    record = MODEL_TYPES[model_type]
    without = {  # what code takes where there is no such field
        "is_causal": True,
        "is_decoder": record.kind == "decoder",
        "is_encoder_decoder": record.kind == "encoder_decoder",
        "add_cross_attention": False,
    }
    sizes = {meaning: name for name, meaning in reversed(record.fields.items()) if meaning in SIZES}
    config = {"model_type": model_type, **{name: SIZES[meaning] for meaning, name in sizes.items()}}
    silent = []
    for name in SOUNDING - {*record.fields, *record.inert, *INERT}:
        for value in (True, False, 3):
            try:
                told = model_config({**config, name: value}).unknown
            except (ContractError, UnsupportedError) as error:
                told = (str(error),)
            if not any(name in text for text in told) and value not in (*record.fixed.get(name, ()), without.get(name)):
                silent.append((name, value))
    assert silent == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama-3.1-8b", {"is_causal": False}),
        ("qwen2.5-7b", {"is_causal": False}),
        ("gemma-3-1b", {"is_causal": None}),
        ("bart-large-cnn", {"is_causal": None}),
        ("gemma-3-4b", {"is_causal": False}),
        ("gpt2", {"scale_attn_weights": None}),
        ("gpt2", {"hidden_size": 1600}),
        ("bart-large-cnn", {"num_hidden_layers": 6}),
        ("glm-4.7-flash", {"head_dim": 192}),
        ("llama-3.1-8b", {"quantization_config": {"export": {"kv_cache_group": ["*k_proj", "*v_proj"]}}}),
        ("llama-3.1-8b", {"quantization_config": {"quantization": {"kv_cache_quant_algo": "FP8"}}}),
        ("llama-3.1-8b", {"quantization_config": {"use_kv_cache": False}}),
        (
            "gemma-3-4b",
            {"torch_dtype": "bfloat16", "text_config": {**CONFIGS["gemma-3-4b"]["text_config"], "dtype": "float16"}},
        ),
    ],
)
def test_a_value_that_changes_attention_is_not_passed_over(name, fields):
    with pytest.raises(ContractError) as error:
        deployed(model_config({**CONFIGS[name], **fields}), Engine(float8="fp8_e4m3fn", fields={"dtype": "float16"}))
    assert any(field in str(error.value) for field in fields)


def test_a_quantized_model_without_a_quantized_cache_is_answered():
    export = {"kv_cache_group": [], "min_kv_scale": 0.0, "pack_method": "reorder"}
    of_layers = {"*.self_attn.kv_proj": {"weight": {"dtype": "fp8_e4m3"}, "output_tensors": None}}
    quark = {"quant_method": "quark", "export": export, "kv_cache_quant_config": {}, "kv_cache_post_rope": False}
    config = {**LLAMA, "quantization_config": {**quark, "layer_quant_config": of_layers, "softmax_quant_spec": None}}
    (layer,) = deployed(model_config(config), Engine(float8="fp8_e4m3fn")).layers.values()
    assert "kv_cache_dtype" not in layer


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type": "llama", "hidden_size": 64, "hidden_size": 128}', "is there twice"),
        (b"null", "config.json: "),
    ],
)
def test_a_file_that_is_no_config_is_one_line(content, said, attn_parity, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    run = attn_parity("select", "config.json", *ON_MI300)
    assert run.code == 2
    assert said in run.err
    assert run.err.count("\n") == 1


def test_what_transformers_refuses_is_one_line(attn_parity, tmp_path):
    pytest.importorskip("transformers")
    # its class for Gemma 2 wants the hidden size to be a multiple of the heads, whatever the head size
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["gemma-2-9b"], "hidden_size": 3585}))
    run = attn_parity("select", "config.json", *ON_MI300)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "config: got fields that contradict each other, expected fields that transformers" in run.err


def test_wrappers_are_no_models_of_their_own():
    assert not set(WRAPPERS) & set(MODEL_TYPES)

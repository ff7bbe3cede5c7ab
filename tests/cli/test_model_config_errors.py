"""A model config that is wrong, or asks for what is not known, is one line that names the field, and exit code 2."""

import json
from pathlib import Path

import pytest
from attn_contract import ContractError, UnsupportedError
from attn_parity.model_config import model_config
from attn_parity.model_config.built import NotAnsweredError
from attn_parity.model_config.deployed import Engine, deployed
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")
CONFIGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "configs").glob("*.json")}
LLAMA = {**CONFIGS["llama-3.1-8b"], "num_hidden_layers": 2}
MIMO = {"hybrid_layer_pattern": [0, 1]}
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
        ({"hidden_size": 4097}, "config: got fields that contradict each other, expected fields that transformers"),
        ({"head_dim": 1.5}, "Field 'head_dim' with value 1.5"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: got 1000000, expected an int up to 1000"),
        ({"v_head_dim": 64}, "v_head_dim: got 64, expected 128, as in the model that transformers builds"),
        (
            {"attention_sinks": 4},
            "attention_sinks: got 4, expected null: it is not known what it asks of llama (near: attention_",
        ),
        ({"sliding_window": 4096}, "sliding_window: got 4096, expected null: it is not known what it asks of llama"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types: got ['sliding_attention', "),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config: got {'chunk_size': 8}"),
        ({"attention_window": 0}, "attention_window: got 0"),
        ({"window\u001b[2J": 4}, "'window\\x1b[2J': got 4"),
        ({"window" * 1000: "x" * 1000}, "'windowwindow...wwindowwindow': got 'xxxxxx"),
        (
            {"model_type": "lama", "architectures": ["LamaForCausalLM"]},
            "model_type: got 'lama', expected one that transformers",
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
            "architectures: got 'LlamaBidirectionalModel', expected a class of transformers for llama: another class may",
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


def small(name: str, **changes: object) -> dict[str, object]:
    """A config of few layers."""
    config = {**json.loads(json.dumps(CONFIGS[name])), **changes}
    text = config.get("text_config", config)
    if isinstance(text, dict) and "layer_types" not in text:
        text |= {count: 2 for count in ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers") if count in text}
    return config


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mpt-7b", {"attn_config": {"alibi": False}}, "attn_config.alibi: got False, expected true"),
        ("mpt-7b", {"attn_config": {"window": 8}}, "window: got 8"),
        ("bert-base", {"add_cross_attention": True}, "add_cross_attention: got True"),
        ("gemma-2-9b", {"use_bidirectional_attention": True}, "is_causal=False beside a mask that says otherwise"),
        ("gemma-2-9b", {"sliding_window": None}, "transformers builds no model of it on meta"),
        ("qwen2.5-7b", {"layer_types": ["sliding_attention"] * 28}, "transformers builds no model of it on meta"),
        ("gemma-3-4b", {"text_config": 5}, "Field 'text_config' with value 5"),
        ("gemma-3-4b", {"mm_tokens_per_image": 0}, "mm_tokens_per_image: got 0"),
        ("gemma-3-4b", {"is_causal": False}, "is_causal: got False"),
        ("internvl3-8b", {"cross_attention_layers": [3, 8]}, "cross_attention_layers: got [3, 8]"),
        ("bloom-7b1", {"num_attention_heads": 16}, "num_attention_heads: got 16, expected 32, as n_head says"),
        ("bloom-7b1", {"is_causal": False}, "is_causal=False, which BloomAttention does not read"),
        ("bart-large-cnn", {"decoder_attention_heads": 15}, "embed_dim must be divisible by num_heads"),
        ("gpt2", {"hidden_size": 1600}, "hidden_size: got 1600, expected 768, as n_embd says"),
        ("glm-4.7-flash", {"head_dim": 192}, "head_dim: got 192, expected 64, as qk_rope_head_dim says"),
        (
            "mimo-v2-flash",
            {**MIMO, "swa_num_key_value_heads": 4},
            "swa_num_key_value_heads: got 4, expected 8, as in the model",
        ),
        (
            "mimo-v2-flash",
            {**MIMO, "add_full_attention_sink_bias": True},
            "add_full_attention_sink_bias: got True, expected False",
        ),
        ("minimax-m2", {"attn_type_list": [0] + [1] * 61}, "attn_type_list: got [0, 1, "),
        ("llama-3.1-8b", {"rswa_window": 5}, "R-SWA (rswa_window) not supported"),
        ("deepseek-v3.2", {"indexer_of_the_future": True}, "indexer_of_the_future: got True, expected null"),
        ("deepseek-v3", {"index_topk": 2048}, "an indexer (index_topk) not supported: attn_contract.Indexer has"),
        ("llama-3.1-8b", {"attention_head_dim": 64}, "attention_head_dim: got 64, expected 128, as in the model"),
        ("llama-3.1-8b", {"num_heads": 16}, "num_heads: got 16, expected 32, as in the model"),
        ("llama-3.1-8b", {"num_kv_heads": 32}, "num_kv_heads: got 32, expected 8, as in the model"),
        ("llama-3.1-8b", {"use_sliding_window": True}, "use_sliding_window: got True, expected False, as in the model"),
        ("gpt-oss-120b", {"use_sliding_window": False}, "use_sliding_window: got False, expected True, as in the model"),
        ("llama-3.1-8b", {"use_sinks": False}, "use_sinks: got False"),
        ("llama-3.1-8b", {"moe_attention_gate": True}, "moe_attention_gate: got True"),
        ("gemma-3-4b", {"images_are_causal": False}, "images_are_causal: got False"),
        ("internvl3-8b", {"use_bidirectional_image": True}, "use_bidirectional_image: got True"),
        ("llama-3.1-8b", {"kv_lora_rank": 8}, "MLA (kv_lora_rank) not supported"),
    ],
)
def test_what_is_not_known_of_a_model_is_refused(name, changes, said):
    with pytest.raises((ContractError, UnsupportedError)) as error:
        model_config(small(name, **changes))
    assert said in str(error.value)


def test_false_is_the_telling_value_of_a_positive_flag():
    for name, changed in (("llama-3.1-8b", "full_attention"), ("qwen2.5-7b", "full_attention")):
        causal, both_ways = (model_config(small(name, is_causal=value)).groups for value in (True, False))
        assert list(causal) == [changed]
        assert {str(group.attn_type) for group in both_ways.values()} == {"encoder_only"}
    assert list(model_config(small("bert-base", is_decoder=True)).groups) == ["full_attention"]
    assert list(model_config(small("bart-large-cnn", architectures=["BartForCausalLM"])).groups) == ["full_attention"]


def test_what_is_not_known_is_told():
    others = {"rocket": 5, "attention_sinks": None, "rocket\x1b": 5, "steps": 1}
    assert model_config({**LLAMA, **others}).unknown == ("rocket", "attention_sinks", "'rocket\\x1b'", "steps")
    gemma = small("gemma-3-4b", outer=1)
    gemma["text_config"]["inner"] = 1  # pyright: ignore[reportIndexIssue]
    assert model_config(gemma).unknown == ("outer", "inner")


def test_fields_of_others_than_attention_are_passed_over_or_told():
    """Fields about the states of linear layers, rewards, images, and the generation of text."""
    others = {"mamba_ssm_dtype": "float32", "num_reward_heads": 0, "encoder_no_repeat_ngram_size": 0, "mask_init_id": 12}
    assert model_config({**LLAMA, **others}).unknown == ()
    told = {
        "mtp_loss_scaling_factor": 0.05,
        "block_mlp_init_scale": 1.0,
        "encoder_patch_size": 16,
        "position_embedding_xdrope": False,
        "use_rotary_pos_emb": True,
    }
    assert model_config({**LLAMA, **told}).unknown == tuple(told)
    seeing = small("gemma-3-4b", use_unified_vision_chunk=True, img_token_compression_config={"merge": 2}, ignore_index=-100)
    read = model_config(seeing)
    assert read.unknown == ("use_unified_vision_chunk",)
    assert "img_token_compression_config" in read.left_out


@pytest.mark.nightly
def test_a_class_is_found_under_another_spelling():
    kimi = {"model_type": "kimi_k25", "text_config": {**CONFIGS["kimi-k2"], "model_type": "deepseek_v3"}, "dtype": "bfloat16"}
    named = {**kimi, "architectures": ["KimiK25ForConditionalGeneration"]}
    assert model_config(named).groups == model_config(kimi).groups


def test_what_python_writes_of_infinity_is_read_in_a_config_alone(attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "time_step_limit": [0.0, float("inf")], "names": "n" * 2**20}))
    run = attn_parity("select", "config.json", *ON_MI300)
    assert run.code == 0, run.err
    (tmp_path / "model.json").write_text('{"schema": "model", "scale": Infinity}')
    run = attn_parity("select", "model.json", *ON_MI300)
    assert (run.code, "Infinity is not a finite number" in run.err) == (2, True)


def test_the_command_prints_what_is_not_known(attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **{f"rocket{i}": i for i in range(30)}}))
    run = attn_parity("select", "config.json", *ON_MI300, "--json", "selected.json")
    assert "not known, so not looked at: rocket0, rocket1, " in run.out
    assert "rocket19 and 10 more\n" in run.out
    assert len(json.loads((tmp_path / "selected.json").read_text())["unknown"]) == 30


@pytest.mark.parametrize(
    ("name", "fields"),
    [
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
        deployed(model_config(small(name, **fields)), Engine(float8="fp8_e4m3fn", fields={"dtype": "float16"}))
    assert any(field in str(error.value) for field in fields)


def test_a_quantized_model_without_a_quantized_cache_is_answered():
    export = {"kv_cache_group": [], "min_kv_scale": 0.0, "pack_method": "reorder"}
    of_layers = {"*.self_attn.kv_proj": {"weight": {"dtype": "fp8_e4m3"}, "output_tensors": None}}
    quark = {"quant_method": "quark", "export": export, "kv_cache_quant_config": {}, "kv_cache_post_rope": False}
    config = {**LLAMA, "quantization_config": {**quark, "layer_quant_config": of_layers, "softmax_quant_spec": None}}
    (layer,) = deployed(model_config(config), Engine(float8="fp8_e4m3fn")).layers.values()
    assert "kv_cache_dtype" not in layer


def test_a_missing_dtype_is_asked_for_before_the_model_is_built(attn_parity, tmp_path, monkeypatch):
    def build(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr("attn_parity.model_config.from_transformers.layers_of", build)
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in LLAMA.items() if "dtype" not in key}))
    ended = attn_parity("select", "config.json", *ON_MI300)
    assert ended.code == 2
    assert "dtype: got nothing, expected float32, float16 or bfloat16: the config does not say it, so give --dtype" in ended.err


def test_attention_over_depth_is_no_layer_and_hides_no_reason():
    """Inkling 2 attends over the blocks of layers before, too, 4,608 wide: no backend serves that, and no request has it."""
    inkling = {"model_type": "inkling2_text", "architectures": ["Inkling2ForCausalLM"], "dtype": "bfloat16"}
    with pytest.raises(NotAnsweredError, match="an argument of attention that is not known: position_bias"):
        model_config({**inkling, "num_hidden_layers": 6})

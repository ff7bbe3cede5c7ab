"""`attn-parity select config.json`: public model configs are answered or refused by name."""

import functools
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attn_parity.commands.select.selected import print_vllm, spans
from attn_parity.commands.select.vllm_arguments import VllmArguments
from attn_parity.model_config import ModelConfig, model_config
from attn_parity.model_config.deployed import Engine, deployed

from tests.cli.answers import ANSWERS, IN_PART, REFUSED, VLLM
from tests.support.mostly_nightly import mostly_nightly

pytest.importorskip("transformers")
CONFIGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "configs").glob("*.json")}
ON_MI300 = ("--arch", "gfx942", "--aiter", "2026-08")


@functools.cache
def _built(content: str) -> ModelConfig:
    return model_config(json.loads(content))


@pytest.fixture(autouse=True)
def built_once(monkeypatch):
    """Several tests ask about one config, and to build its model takes seconds."""
    monkeypatch.setattr(
        "attn_parity.commands.select.selection_input.model_config", lambda content, **_: _built(json.dumps(content))
    )


@pytest.fixture
def select(attn_parity, tmp_path):
    """Runs the command on a config; returns how it ended, and the JSON that it wrote."""

    def run(config: dict[str, Any], *options: object) -> tuple[Any, dict[str, Any]]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        ended = attn_parity("select", "config.json", *ON_MI300, "--json", "selected.json", *options)
        return ended, json.loads((tmp_path / "selected.json").read_text()) if ended.code != 2 else {}

    return run


def test_every_config_has_an_answer():
    assert sorted(CONFIGS) == sorted((*ANSWERS, *IN_PART, *REFUSED))
    assert len(CONFIGS) >= 26


IN_EACH_RUN = (
    *("llama-3.1-8b", "gpt-oss-120b", "gemma-3-4b", "deepseek-v3", "bloom-7b1", "bert-base", "bart-large-cnn", "minimax-m3"),
)
"""Each has a rule, a kind of attention or a format that the others have not. To build a model takes a second."""


@pytest.mark.parametrize("name", mostly_nightly(ANSWERS, IN_EACH_RUN))
def test_a_config_is_answered(name, select):
    ended, result = select(CONFIGS[name])
    assert ended.code == 0, ended.out + ended.err
    assert list(result["groups"]) == list(ANSWERS[name])
    for group, expected in ANSWERS[name].items():
        got = result["groups"][group]
        assert (spans(got["layers"]), got["num_heads"], got["num_kv_heads"], got["head_size"]) == expected[:4]
        assert (got["rules"], result["layers"][group]["backend"]) == (expected.rules, expected.backend)
        assert got["scale"] == pytest.approx(expected.scale)
        assert spans(got["layers"]) in " ".join(ended.out.split())
    if VLLM[name] is None:
        assert result["vllm"]["line"] is None
        return
    words = shlex.split(ended.out.splitlines()[-1])
    assert words[:4] == ["vllm", "serve", "MODEL", "--attention-backend"]
    assert words[4] == VLLM[name]
    assert shlex.split(result["vllm"]["line"]) == words


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_is_refused_by_name(name, select):
    ended, result = select(CONFIGS[name])
    assert ended.code == 1
    assert ended.out.startswith(f"config.json: {REFUSED[name]}")
    assert result["error"].startswith(REFUSED[name])
    assert result["layers"] == {}


def test_the_line_for_vllm_is_of_the_layers_whose_backend_it_can_choose(select):
    """vLLM's model of MiniMax-M3 chooses the backend of its sparse layers, and the argument that of the others."""
    ended, result = select(CONFIGS["minimax-m3"])
    assert result["vllm"]["backend"] == "ROCM_ATTN"
    assert "--block-size 128" in result["vllm"]["line"]
    assert "MINIMAX_M3_SPARSE: vLLM's model chooses it for indexed_attention, whatever the argument says" in ended.out
    ended, result = select(CONFIGS["minimax-m3"], "--block-size", "64")
    assert ended.code == 1
    assert "indexed_attention: block size 64 not supported: a block of the cache is a block that is selected" in result["error"]


@pytest.mark.parametrize(
    ("top_k", "served"), [(2048, True), pytest.param(1920, True, marks=pytest.mark.nightly), (2000, False)]
)
def test_picks_are_served_where_vllm_converts_them_all(top_k, served, select):
    ended, result = select({**CONFIGS["deepseek-v3.2"], "index_topk": top_k})
    assert f"selection_unit 1, head_size_v 512, top_k {top_k}" in " ".join(ended.out.split()) or not served
    assert (ended.code == 0) == served
    assert served or f"indexed_attention: top_k {top_k} not supported: vLLM's kernel converts" in result["error"]


def test_a_model_that_is_answered_in_part_has_no_line_to_copy(select):
    ended, result = select(CONFIGS["qwen3-next-80b-a3b"])
    assert ended.code == 3, ended.err
    assert result["not_answered"]
    assert result["vllm"]["line"] is None
    assert "vllm serve" not in ended.out


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("architecture", ["gfx942", "gfx950", "gfx1201", "sm90"])
def test_latent_attention_has_one_kv_head_on_every_device(architecture, heads, select):
    devices = 128 // heads
    ended, result = select(CONFIGS["deepseek-v3"], "--arch", architecture, "--tensor-parallel", str(devices))
    assert ended.code == 0
    assert result["layers"]["full_attention"]["backend"] == "TRITON_MLA"
    assert result["layers"]["full_attention"]["layout"] == "LATENT"
    vllm = result["vllm"]
    if architecture in ("gfx942", "gfx950"):  # vLLM's list begins with AITER's
        assert (vllm["backend"], vllm["own_backend"]) == ("ROCM_AITER_MLA", "TRITON_MLA")
        assert f"this project's first choice, which vLLM serves, too: {vllm['own_line']}\n" in ended.out
        assert "this project's ROCM_AITER_MLA does not serve these layers: " in ended.out
    else:
        assert (vllm["backend"], vllm["own_backend"]) == ("TRITON_MLA", None)


@pytest.mark.nightly
def test_yarn_scales_the_logits_of_latent_attention():
    config = {**CONFIGS["deepseek-v3"], "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}}
    plain, scaled = (_built(json.dumps(one)).groups["full_attention"].scale for one in (CONFIGS["deepseek-v3"], config))
    assert scaled == pytest.approx(plain * 1.3688879**2)
    assert scaled == pytest.approx(0.1352337)
    unscaled = {**config, "rope_scaling": {"type": "yarn", "factor": 40, "mscale_all_dim": 0}}
    assert model_config(unscaled).groups["full_attention"].scale == plain


@pytest.mark.parametrize(
    ("name", "changes", "numbers"),
    [
        (
            "qwen2.5-7b",
            {"use_sliding_window": True, "max_window_layers": 21},
            {"full_attention": "0-20", "sliding_attention": "21-27"},
        ),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 28}, {"full_attention": "0-27"}),
        ("qwen3-30b-a3b", {"use_sliding_window": True, "sliding_window": 9}, {"sliding_attention": "0-47"}),
        ("command-a", {"sliding_window_pattern": 2}, {"sliding_attention": "0, 2, .., 62", "full_attention": "1, 3, .., 63"}),
        ("llama-3.1-8b", {"v_head_dim": 128}, {"full_attention": "0-31"}),
        ("bert-base", {"is_decoder": True}, {"full_attention": "0-11"}),
        ("phi-4", {"sliding_window": 262144}, {"sliding_attention": "0-39"}),
    ],
)
def test_layers_follow_their_fields(name, changes, numbers):
    groups = model_config({**CONFIGS[name], **changes}).groups
    assert {name: spans(group.layers) for name, group in groups.items()} == numbers


@pytest.mark.parametrize(("devices", "sizes"), [(1, {4: 32, 8: 16}), (4, {1: 32, 2: 16}), (8, {1: 16})])
def test_blocks_of_layers_that_share_memory_have_as_many_bytes(devices, sizes):
    """By the KV heads of a device."""
    layers = deployed(_built(json.dumps(CONFIGS["mimo-v2-flash"])), Engine(float8="fp8_e4m3fn", tensor_parallel=devices)).layers
    assert {fields["num_kv_heads"]: fields["block_size"] for fields in layers.values()} == sizes
    assert {fields["layout"] for fields in layers.values()} == {"CONTENT_PACKED"}


def test_a_narrow_window_holds_inside_an_image():
    config = json.loads(json.dumps(CONFIGS["gemma-3-4b"]))
    config["text_config"]["sliding_window"] = 128
    groups = model_config(config).groups
    assert groups["sliding_attention"].rules["ranges_clamped"] is True
    assert "ranges_clamped" not in groups["full_attention"].rules


def test_what_the_file_leaves_out_is_said(select):
    ended, result = select(CONFIGS["gemma-3-4b"])
    assert "not in the config, so taken from transformers 5." in ended.out
    assert result["filled"]["fields"]["head_dim"] == 256
    assert "left out, since it has no KV cache: vision_config" in ended.out


def test_a_folder_is_a_model(attn_parity, tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(CONFIGS["llama-3.1-8b"]))
    run = attn_parity("select", "llama", *ON_MI300)
    assert run.code == 0
    assert run.out.startswith("LlamaForCausalLM (llama) on gfx942, AITER 2026-08")
    assert "\nvllm serve llama --attention-backend ROCM_ATTN" in run.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "float16"], "--attention-backend ROCM_ATTN --dtype float16"),
        (["--block-size", "32"], "--block-size 32"),
        (["--block-size", "24"], "  TRITON_ATTN: block size 24 not supported: vLLM's cache has blocks in units of 16 slots"),
        (["--kv-cache-dtype", "fp8_e4m3fnuz", "--scales", "tensor"], "--kv-cache-dtype fp8"),
        (["--kv-cache-dtype", "fp8"], "--attention-backend ROCM_ATTN --dtype bfloat16 --block-size 16 --kv-cache-dtype fp8"),
        (
            ["--kv-cache-dtype", "fp8", "--scales", "inline"],
            "--attention-backend TRITON_ATTN --dtype bfloat16 --block-size 16 --",
        ),
        (
            ["--kv-cache-dtype", "fp8_e4m3"],
            "--attention-backend ROCM_ATTN --dtype bfloat16 --block-size 16 --kv-cache-dtype fp8",
        ),
        (
            ["--kv-cache-dtype", "bfloat16"],
            "--attention-backend ROCM_ATTN --dtype bfloat16 --block-size 16 --kv-cache-dtype auto",
        ),
        (["--kv-cache-dtype", "int8_per_token_head"], "--attention-backend TRITON_ATTN --dtype bfloat16 --block-size 16"),
        (["--kv-cache-dtype", "int8", "--scales", "token"], "no word of vLLM's --kv-cache-dtype says it"),
        (["--kv-cache-dtype", "fp8_e4m3fn", "--scales", "tensor"], "vLLM's is of torch.float8_e4m3fnuz here"),
        (
            ["--kv-cache-dtype", "int8", "--scales", "inline"],
            "TRITON_ATTN --dtype bfloat16 --block-size 16 --kv-cache-dtype int8_per",
        ),
        (["--layout", "X_PACKED"], "a layout of the cache: vLLM chooses it"),
        (["--tensor-parallel", "8"], "--tensor-parallel-size 8"),
        (["--batch-invariant"], "\nVLLM_BATCH_INVARIANT=1 vllm serve MODEL --attention-backend TRITON_ATTN"),
        (["--backend", "TRITON_ATTN"], "--attention-backend TRITON_ATTN"),
        (["--lse"], "  TRITON_ATTN: the LSE not supported: it is not declared"),
    ],
)
def test_options_of_the_engine_go_with_a_config(options, said, select):
    ended, _ = select(CONFIGS["llama-3.1-8b"], *options)
    assert ended.code == 0, ended.err
    assert said in ended.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--kv-cache-dtype", "float16"],
            "--kv-cache-dtype: got float16, expected bfloat16, which is q's, or a quantized type",
        ),
        (
            ["--kv-cache-dtype", "int8_per_token_head", "--scales", "tensor"],
            "--scales: got tensor, expected no --scales beside",
        ),
    ],
)
def test_a_cache_that_no_backend_has_is_refused(options, told, select):
    ended, _ = select(CONFIGS["llama-3.1-8b"], *options)
    assert ended.code == 2
    assert told in ended.err


def test_devices_share_the_heads(select):
    ended, result = select(CONFIGS["gemma-2-9b"], "--tensor-parallel", "16", "--dtype", "bfloat16")
    assert "asks for, on each of 16 devices" in ended.out
    assert ended.out.count("decoder, 1 heads, 1 KV heads of 256") == 2, "the heads of one device"
    assert result["vllm"]["line"].endswith("--tensor-parallel-size 16")
    ended, _ = select(CONFIGS["gemma-2-9b"], "--tensor-parallel", "3")
    assert ended.code == 2
    assert "--tensor-parallel: got 3, expected a divisor of the number of query heads (16)" in ended.err


def test_a_soft_cap_goes_to_no_backend_that_forgets_it_in_vllm(select):
    """In bfloat16 our ROCM_AITER_FA serves Gemma 2. vLLM's caps its decode alone."""
    ended, result = select(CONFIGS["gemma-2-9b"], "--dtype", "bfloat16")
    assert {layer["backend"] for layer in result["layers"].values()} == {"ROCM_AITER_FA"}
    assert "--attention-backend ROCM_AITER_UNIFIED_ATTN" in ended.out


def test_a_line_with_another_backend_than_the_table_says_why(select):
    ended, result = select(CONFIGS["whisper-large-v3"])
    *_, header, reason, line = ended.out.splitlines()
    assert header == "vLLM takes one backend for all layers, here ROCM_AITER_UNIFIED_ATTN. Why not the others of the table:"
    assert reason.startswith("  ROCM_ATTN: cross-attention (ENCODER_DECODER) not supported: vLLM's prefill takes")
    assert line == result["vllm"]["line"]
    assert result["vllm"]["backend"] == "ROCM_AITER_UNIFIED_ATTN"
    ended, result = select(CONFIGS["llama-3.1-8b"])
    assert "one backend for all layers" not in ended.out
    assert result["vllm"]["why_not"] == {}


@pytest.mark.parametrize(("arch", "aiter"), [("gfx942", "2026-08"), ("gfx1201", "none"), ("sm90", "none")])
@pytest.mark.parametrize("name", ANSWERS)
def test_no_line_differs_from_the_table_without_a_word(name, arch, aiter, attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    ended = attn_parity("select", "config.json", "--arch", arch, "--aiter", aiter, "--json", "selected.json")
    result = json.loads((tmp_path / "selected.json").read_text())
    if not result["layers"]:
        assert f"architecture {arch} not supported: of AMD's, vLLM takes AITER on CDNA 3 and later" in ended.out
        return
    others = {layer["backend"] for layer in result["layers"].values()} - {result["vllm"]["backend"]}
    header = "Why not the others of the table:\n"
    lines = ended.out.partition(header)[2].splitlines()[:-1] if header in ended.out else []
    told = {line.split(":")[0].strip(): line for line in lines}
    assert set(told) == (others if result["vllm"]["line"] else set())
    for_memory = {backend for backend, line in told.items() if "the table has it for the memory" in line}
    assert set(result["vllm"]["why_not"]) >= others - for_memory


def test_a_backend_that_the_table_has_for_memory_is_told_as_such(capsys):
    assignment = SimpleNamespace(backend="TRITON_ATTN")
    print_vllm(VllmArguments("vllm serve", "ROCM_ATTN", {}), {"layer": assignment})  # pyright: ignore[reportArgumentType]
    assert "\n  TRITON_ATTN: the table has it for the memory that layers share, which vLLM" in capsys.readouterr().out


def test_a_limit_of_this_project_is_not_told_of_each_backend(select):
    too_wide = {**CONFIGS["mimo-v2-flash"], "head_dim": 528, "swa_head_dim": 528}
    ended, result = select(too_wide)
    assert ended.out.endswith("; all backends of this project have this limit, and vLLM's backends of the same names may not\n")
    assert "TRITON_ATTN" not in result["error"]
    one, _ = select(too_wide, "--backend", "TRITON_ATTN_DIFFKV")
    assert one.out == ended.out


def test_there_is_no_line_for_a_cpu(attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["phi-4"]))
    run = attn_parity("select", "config.json", "--arch", "interpreter")
    assert "vllm serve" not in run.out
    assert run.out.splitlines()[-1] == "  on a CPU: vLLM takes its own CPU backend, whatever is asked for"


def test_without_transformers_the_command_that_installs_it_is_named(monkeypatch, select):
    monkeypatch.setitem(sys.modules, "transformers", None)
    ended, _ = select({**CONFIGS["phi-4"], "vocab_size": 7})
    assert ended.code == 2
    assert ended.err == "attn-parity: this needs transformers, which is missing: pip install 'attn-parity[transformers]'\n"


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_a_quantized_cache_is_of_the_architectures_type(arch, attn_parity, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama-3.3-70b-fp8-kv"]))
    run = attn_parity("select", "config.json", "--arch", arch, "--aiter", "none")
    assert run.out.splitlines()[-1].endswith("--kv-cache-dtype fp8")


def test_no_network_and_no_code_of_a_file(monkeypatch, select):
    pytest.importorskip("transformers")

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", refuse)
    ended, _ = select({**CONFIGS["phi-3-mini-4k"], "auto_map": {"AutoConfig": "evil.Config"}, "_name_or_path": "org/model"})
    assert ended.code == 0

"""`attn-parity select`: what it prints, what it writes, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attn_optimized.selector import this_architecture

ON_MI300 = ("--arch", "gfx942:sramecc+:xnack-", "--aiter", "2026-08")
LAYER = ("--heads", "16", "--head-size", "64")
CROSS = {
    "attn_type": "encoder_decoder",
    "num_heads": 16,
    "num_kv_heads": 16,
    "head_size": 64,
    "dtype": "float16",
    "block_size": 16,
}
DECODER = {**CROSS, "attn_type": "decoder"}


@pytest.fixture
def model_file(tmp_path):
    """Writes a model file; returns its name."""

    def write(**fields) -> str:
        whole = {"schema": "attn-parity.model/1", "model": "a model", "layers": {"decoder": DECODER, "cross": CROSS}}
        (tmp_path / "model.json").write_text(json.dumps({**whole, **fields}))
        return "model.json"

    return write


def test_one_layer_and_what_was_skipped(attn_parity):
    run = attn_parity("select", *LAYER, "--sinks", "--sliding-window", "128", *ON_MI300)
    assert run.code == 0
    assert run.out.splitlines()[0].startswith("one layer on gfx942, AITER 2026-08")
    assert run.out.splitlines()[2].split()[:3] == ["layer", "ROCM_AITER_FA", "BLOCKS_FIRST_NHD"]
    assert run.out.splitlines()[5].split()[:3] == ["ROCM_ATTN", "layer", "sinks"]


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ([], "ROCM_ATTN"),
        (["--attn-type", "encoder"], "ROCM_ATTN"),
        (["--attn-type", "encoder_decoder"], "ROCM_AITER_UNIFIED_ATTN"),
        (["--kv-heads", "2", "--dtype", "float16", "--block-size", "32"], "ROCM_ATTN"),
        (["--logits-soft-cap", "50"], "ROCM_AITER_FA"),
        (["--window", "63", "0"], "ROCM_ATTN"),
        (["--alibi-slopes", "--sliding-window", "64"], "ROCM_AITER_UNIFIED_ATTN"),
        (["--bidirectional-ranges"], "TRITON_ATTN"),
        (["--ranges-clamped", "--sliding-window", "64"], "TRITON_ATTN"),
        (["--qq-bias"], "ROCM_AITER_UNIFIED_ATTN"),
        (["--non-causal"], "ROCM_ATTN"),
        (["--non-causal", "--per-request-causal"], "TRITON_ATTN"),
        (["--chunked-local", "64"], "TRITON_ATTN"),
        (["--sliding-window", "64", "--sink-tokens", "4"], "TRITON_ATTN"),
        (["--lse"], "TRITON_ATTN"),
        (["--batch-invariant"], "TRITON_ATTN"),
        (["--rope"], "ROCM_ATTN"),
        (["--layout", "CONTENT_PACKED"], "ROCM_AITER_FA"),
        (["--kv-cache-dtype", "fp8_e4m3fn", "--scales", "head"], "ROCM_ATTN"),
        (["--kv-cache-dtype", "int8", "--scales", "inline"], "TRITON_ATTN"),
        (["--output-dtype", "fp8_e4m3fnuz"], "ROCM_ATTN"),
        (["--backend", "TRITON_ATTN"], "TRITON_ATTN"),
    ],
)
def test_every_option_reaches_the_selector(options, backend, attn_parity):
    run = attn_parity("select", *LAYER, *options, *ON_MI300)
    assert run.code == 0, run.out + run.err
    assert run.out.splitlines()[2].split()[1] == backend


def test_without_options_this_machine_is_asked(attn_parity):
    run = attn_parity("select", *LAYER)
    assert run.code == 0
    assert run.out.startswith(f"one layer on {this_architecture()}, ")


def test_a_model_whose_layers_share_an_allocation_and_its_json(attn_parity, model_file, tmp_path):
    name = model_file(allocations=[["decoder", "cross"]])
    run = attn_parity("select", name, *ON_MI300, "--json", "selected.json")
    assert run.code == 0
    result = json.loads((tmp_path / "selected.json").read_text())
    assert result["schema"] == "attn-parity.select/1"
    assert (result["model"], result["architecture"], result["error"]) == ("a model", "gfx942", None)
    assert {name: (layer["backend"], layer["layout"]) for name, layer in result["layers"].items()} == {
        "decoder": ("ROCM_ATTN", "X_PACKED"),
        "cross": ("ROCM_AITER_UNIFIED_ATTN", "KV_FIRST_NHD"),
    }
    cross = result["layers"]["cross"]
    assert [one["backend"] for one in cross["skipped"]] == ["ROCM_ATTN", "ROCM_AITER_FA"]
    assert cross["skipped"][0]["refusals"][0]["property"] == "cross-attention (ENCODER_DECODER)"
    assert cross["allocation_layout"] is None
    for said in (cross["why"], cross["skipped"][0]["refusals"][0]["reason"]):
        assert set(said.split()) <= set(run.out.split()), "the table says the same"


def test_a_reinterpreted_cache_is_said(attn_parity, model_file):
    layers = {"decoder": DECODER, "cross": {**CROSS, "layout": "BLOCKS_FIRST_NHD"}}
    run = attn_parity("select", model_file(layers=layers, allocations=[["decoder", "cross"]]), *ON_MI300)
    assert "BLOCKS_FIRST_NHD, as planes beside X_PACKED" in run.out


def test_a_backend_for_all_layers_and_another_for_one(attn_parity, model_file):
    run = attn_parity("select", model_file(), *ON_MI300, "--backend", "decoder=ROCM_AITER_FA", "--backend", "TRITON_ATTN")
    assert [line.split()[:2] for line in run.out.splitlines()[2:4]] == [["decoder", "ROCM_AITER_FA"], ["cross", "TRITON_ATTN"]]


def test_where_nothing_serves_it_ends_with_1_and_all_reasons(attn_parity, tmp_path):
    run = attn_parity("select", "--heads", "8", "--head-size", "528", *ON_MI300, "--json", "selected.json")
    assert run.code == 1
    assert run.out.count("head size 528 not supported") == 4
    result = json.loads((tmp_path / "selected.json").read_text())
    assert "head size 528" in result["error"]
    assert result["layers"] == {}


NOT_VLLMS = "this project's backends alone: FLASH_ATTN, FLASHINFER and others of vLLM's are not considered"


def test_where_there_is_no_rocm_the_backends_are_said_to_be_this_projects_and_nothing_of_aiter(attn_parity):
    run = attn_parity("select", *LAYER, "--arch", "sm90")
    assert run.out.splitlines()[0] == f"one layer on sm90, {NOT_VLLMS}"
    assert "AITER" not in run.out
    assert NOT_VLLMS not in attn_parity("select", *LAYER, *ON_MI300).out


def test_where_there_is_no_rocm_vllm_has_no_backend_of_amd(attn_parity):
    config = Path(__file__).parent / "configs" / "llama-3.1-8b.json"
    run = attn_parity("select", config, "--arch", "sm90", "--backend", "ROCM_ATTN")
    assert run.code == 0
    assert "vllm serve" not in run.out
    for backend in ("ROCM_ATTN", "ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA"):
        assert f"  {backend}: vLLM has it on ROCm alone" in run.out.splitlines()


def test_where_there_is_no_rocm_and_nothing_serves_no_one_is_told_to_install_aiter(attn_parity):
    run = attn_parity("select", "--heads", "8", "--head-size", "528", "--arch", "sm90", "--aiter", "none")
    assert run.code == 1
    assert run.out.startswith("layer: every backend of this project on sm90: ")
    assert run.out.count("architecture sm90 not supported: AITER needs ROCm") == 2
    assert "not installed" not in run.out


def test_a_limit_of_all_backends_is_said_once_where_some_do_not_run_at_all(attn_parity):
    run = attn_parity("select", *LAYER, "--over-ranks", "--arch", "sm90", "--aiter", "none")
    assert run.code == 1
    assert run.out.count("a cache that ranks share not supported") == 1


def test_a_backend_that_does_not_serve_ends_with_1_and_names_others(attn_parity, model_file):
    run = attn_parity("select", model_file(), *ON_MI300, "--backend", "cross=ROCM_AITER_FA")
    assert run.code == 1
    assert run.out.startswith("model.json: cross: ROCM_AITER_FA: cross-attention (ENCODER_DECODER) not supported: ")
    assert "use ROCM_AITER_UNIFIED_ATTN or TRITON_ATTN" in run.out


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema": "attn-parity.case/2"}, "attn-parity.case/2"),
        ({"schema": None}, "schema: got None, expected 'attn-parity.model/1'"),
        ({"layer": {}}, "field: got 'layer', expected one of schema"),
        ({"layers": {}}, "layers: got {}, expected an object with at least one layer"),
        ({"layers": {"decoder": 16}}, "decoder: "),
        (
            {"layers": {"decoder": {**DECODER, "dtype": ["float16"]}}},
            "decoder: dtype: got ('float16',)",
        ),
        ({"layers": {"decoder\u001b[2J": DECODER}}, "got 'decoder\\x1b[2J', expected one that can be printed"),
        ({"model": "a\u202emodel"}, "got 'a\\u202emodel', expected one that can be printed"),
        ({"layers": {"decoder": {**DECODER, "heads": 16}}}, "decoder: field: got 'heads', expected one of num_heads"),
        ({"layers": {"decoder": {"num_heads": 16}}}, "decoder: num_kv_heads: got nothing, expected a value"),
        ({"layers": {"decoder": {**DECODER, "num_heads": "16"}}}, "decoder: num_heads: got '16', expected"),
        ({"layers": {"decoder": {**DECODER, "num_heads": 0}}}, "decoder: num_heads: got 0"),
        ({"layers": {"decoder": {**DECODER, "dtype": "half"}}}, "decoder: dtype: got 'half', expected one of float32"),
        ({"layers": {"decoder": {**DECODER, "attn_type": "self"}}}, "decoder: attn_type: got 'self', expected one of decoder"),
        ({"layers": {"decoder": {**DECODER, "window": [1, 2, 3]}}}, "decoder: window: got (1, 2, 3), expected a tuple"),
        ({"allocations": [["decoder", "encoder"]]}, "allocations: got 'encoder', expected one of the layers: decoder, cross"),
        ({"kv_sharing": {"cross": "decoder"}}, "kv_sharing: "),
    ],
)
def test_a_model_file_that_is_wrong_is_named_with_its_field(fields, said, attn_parity, model_file):
    run = attn_parity("select", model_file(**fields), *ON_MI300)
    assert run.code == 2
    assert run.err.startswith("attn-parity: model.json: ")
    assert said in run.err


def test_the_model_file_is_not_overwritten(attn_parity, model_file, tmp_path):
    before = (tmp_path / model_file()).read_bytes()
    run = attn_parity("select", "model.json", *ON_MI300, "--json", tmp_path / "model.json")
    assert run.code == 2
    assert "model.json is FILE itself" in run.err
    assert (tmp_path / "model.json").read_bytes() == before


def test_a_field_out_of_scope_is_refused_with_its_reason(attn_parity, model_file):
    run = attn_parity("select", model_file(layers={"decoder": {**DECODER, "kv_lora_rank": 512}}), *ON_MI300)
    assert run.code == 1
    assert run.out.startswith("model.json: attn_contract: MLA (kv_lora_rank) not supported: its layers are given by head")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(attn_parity):
    run = attn_parity("select", *LAYER, *ON_MI300, "--json", "/dev/full")
    assert run.code == 2
    assert run.err == "attn-parity: --json: /dev/full: No space left on device\n"


@pytest.mark.parametrize("size", [("--block-size", 1 << 29), ("--heads", (1 << 31) - 1)])
def test_the_largest_layers_take_no_memory(size, attn_parity):
    assert attn_parity("select", *LAYER, *size, *ON_MI300).code == 0


def test_without_triton_it_says_so():
    missing = "import sys; sys.modules['triton'] = None; from attn_parity import main; main()"
    run = subprocess.run([sys.executable, "-c", missing, "select", *LAYER], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("attn-parity: this needs triton, which is missing: pip install 'attn-parity[cpu]'")


def test_options_of_a_layer_beside_a_file_are_refused(attn_parity, model_file):
    run = attn_parity("select", model_file(), "--sinks")
    assert run.code == 2
    assert "leave out --sinks" in run.err

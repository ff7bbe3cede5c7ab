"""NAME@beyond gives a target what its engine never sends, and a run tells such failures apart."""

import json

import pytest
from attn_fuzz.targets import registry
from attn_fuzz.targets.engine import GIVES_KEYS

KERNELS = """
import dataclasses

import attn_reference
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Engine, Rounding, Support, Target

def attention_but(is_wrong):
    def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out)
        if is_wrong(layer):
            out[: int(batch.query_start_loc[-1])] = 0
    return attention

OF_ONE_TOKEN = Target(
    name="one", description="", refuses=False, attention=attention_but(lambda layer: layer.window[0] == 0),
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.BLOCKS_FIRST_NHD,), rules=("window", "sinks"),
        engine=Engine(one_token_windows=False, dense_out=(True,), cited={"one_token_windows": "flash.py:7"})),
    rounding=lambda device: Rounding(keys_per_tile=64),
)
OF_SINKS = dataclasses.replace(OF_ONE_TOKEN, attention=attention_but(lambda layer: layer.sinks is not None))
"""


@pytest.mark.parametrize(
    ("attribute", "code", "never_sent"),
    [
        ("OF_ONE_TOKEN", 0, None),
        ("OF_ONE_TOKEN@beyond", 5, "one_token_windows, never (flash.py:7)"),
        ("OF_SINKS@beyond", 1, None),
    ],
)
def test_a_case_that_no_engine_sends_is_told_so_unless_a_like_one_fails(attribute, code, never_sent, attn_parity, tmp_path):
    """The smallest case with sinks has no dense output, which the engine has; with one it fails, too."""
    (tmp_path / "beyond_its_engine.py").write_text(KERNELS)
    name = f"beyond_its_engine:{attribute}"
    few = ("--seed", 1, "--workers", 1, "--examples", 60, "--corpus", "none")
    run = attn_parity("fuzz", "--target", name, *few, "--json", "run.json")
    assert run.code == code, run.out
    failures = json.loads((tmp_path / "run.json").read_text())["failures"]
    assert {failure["never_sent"] for failure in failures} == ({never_sent} if code else set())
    assert (f"no engine sends this: {never_sent}\n" in run.out) == (code == 5)


def test_a_target_whose_engine_sends_everything_has_no_such_mode_and_what_dense_keys_need_stays():
    with pytest.raises(registry.TargetError, match="its engine sends all that the contract allows"):
        registry.load("reference-fp32@beyond")
    name = next(name for name in registry.names() if registry.load(name).dense_keys)
    assert {*registry.load(f"{name}@beyond").support("cpu").engine.restricted} == {*GIVES_KEYS}

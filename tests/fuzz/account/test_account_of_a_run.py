"""What a run prints and returns about mistakes that it could not have seen, and about kernels that it never launched."""

import json

import pytest

LAZY = """
import sys
import attn_reference
from attn_contract import AttentionType, Layout
from attn_fuzz.targets import Rounding, Support, Target

def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

def support(device):
    layouts = (Layout.BLOCKS_FIRST_NHD,)
    return Support(attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=layouts, rules=("window",))

TARGET = Target(
    name="lazy", description="falls back", attention=attention, refuses=False, support=support,
    rounding=lambda device: Rounding(keys_per_tile=64), modules=lambda: [sys.modules[__name__]],
)
NO_TRITON = Target(
    name="no-triton", description="no Triton", attention=attention, refuses=False, support=support,
    rounding=lambda device: Rounding(keys_per_tile=64),
)
"""
OPTIONS = ("--examples", 12, "--seed", 1, "--workers", 1, "--corpus", "none", "--json", "run.json")


@pytest.fixture
def fuzz(attn_parity, tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    return lambda *options: attn_parity("fuzz", *options, *OPTIONS)


def test_a_triton_target_that_launches_nothing_has_shown_nothing(fuzz, tmp_path):
    ended = fuzz("--target", "lazy:TARGET")
    assert ended.code == 3
    assert "warning: no Triton kernel was launched; nothing is said of the target's kernels" in ended.err
    assert json.loads((tmp_path / "run.json").read_text())["launches"] == {}
    assert fuzz("--target", "lazy:NO_TRITON").code == 0


def test_what_a_run_requires_is_red_if_no_case_could_have_shown_it(fuzz, tmp_path):
    ended = fuzz("--target", "lazy:NO_TRITON", "--require", "sinks", "--require", "the scale is left out")
    assert ended.code == 4
    assert "required, and not seen: the sinks are dropped (never drawn)" in ended.out
    assert "the scale is left out" not in ended.out
    assert "mistakes about sinks" not in ended.err  # the target does not support them
    result = json.loads((tmp_path / "run.json").read_text())
    assert "sinks" in result["declared_away"]["rules"]
    assert result["largest"]["requests"] > 1
    of_scale = next(each for each in result["account"] if each["mistake"] == "the scale is left out")
    assert (of_scale["about"], of_scale["sizes"], of_scale["places"]["anywhere"][1]) == ("scale", 1, 1)


def test_a_name_that_no_mistake_has_is_refused(fuzz):
    ended = fuzz("--target", "lazy:NO_TRITON", "--require", "windw")
    assert ended.code == 2
    assert "--require: got 'windw', expected one of window, causal, " in ended.err
    assert "did you mean window?" in ended.err

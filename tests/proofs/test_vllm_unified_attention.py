"""Claims on vLLM's mask and bounds, true and false. Nothing of vLLM is imported: its sources have to be on the path."""

import pytest

pytest.importorskip("z3")
from attn_contract import Layout
from attn_fuzz.patches.source import file_of
from attn_fuzz.targets import registry
from attn_proofs import counterexamples
from attn_proofs.sources import Sources
from attn_proofs.theorem import decide
from attn_proofs.vllm_unified_attention import HELPERS, MASKS, Mask, claims

FILE = file_of(HELPERS)
pytestmark = pytest.mark.skipif(FILE is None, reason="no sources of vLLM")
NOT_LOADED = "a key that is shown is loaded"


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_all_claims_hold_but_that_of_ranges(mask):
    """All but one: with ranges, a position behind the request's keys may be shown, of which nothing is loaded."""
    refuted = {claim.name for claim in claims(mask) if decide(claim).outcome != "proved"}
    assert refuted == ({f"{mask}: {NOT_LOADED}"} if mask.ranges else set())


TARGET = registry.load("vllm-unified-attention")


@pytest.mark.skipif(TARGET.unavailable("cpu") is not None, reason="vLLM's kernel does not run here")
@pytest.mark.parametrize(("last", "kind"), [(1, "value"), (0, "agree")], ids=["behind the keys", "the last key"])
def test_a_counterexample_fails_on_the_kernel(last, kind):
    """One query and one key, and a range that ends behind the key: the position there counts as a key of zeros. vLLM's engine
    makes no such range, so the target's declaration leaves it out, and `replay` refuses the case."""
    fields = {"layout": Layout.CONTENT_PACKED, "dtype": "float16", "head_size": 64, "dense_out": True, "scale": 0.125}
    case = counterexamples.paged([(1, 1)], ranges=[(0, last)], target=TARGET.name, **fields)
    assert counterexamples.run(case, None).kind == kind


def test_a_wrong_window_is_refuted():
    assert FILE is not None
    text = FILE.read_text()
    wrong = text.replace("first_allowed_key = q_abs - SLIDING_WINDOW + 1", "first_allowed_key = q_abs - SLIDING_WINDOW + 20")
    assert wrong != text
    found = {claim.name for claim in claims(Mask(window=40), Sources({HELPERS: wrong})) if decide(claim).outcome == "refuted"}
    assert found == {"causal, window 40: a visible key is gone through and loaded"}

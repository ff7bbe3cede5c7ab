"""The guide's example kernel is stated and proved as docs/guide/prove-your-kernel.md says; a wrong one is refuted."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("z3")

import z3
from attn_proofs.kernels import run_kernel
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, decide
from attn_proofs.values import integers, memory

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSTANTS = {"GROUP_SIZE": 2, "HEAD_SIZE": 16, "PADDED": 16, "BLOCK_SIZE": 16, "ROWS": 16, "TILE": 32}
TENSORS = {"q_ptr": "float", "k_ptr": "float", "v_ptr": "float", "out_ptr": "float"} | dict.fromkeys(
    ("cu_seqlens_q", "seqused_k", "block_table"), "int32"
)


def mask_claim(sources: Sources) -> Claim:
    """The mask of a tile is causality and the window, for a row that is there and a key of the tile."""
    kernel = run_kernel("my_unified_attention._attend", CONSTANTS, TENSORS, ("scale", "softcap"), sources=sources)
    m, n, request, left = integers("m n program_0 window_left")
    starts, lengths = memory("cu_seqlens_q", "int32"), memory("seqused_k", "int32")
    token, key = (kernel.local("_attend", name).value.at(i) for name, i in (("token", m), ("key", n)))
    query_len = starts(request + 1) - starts(request)
    p, seq_len = lengths(request) - query_len + token, lengths(request)
    mask = kernel.local("_attend", "visible")
    expected = z3.And(key >= 0, key <= p, key < seq_len, z3.Or(left < 0, p - key <= left))
    given = (
        m >= 0,
        m < 16,
        n >= 0,
        n < 32,
        z3.Int("program_1") >= 0,
        query_len >= 0,
        seq_len >= 0,
        token < query_len,
        *mask.path,
    )
    return Claim("the mask", (*given, *kernel.assumptions), mask.value.at(m, n) == expected)


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


def test_the_mask_of_the_example_is_the_formula():
    assert decide(mask_claim(Sources())).outcome == "proved"


def test_a_window_that_is_one_too_wide_is_refuted():
    text = (EXAMPLES / "my_unified_attention.py").read_text()
    wrong = text.replace(
        "position[:, None] - key[None, :] <= window_left", "position[:, None] - key[None, :] <= window_left + 1"
    )
    assert wrong != text
    assert decide(mask_claim(Sources({"my_unified_attention": wrong}))).outcome == "refuted"

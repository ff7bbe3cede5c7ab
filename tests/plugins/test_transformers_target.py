"""The example that makes a target of a function of transformers' attention interface: sdpa agrees, and wrong ones are found."""

import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Case, Request

from tests.pages import ROOT, run_command

pytest.importorskip("transformers")

EXAMPLE = (ROOT / "examples" / "transformers_target.py").read_text()
FUZZ = "attn-parity fuzz --target mine:TARGET --seed 1 --workers 1 --corpus none --examples"
SIMPLEST = (Request(query_len=1, seq_len=1, blocks=(0,), causal=True),)
MINE = """
import transformers_target
from transformers_target import TARGET
from transformers.integrations.sdpa_attention import sdpa_attention_forward

def function(module, query, key, value, mask, dropout, scaling):
    {statement}
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)

transformers_target.function = function
"""


@pytest.fixture
def ended(tmp_path):
    """Fuzzes transformers' sdpa after a statement that changes its arguments."""
    (tmp_path / "transformers_target.py").write_text(EXAMPLE)

    def run(statement: str, examples: int):
        (tmp_path / "mine.py").write_text(MINE.format(statement=statement))
        return run_command(f"{FUZZ} {examples}", tmp_path)

    return run


def test_sdpa_agrees(ended):
    run = ended("pass", 48)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "48 examples" in run.stdout
    assert "all agree" in run.stdout


WRONG = {
    "a decode has lost its mask": ("if query.shape[2] == 1: mask = None", {"window", "chunked_local"}),
    "a query reads the head of another": ("key, value = (x.flip(1) for x in (key, value))", {"num_kv_heads"}),
    "the scale is lost": ("scaling = 1.0", {"scale"}),
    "a prompt without a mask sees ahead": ("module.is_causal = False", {"requests"}),
}
"""A change of the arguments, and fields of a case: it needs one of them in order to show the change."""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_found(name, ended, tmp_path):
    statement, needed = WRONG[name]
    run = ended(statement, 100)
    assert run.returncode == 1, run.stdout + run.stderr
    case = case_file.load(tmp_path / "attn-parity-runs" / "my-transformers-attention-1.json")
    simplest = Case(target=case.target, head_size=case.head_size, requests=SIMPLEST, cache=case.cache)
    assert any(getattr(case, name) != getattr(simplest, name) for name in needed), case_file.dumps(case)

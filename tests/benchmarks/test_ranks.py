"""`python -m benchmarks ranks`: the small steps that need no GPU, and what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch
from attn_contract import Layout
from attn_optimized import paged_attention
from attn_optimized.backends import BACKENDS

from benchmarks.ranks import rank
from benchmarks.ranks.cases import CHECKS, TINY, AttentionCase
from benchmarks.steps import latent_steps
from benchmarks.steps.cases import Attention
from benchmarks.steps.ranks import local_call, whole_call
from tests.support import processes

# the command over ranks that compute nothing; they are forked, because to import torch takes longer
STAND_IN = """
import dataclasses, json, os, runpy, sys, time
from functools import partial
from torch.multiprocessing import start_processes
from benchmarks.ranks import rank

def main(number, num_ranks, folder, file, device_type, checks, timed):
    if number:
        while not file.stat().st_size:
            time.sleep(0.01)
        os._exit(3) if ENDS == "code" else time.sleep(600)
    for case in timed[:1]:
        with open(file, "a") as lines:
            lines.write(json.dumps(dataclasses.asdict(rank.RanksCase(case.name, 0.0, {rank.ONE: ERROR}))) + chr(10) + "half a")
    time.sleep(600)

sys.modules["torch.multiprocessing.spawn"].spawn = partial(start_processes, start_method="fork")
rank.main = main
runpy.run_module("benchmarks", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("ends", "error", "options", "problems"),
    [
        ("code", "0.5", (), [f"process 1 terminated with exit code 3; not run by all ranks: {TINY[1].name}"]),
        ("never", "inf", ("--budget", "1"), [f"wrong: {TINY[0].name}", "ended after 1 seconds; --budget gives more; not run"]),
    ],
)
def test_a_rank_that_does_not_end_well_is_named(tmp_path, ends, error, options, problems):
    program = f"ENDS, ERROR = {ends!r}, float({error!r})\n{STAND_IN}"
    arguments = ["-c", program, "ranks", "--tiny", "--json", tmp_path / "ranks.json", *options]
    run = processes.run(arguments, cwd=processes.ROOT)
    assert run.returncode == 1, run.stdout
    assert all(problem in run.stderr for problem in problems), run.stderr
    (first,) = json.loads((tmp_path / "ranks.json").read_text())["cases"]
    assert first["error"] == {rank.ONE: None if error == "inf" else 0.5}


def test_the_tiny_cases_run_and_agree(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["-m", "benchmarks", "ranks", "--tiny", "--json", tmp_path / "ranks.json"]
    run = processes.run(command, cwd=processes.ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    cases = json.loads((tmp_path / "ranks.json").read_text())["cases"]
    assert [case["name"] for case in cases] == [case.name for case in TINY]
    assert all(error < 1 for case in cases for error in case["error"].values())
    assert "TRITON_MLA, all_to_all" in cases[1]["error"]


def test_ranks_have_each_key_once():
    sizes = {"num_heads": 4, "num_kv_heads": 1, "head_size": 2}
    case = Attention(name="a step", query_lens=(1,) * 3, seq_lens=(50, 13, 1), **sizes)
    whole = whole_call(case, torch.float64, torch.device("cpu"))
    parts = [local_call(3, whole, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([part.q for part in parts], dim=1), whole.q)
    stored = [tuple(row) for part in parts for row in part.kv_cache.transpose(1, 2).flatten(0, 1).flatten(1).tolist()]
    for r, length in enumerate(case.seq_lens):
        slots = [int(whole.batch.block_table[r, i // 16]) * 16 + i % 16 for i in range(length)]
        for row in whole.kv_cache.transpose(1, 2).flatten(0, 1)[slots].flatten(1).tolist():
            assert stored.count(tuple(row)) == 1


def test_ranks_have_each_row_of_a_latent_cache_once():
    sizes = {"num_heads": 4, "num_kv_heads": 1, "head_size": 3, "head_size_v": 2, "layout": Layout.LATENT}
    case = Attention(name="MLA", query_lens=(1,) * 2, seq_lens=(21,) * 2, **sizes)
    whole = whole_call(case, torch.float64, torch.device("cpu"))
    rows = [row for rank in range(2) for row in local_call(3, whole, rank, 2).kv_cache.flatten(0, 1).tolist()]
    for r, length in enumerate(case.seq_lens):
        assert all(rows.count(row) == 1 for row in whole.kv_cache[whole.batch.block_table[r]].flatten(0, 1)[:length].tolist())


def test_one_rank_writes_each_token_of_a_step():
    case = TINY[1]
    whole = latent_steps.whole_step(case, torch.device("cpu"))
    parts = [latent_steps.local_step_of(case, whole, number, 2) for number in range(2)]
    for row, new in enumerate(whole.new):
        (part,) = [part for part in parts if part.slots[row] != latent_steps.NEVER]
        assert torch.equal(part.absorbed.kv_cache.flatten(0, 1)[part.slots[row]], new)


def test_a_step_that_is_not_written_is_told_from_one_device():
    """What is checked would otherwise read tokens that the case had put into the cache."""
    case = TINY[1]
    step = latent_steps.whole_step(case, torch.device("cpu"))
    backend, call = BACKENDS["TRITON_MLA"], step.absorbed
    expected = latent_steps.up_projected(case, paged_attention(call.q, call.kv_cache, call.layer, call.batch), step.kv_b_proj)
    latent_steps.forget(step)
    layer, metadata = latent_steps.layer_of(case, step, backend), latent_steps.built(case, step, backend)()
    unwritten = replace(step, slots=torch.full_like(step.slots, latent_steps.NEVER))
    assert not rank.difference_of_rows(latent_steps.through_layer(case, unwritten, layer, metadata), expected) <= rank.allowed(
        case
    )
    assert rank.difference_of_rows(latent_steps.through_layer(case, step, layer, metadata), expected) <= rank.allowed(case)


def test_what_is_checked_has_empty_shards_drafts_and_a_prefill():
    alone = [case for case in CHECKS if isinstance(case, AttentionCase)]
    latent = [case for case in CHECKS if not isinstance(case, AttentionCase)]
    assert any(max(case.attention.seq_lens) <= case.interleave for case in alone)
    assert {max(case.attention.query_lens) for case in alone} >= {1, 3, 130}
    assert any(min(case.seq_lens) <= case.interleave for case in latent)
    assert any(case.has_prefill and case.num_speculative_tokens for case in latent)

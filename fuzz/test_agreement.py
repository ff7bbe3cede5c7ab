"""The fuzz job under pytest: `tox run -e fuzz`. The same engine as `attn-parity fuzz`; a seed comes from the test's name."""

import zlib
from pathlib import Path

import pytest
import torch
from attn_fuzz import engine, report
from attn_fuzz.engine import Plan


@pytest.mark.parametrize("target", ["triton", "triton-varlen", "triton-cascade", "triton-invariant", "reference-fp32"])
def test_agrees(target: str, shard: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    examples, shards = (int(request.config.getoption(name) or 1) for name in ("--examples", "--shards"))
    plan = Plan(
        target=target,
        device="cuda" if torch.cuda.is_available() else "cpu",
        examples=max(1, examples // shards),
        seed=zlib.crc32(request.node.name.encode()),
        folder=tmp_path,
    )
    with engine.start_executor(plan) as executor:
        failure = engine.fuzz(plan, executor).failure
    if failure is not None:
        case_path, script_path = report.write(failure.case, failure.verdict, tmp_path, f"{target}-{plan.seed}")
        pytest.fail(
            f"{failure.verdict.kind}: {failure.verdict.message}\ncase: {case_path}\nscript: {script_path}", pytrace=False
        )

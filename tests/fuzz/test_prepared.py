"""A prepared process has imported torch and Triton, and nothing that a mutant may patch."""

import os
import sys

from attn_fuzz.run import prepared


def _tell(connection) -> None:
    imported = [name for name in ("torch", "triton", "attn_reference", "attn_optimized") if name in sys.modules]
    connection.send((imported, os.environ.get("TRITON_INTERPRET"), os.environ.get("OMP_NUM_THREADS")))


def told() -> tuple[list[str], str, str]:
    context = prepared.context("cpu")
    ours, theirs = context.Pipe()
    process = context.Process(target=_tell, args=(theirs,))
    process.start()
    answer = ours.recv()
    process.join()
    return answer


def test_a_process_starts_with_torch_and_triton_and_without_kernels(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert told() == (["torch", "triton", "attn_reference"], "1", "1")
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_gpu_is_never_met_by_a_fork():
    assert prepared.context("cuda").get_start_method() == "spawn"

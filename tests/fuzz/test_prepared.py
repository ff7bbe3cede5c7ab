"""A prepared process has imported torch and Triton, and nothing that a mutant may patch."""

import multiprocessing
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


def _tell_servers(connection, deeper: bool) -> None:
    connection.send((os.getppid(), os.environ.get("TOLD")))
    if deeper:
        process = prepared.process("cpu", _tell_servers, connection, False)
        process.start()
        process.join()


def test_a_process_has_the_environment_of_its_parent_and_starts_others_from_the_same_server(monkeypatch):
    prepared.context("cpu")
    monkeypatch.setenv("TOLD", "since the server was started")
    ours, theirs = multiprocessing.Pipe()
    process = prepared.process("cpu", _tell_servers, theirs, True)
    process.start()
    of_fork, of_its_fork = ours.recv(), ours.recv()
    process.join()
    assert of_fork == of_its_fork
    assert of_fork[0] != os.getpid()
    assert of_fork[1] == "since the server was started"


def test_a_gpu_is_never_met_by_a_fork():
    assert prepared.context("cuda").get_start_method() == "spawn"

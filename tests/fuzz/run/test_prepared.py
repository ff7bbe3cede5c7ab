"""A prepared process has imported torch and Triton, and nothing that a mutant may patch."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run.processes import prepared


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
        process = prepared.start("cpu", _tell_servers, connection, False)
        process.join()


def test_a_process_has_the_environment_of_its_parent_and_starts_others_from_the_same_server(monkeypatch):
    told()
    monkeypatch.setenv("TOLD", "since the server was started")
    ours, theirs = multiprocessing.Pipe()
    process = prepared.start("cpu", _tell_servers, theirs, True)
    of_fork, of_its_fork = ours.recv(), ours.recv()
    process.join()
    assert of_fork == of_its_fork
    assert of_fork[0] != os.getpid()
    assert of_fork[1] == "since the server was started"


def test_a_run_on_a_gpu_has_a_server_that_does_not_interpret():
    told()
    assert prepared.context("cuda").get_start_method() == "spawn", "this process has a server, which interprets"
    ours, theirs = multiprocessing.Pipe()
    prepared.spawn.Process(target=_tell_of_a_gpu, args=(theirs,)).start()
    (imported, interprets, _), (asked_of_gpu, is_interpreted, others) = ours.recv(), ours.recv()
    assert imported == ["torch", "triton", "attn_reference"]
    assert interprets is None
    assert not asked_of_gpu
    assert not is_interpreted
    assert others == ["forkserver", "spawn"]


def _tell_of_a_gpu(connection) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    prepared.start("cuda", _tell, connection).join()
    prepared.start("cuda", _tell_what_is_asked, connection).join()


def _tell_what_is_asked(connection) -> None:
    import torch
    from triton import knobs

    methods = [prepared.context(device).get_start_method() for device in ("cuda", "cpu")]
    connection.send((torch.cuda.is_initialized(), knobs.runtime.interpret, methods))


def _kills_server():
    os.kill(os.getppid(), signal.SIGKILL)


@pytest.mark.nightly
def test_a_server_that_dies_before_its_fork_is_replaced_by_one_like_it(monkeypatch):
    """Python itself would start the other one, in the environment of this process."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    right = prepared.have_server

    def have_dead_server():
        right()
        monkeypatch.setattr(prepared, "have_server", right)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        os.waitid(os.P_PID, forkserver._forkserver._forkserver_pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(prepared, "have_server", have_dead_server)
    assert told()[1:] == ("1", "1")


def test_servers_that_go_on_dying_end_a_run(monkeypatch):
    monkeypatch.setattr(prepared, "MAX_DEATHS", prepared.deaths)
    prepared.start("cpu", _kills_server).join(60)
    with pytest.raises(ExecutorError, match="the server that starts the processes of a run has died"):
        prepared.start("cpu", _kills_server)


SLOW = "import os, pathlib, time; pathlib.Path('server').write_text(str(os.getpid())); time.sleep(60)"
STARTS = "from attn_fuzz.run.processes import prepared; prepared._IMPORTED[1:] = ['slow']; prepared.start('cpu', print)"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for a process in /proc")
def test_a_server_that_still_imports_ends_when_its_run_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    with subprocess.Popen([sys.executable, "-c", STARTS], cwd=tmp_path, env=environment, stdin=subprocess.PIPE) as run:
        until = time.monotonic() + 60
        while not (tmp_path / "server").exists() or not (tmp_path / "server").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    server = Path("/proc", (tmp_path / "server").read_text())
    until = time.monotonic() + 5
    while server.exists() and "Z" not in (server / "stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < until, "it goes on importing"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_a_block(number):
    before = signal.signal(number, signal.default_int_handler)
    done = []

    def block():
        with prepared.interrupts_later():
            signal.raise_signal(number)
            done.append("the rest of the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            block()
        assert done
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)

"""Whatever ends a run or a part of it, what was found is kept, the exit code is right, and nothing is left running."""

import json
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.errors import ExecutorError
from attn_fuzz.run import runner
from attn_fuzz.run.processes.executor import NOT_WRITTEN, Executor
from attn_fuzz.run.shard import FuzzPlan

from tests.support import processes
from tests.support.mostly_nightly import mostly_nightly

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")


LONG = ["-m", "attn_parity", "fuzz", "--examples", "100000", "--seed", "1", "--json", "run.json", "--report", "runs"]


@pytest.mark.nightly
@needs_proc
def test_ctrl_c_ends_a_run_that_found_nothing_with_130(child_environment, tmp_path):
    called, in_flight = tmp_path / "called", []

    def in_time(_):
        in_flight[:] = [case_file.load(path) for path in tmp_path.glob("runs/in-flight-*")]
        return called.exists() and called.stat().st_size >= 8

    program = [*LONG, "--target", "planted:SLOW", "--workers", 2, "--corpus", "none"]
    environment = child_environment | {"PLANTED_CALLED": str(called)}
    ended = processes.signalled(program, in_time, signal.SIGINT, cwd=tmp_path, env=environment, group=True)
    assert ended.returncode == 130
    assert "interrupted" in ended.stdout
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["interrupted"]
    assert result["examples"] > 0
    assert result["failures"] == []
    assert 1 <= len(in_flight) <= 2, "the case in flight is on the disk"
    (page,) = tmp_path.glob("runs/*")
    assert "interrupted: no failure so far" in page.read_text()


@needs_proc
@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT,), pytest.param((signal.SIGINT, signal.SIGINT, signal.SIGTERM), marks=pytest.mark.nightly)],
    ids=["ctrl-c", "many"],
)
def test_a_found_failure_is_reported_whatever_signals_come(signals, child_environment, tmp_path):
    def is_found(_):
        return list(tmp_path.glob("runs/*-first.json"))

    program = [*LONG, "--target", "planted:SLOW_NAN", "--workers", 1, "--corpus", "none"]
    is_one = len(signals) == 1
    ended = processes.signalled(program, is_found, *signals, cwd=tmp_path, env=child_environment, group=is_one)
    assert ended.returncode == 1
    assert "interrupted: 1 failing" in ended.stdout
    (failure,) = json.loads((tmp_path / "run.json").read_text())["failures"]
    assert case_file.load(tmp_path / failure["case_file"])
    assert {path.suffix for path in tmp_path.glob("runs/*")} == {".json", ".py", ".html"}
    assert len(list(tmp_path.glob("runs/*"))) == 4, "nothing but the case, the case as it was found, its script and the page"


@pytest.fixture
def plan(tmp_path):
    return FuzzPlan(target="planted:FLASH", device="cpu", examples=12, seed=3, folder=tmp_path)


def kill_workers(index=0, progress=None) -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()


def test_a_worker_that_is_killed_is_replaced_and_its_shard_run_again(plan):
    killed = []

    def once(index, progress):
        if progress.examples == 5 and not killed:
            killed.append(index)
            kill_workers()

    outcome = runner.run([plan], 1, stop_at_failure=True, report=once)
    assert (outcome.restarted, outcome.finished, outcome.error) == ({0}, {0}, None)
    assert outcome.progress[0].examples == 12
    assert list(plan.folder.iterdir()) == []


def test_a_shard_whose_workers_all_die_ends_the_run(plan):
    outcome = runner.run([plan], 1, stop_at_failure=True, report=kill_workers)
    assert outcome.finished == set()
    assert "a worker process died" in outcome.error


def test_a_run_may_be_interrupted_before_its_process_has_started(tmp_path, monkeypatch):
    def interrupted(process) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", interrupted)
    executor = Executor("planted:FLASH", "cpu", 60.0, tmp_path / "ahead.json")
    with pytest.raises(KeyboardInterrupt):
        executor.start()
    executor.stop()


@pytest.mark.parametrize(("error", "is_told"), [("KeyboardInterrupt", False), ("ValueError", True)])
def test_a_worker_says_nothing_of_an_interrupt_that_a_callback_swallows(error, is_told, tmp_path):
    """Hypothesis has a callback of the garbage collector, in which a worker's interrupt came once in 25 interrupted runs."""
    (tmp_path / "worker.py").write_text(
        "import gc, multiprocessing\n"
        "from attn_fuzz.run.processes import workers\n"
        "def callback(phase, info):\n"
        f"    raise {error}\n"
        "ours, theirs = multiprocessing.Pipe()\n"
        "theirs.close()\n"
        "workers._work(ours)\n"
        "gc.callbacks.append(callback)\n"
        "gc.collect()\n"
        "gc.callbacks.remove(callback)\n"
    )
    ended = processes.run(["worker.py"], cwd=tmp_path)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, is_told), ended.stderr


@pytest.mark.parametrize("number", mostly_nightly([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]))
def test_a_signal_while_modules_are_imported_ends_the_command_without_a_traceback(number, tmp_path, child_environment):
    """Torch, too, imports numpy again after it failed. That raised an ImportError, once in some fifty interrupted runs."""
    (tmp_path / "swallows.py").write_text(
        "import pathlib, time\n"
        "try:\n"
        "    pathlib.Path('importing').touch()\n"
        "    time.sleep(60)\n"
        "except BaseException:\n"
        "    raise ImportError('cannot load module more than once per process')\n"
    )
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import attn_parity.commands; "
        "attn_parity.cli.words['swallows'] = ''; attn_parity.commands.__path__.append('.'); "
        "attn_parity.main(['swallows'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=child_environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "importing").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_a_process_that_is_killed_while_it_starts_is_started_again(step_case, tmp_path, monkeypatch):
    (tmp_path / "dies_once.py").write_text(
        "import multiprocessing, os, pathlib, signal\n"
        f"mark = pathlib.Path({str(tmp_path / 'died')!r})\n"
        "if multiprocessing.parent_process() is not None and not mark.exists():\n"
        "    mark.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "from planted import FLASH as TARGET\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Executor("dies_once:TARGET", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        assert executor.run(step_case).kind == "agree"
    assert (tmp_path / "died").exists()


@needs_proc
@pytest.mark.nightly
def test_a_kernel_in_c_code_and_what_it_started_end_with_a_killed_run(child_environment, tmp_path):
    """No thread of such a process can notice that its parent is gone."""
    (tmp_path / "stuck.py").write_text(
        "import ctypes, dataclasses, os, subprocess\n"
        "from planted import FLASH\n"
        "def attention(*arguments, **outputs):\n"
        "    subprocess.Popen(['sleep', '600'])\n"
        "    open(os.environ['PLANTED_CALLED'], 'a').close()\n"
        "    ctypes.PyDLL(None).sleep(600)  # it holds Python's lock\n"
        "TARGET = dataclasses.replace(FLASH, attention=attention)\n"
    )
    called, temporary = tmp_path / "called", tmp_path / "temporary"
    temporary.mkdir()
    program = [*LONG, "--target", "stuck:TARGET"]
    environment = child_environment | {"PLANTED_CALLED": str(called), "TMPDIR": str(temporary)}
    ended = processes.signalled(program, lambda _: called.exists(), signal.SIGKILL, cwd=tmp_path, env=environment)
    assert ended.returncode == -signal.SIGKILL
    assert not list(temporary.glob("pymp-*"))


def test_a_failure_is_in_flight_until_the_main_process_has_it(tmp_path):
    plan = FuzzPlan(target="planted:NAN", device="cpu", examples=50, seed=1, folder=tmp_path)
    in_flight = []

    def slowly(index, progress):
        if progress.failure is not None and not in_flight:
            time.sleep(1)
            in_flight.extend(case_file.load(path) for path in tmp_path.glob("in-flight-*.json"))
            assert in_flight == [progress.failure.case]

    outcome = runner.run([plan], 1, stop_at_failure=True, report=slowly)
    assert outcome.error is None
    assert in_flight


@pytest.mark.parametrize(
    ("target", "event"),
    [
        ("KILLED_ONCE", "killed from outside and run again"),
        ("WITHOUT_MEMORY_ONCE", "out of memory and run again"),
        ("HELPER_KILLED_ONCE", "a process that compiles or is a rank was killed from outside: run again"),
    ],
)
def test_a_case_that_fails_from_outside_is_run_again_in_a_new_process(step_case, tmp_path, monkeypatch, target, event):
    monkeypatch.setenv("PLANTED_CALLED", str(tmp_path / "called"))
    with Executor(f"planted:{target}", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(step_case)
    assert (verdict.kind, verdict.events) == ("agree", (event,))


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [("KILLED_ALWAYS", "crashed", "SIGKILL, twice"), ("WITHOUT_MEMORY", "raised", "in _without_memory), twice")],
)
def test_a_case_that_always_fails_so_is_a_failure(step_case, tmp_path, target, kind, words):
    with Executor(f"planted:{target}", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(step_case)
    assert verdict.kind == kind
    assert words in verdict.message
    assert "may need more memory" in verdict.message


def test_a_helper_that_is_always_killed_is_no_verdict(step_case, tmp_path):
    with (
        Executor("planted:HELPER_KILLED", "cpu", 60.0, tmp_path / "ahead.json") as executor,
        pytest.raises(ExecutorError, match=r"SIGKILL .*, twice: it may need more memory"),
    ):
        executor.run(step_case)


@pytest.mark.parametrize("moment", ["while the case runs", pytest.param("before the case", marks=pytest.mark.nightly)])
def test_a_case_whose_server_is_killed_runs_again(step_case, tmp_path, monkeypatch, moment):
    """Python gives exit code 255 to each process whose server has died, though it may run on."""
    monkeypatch.setenv("PLANTED_CALLED", str(tmp_path / "called"))

    def kill_server():
        while moment == "while the case runs" and not (tmp_path / "called").exists():
            time.sleep(0.01)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)

    with Executor("planted:SLOW", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        executor.start()
        killing = threading.Thread(target=kill_server)
        killing.start()
        if moment == "before the case":
            killing.join()
        verdict = executor.run(step_case)
        killing.join()
    assert verdict.kind == "agree", verdict


def test_a_kernel_that_exits_as_a_lost_process_would_is_a_failure(step_case, tmp_path):
    with Executor("planted:EXITS_WITH_255", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        verdict = executor.run(step_case)
    assert (verdict.kind, verdict.message) == ("crashed", "the process exited with code 255")


@needs_full
def test_a_full_disk_ends_no_run_that_cannot_write_the_case_in_flight(full_for, step_case, tmp_path):
    with Executor("planted:FLASH", "cpu", 60.0, tmp_path / "ahead.json") as executor:
        assert executor.run(step_case).kind == "agree"
        full_for("ahead.json")
        verdict = executor.run(step_case)
        assert (verdict.kind, verdict.events[-1]) == ("agree", NOT_WRITTEN)
        assert not executor.ahead.exists(), "it held the case before"


def test_a_case_in_flight_that_cannot_be_written_is_an_error_that_names_it(step_case, tmp_path):
    with (
        Executor("planted:FLASH", "cpu", 60.0, tmp_path / "none" / "ahead.json") as executor,
        pytest.raises(OSError, match=r"No such file or directory: .*none"),
    ):
        executor.run(step_case)


@needs_full
def test_a_case_file_is_replaced_whole_or_not_at_all(full_for, step_case, tmp_path):
    path = tmp_path / "case.json"
    case_file.save(path, step_case)
    full_for("case.json")
    with pytest.raises(OSError, match="No space left"):
        case_file.save(path, step_case)
    assert case_file.load(path) == step_case
    assert list(tmp_path.iterdir()) == [path]


@needs_full
@pytest.mark.parametrize("is_device", [False, True])
def test_on_a_full_disk_a_failure_is_told_in_full(is_device, full_for, attn_parity, tmp_path):
    full_for("planted-raises-1.json", *["run.json"] * (not is_device))
    if is_device:
        (tmp_path / "run.json").symlink_to("/dev/full")
    run = attn_parity(
        *("fuzz", "--target", "planted:RAISES", "--examples", 5, "--seed", 1, "--workers", 1, "--corpus", "none"),
        *("--json", "run.json", "--report", "runs"),
    )
    assert run.code == 1
    assert run.err.count("No space left on device") == 2
    printed = run.out[run.out.index("{\n") : run.out.rindex("}\n") + 2]
    assert case_file.loads(printed).target == "planted:RAISES"
    assert not (tmp_path / "runs" / "planted-raises-1.json").exists()
    early = list(tmp_path.glob("runs/*-shard-*.json"))
    assert [case_file.load(path) for path in early] == [case_file.loads(printed)], "as far as a shard could write it"


@needs_full
def test_a_script_that_cannot_be_written_leaves_its_case(full_for, attn_parity, tmp_path):
    full_for("planted-raises-1.py")
    run = attn_parity(
        *("fuzz", "--target", "planted:RAISES", "--examples", 5, "--seed", 1, "--workers", 1, "--corpus", "none"),
        *("--report", "runs"),
    )
    assert run.code == 1
    assert "runs/planted-raises-1.py: No space left on device" in run.err
    assert "smallest case: runs/planted-raises-1.json   script: it could not be written" in run.out
    assert case_file.load(tmp_path / "runs" / "planted-raises-1.json").target == "planted:RAISES"
    assert not (tmp_path / "runs" / "planted-raises-1.py").exists()


@pytest.mark.nightly
@needs_full
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_ends_as_it_should_where_nothing_can_be_printed(stream, tmp_path, child_environment):
    command = [sys.executable, "-c", "from attn_parity import main; main()", "fuzz", "--target", "planted:RAISES", "--corpus"]
    command += ["none", "--examples", "5", "--seed", "1", "--workers", "1", "--report", "runs"]
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        ended = subprocess.run(command, cwd=tmp_path, env=child_environment, text=True, check=False, **streams)
    assert ended.returncode == 1
    assert "Traceback" not in (ended.stderr or "")
    assert (tmp_path / "runs" / "planted-raises-1.json").exists()


WORDS = ("select --heads 8 --head-size 64 --arch gfx942", "--help", "fuzz --help", "--version")


@pytest.mark.parametrize("words", mostly_nightly(WORDS, ("--help",)))
def test_a_command_whose_results_nobody_reads_ends_without_a_line(words, tmp_path, child_environment):
    command = f"{sys.executable} -c 'from attn_parity import main; main()' {words}"
    ended = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=child_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (141, "")

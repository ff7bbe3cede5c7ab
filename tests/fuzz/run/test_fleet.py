"""Runs on a Ray cluster on this machine. The same seeds give the same run as without it, whatever dies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import attn_fuzz.run.processes
import msgspec
import pytest
from attn_fuzz.errors import InputError
from attn_fuzz.run import provenance, runner
from attn_fuzz.run.processes import node
from attn_fuzz.run.shard import FuzzPlan, Progress

ray = pytest.importorskip("ray", reason="the extra `ray`")

from attn_fuzz.run.processes import fleet  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")

START_SECONDS = 300
LEFT_SECONDS = 30
SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
MISSES_SOON = {"health_check_period_ms": 250, "health_check_failure_threshold": 2}
"""Ray's head misses a node that is gone after half a second instead of 15. How long it waits for an answer stays as it is."""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node, with one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "planted"))  # nodes find `planted`
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token at home is of another cluster
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {**SMALL, "include_dashboard": False, "_system_config": MISSES_SOON}
        one = Cluster(initialize_head=True, head_node_args=head)
        yield one
        one.shutdown()


@pytest.fixture
def second(cluster):
    """A second node. Returns the process that all of its processes come from."""
    added = cluster.add_node(**SMALL, resources={"gfx942": 8})
    yield raylet(added)
    cluster.remove_node(added, allow_graceful=False)
    cluster.wait_for_nodes()  # until the cluster has noticed


def raylet(of_node) -> int:
    (info,) = of_node.all_processes["raylet"]
    return info.process.pid


def started_by(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def of_the_fuzzer(pid: int) -> list[int]:
    """The server that a process has started, the worker and the kernel's process."""
    found = []
    for process in started_by(pid):
        try:
            found += [process] * (b"forkserver" in Path(f"/proc/{process}/cmdline").read_bytes())
        except OSError:
            continue
    return found


def wait_until(what, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.1)
    assert what()


def outline(progress: Progress) -> tuple:
    """The fields that do not depend on time."""
    failure = progress.failure and (progress.failure.case, progress.failure.first, progress.failure.minimal)
    return progress.examples, progress.ratio, progress.events, progress.features, progress.ratios, failure


@pytest.mark.nightly
def test_a_node_that_is_killed_loses_nothing_and_what_it_ran_runs_again(cluster, second, fuzz_in, tmp_path):
    plan = FuzzPlan(target="planted:FLASH", device="cpu", examples=12, seed=1, folder=tmp_path)
    plans = [msgspec.structs.replace(plan, seed=seed) for seed in range(4)]
    plans.append(msgspec.structs.replace(plan, target="planted:ONE_KEY_SHORT"))
    here = [fuzz_in(tmp_path, each.target, examples=12, seed=each.seed)[0] for each in plans]
    assert here[4].failure is not None
    killed = []

    def kill(index: int, progress: Progress) -> None:
        """Kill the second node and all that it has started, as soon as a kernel's process runs there."""
        if not killed and len(of_the_fuzzer(second)) == 3:
            killed.extend([second, *started_by(second)])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    with fleet.connected(cluster.address, None):
        ours = fleet.cluster("auto", [], None)
        assert (ours.device, ours.nodes, ours.room) == ("cpu", 2, 2)
        lost = []
        place = partial(ours.place, device_name=ours.look("planted:FLASH", lambda: None).device_name, lost=lost.append)
        there = runner.run(plans, ours.room, stop_at_failure=False, report=kill, place=place)
    assert killed
    assert (there.error, there.finished, len(there.restarted)) == (None, {0, 1, 2, 3, 4}, 1)
    assert len(lost) == 1
    assert lost[0].startswith(f"{socket.gethostname()} (")
    assert [outline(progress) for progress in there.progress] == [outline(progress) for progress in here]


@pytest.mark.nightly
def test_a_node_that_dies_is_named_in_one_line_and_ray_prints_nothing(cluster, second, attn_parity, monkeypatch):
    """Ray has the other processes of the node print the last lines of its log on stdout, 4 kB for each of them."""

    def kill() -> None:
        wait_until(lambda: len(of_the_fuzzer(second)) == 3, START_SECONDS)
        os.kill(second, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    # a shard for each node: the workers of the one that is killed go on, and it is missed long before they have drawn theirs
    monkeypatch.setattr(fleet, "CHECK_SECONDS", 0.25)
    options = ("--ray", cluster.address, "--target", "planted:FLASH", "--examples", 300, "--seed", 1, "--corpus", "none")
    run = attn_parity("fuzz", *options)
    killing.join()
    assert run.code == 0, run.err
    assert "raylet" not in (run.out + run.err).lower()
    (line,) = [line for line in run.err.splitlines() if "of Ray is lost" in line]
    assert line.startswith(f"node {socket.gethostname()} (")


def nodes_of_ray(**alive: bool) -> list[dict[str, object]]:
    return [
        {"NodeID": name * 4, "Alive": is_alive, "NodeManagerHostname": f"host-{name}", "NodeManagerAddress": "10.0.0.1"}
        for name, is_alive in alive.items()
    ]


def test_a_node_that_is_lost_is_told_once_and_none_that_was_lost_before(monkeypatch):
    told = []
    nodes = fleet.Nodes(told.append)
    monkeypatch.setattr(ray, "nodes", lambda: nodes_of_ray(a=True, b=True, c=False))
    nodes.look()
    nodes.hear("Task failed because the node it was running on is dead. Node IP: 10.0.0.1, node ID: aaaa.")
    nodes.hear("Node IP: 10.0.0.1, node ID: aaaa.")
    nodes.look()  # the cluster has not noticed yet
    assert told == ["host-a (10.0.0.1)"]
    monkeypatch.setattr(ray, "nodes", lambda: nodes_of_ray(a=False, b=False, c=False))
    nodes.look()
    assert told == ["host-a (10.0.0.1)", "host-b (10.0.0.1)"]


def test_a_run_of_a_module_that_only_this_machine_has_reports_as_without_ray(cluster, attn_parity, tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "kernel_of_this_machine.py").write_text("from planted import ONE_KEY_SHORT as TARGET\n")
    target = "kernel_of_this_machine:TARGET"
    arguments = ("fuzz", "--target", target, "--examples", 50, "--seed", 3, "--corpus", "none", "--json")
    fleet = ("--ray", cluster.address, "--working-dir", "kernels", "--report", "there")
    there = attn_parity(*arguments, "there.json", *fleet)
    assert there.code == 1, there.err
    assert "1 worker on 1 node of Ray" in there.out
    monkeypatch.syspath_prepend(tmp_path / "kernels")
    here = attn_parity(*arguments, "here.json", "--workers", 1, "--report", "here")
    assert here.code == 1, here.err
    assert {path.name for path in (tmp_path / "there").iterdir()} == {path.name for path in (tmp_path / "here").iterdir()}
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("there.json", "here.json"))
    assert [failure["case"] for failure in one["failures"]] == [failure["case"] for failure in other["failures"]]
    different = {name for name in one if one[name] != other[name]}
    assert different - {"seconds", "spent"} == {"failures"}  # they name files


@pytest.mark.nightly
def test_two_nodes_that_keep_going_report_the_distinct_failures_of_one_machine(cluster, second, attn_parity, tmp_path):
    """Nodes find one fault several times, and the report has it once."""
    options = ("--examples", 40, "--seed", 1, "--corpus", "none", "--json")
    arguments = ("fuzz", "--keep-going", "--target", "planted_hunt:THREE", *options)
    there = attn_parity(*arguments, "there.json", "--ray", cluster.address, "--report", "there")
    assert there.code == 1, there.err
    assert "2 workers on 2 nodes of Ray" in there.out
    here = attn_parity(*arguments, "here.json", "--workers", 1, "--report", "here")
    assert here.code == 1, here.err
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("there.json", "here.json"))
    assert len(one["failures"]) > 2
    assert sum(failure["later"] for failure in one["failures"]) > 2
    for of_there, of_here in zip(one["failures"], other["failures"], strict=True):
        assert {str(of_there[name]).replace("there/", "here/") for name in of_there} == {str(of_here[name]) for name in of_here}
    assert {path.name for path in (tmp_path / "there").iterdir()} == {path.name for path in (tmp_path / "here").iterdir()}


@pytest.mark.nightly
def test_a_killed_run_leaves_no_process_on_nodes(cluster, tmp_path, child_environment):
    head = raylet(cluster.head_node)
    command = [sys.executable, "-m", "attn_parity", "fuzz", "--ray", cluster.address, "--target", "planted:FLASH"]
    with subprocess.Popen(
        [*command, "--examples", "100000", "--corpus", "none"], cwd=tmp_path, env=child_environment, stdout=subprocess.DEVNULL
    ) as main:
        try:
            wait_until(lambda: main.poll() is not None or len(of_the_fuzzer(head)) == 3, START_SECONDS)
            assert main.poll() is None
        finally:
            main.kill()
    wait_until(lambda: not of_the_fuzzer(head), LEFT_SECONDS)


@pytest.mark.nightly
def test_a_node_with_other_sources_is_refused_in_one_line(cluster, attn_parity, monkeypatch):
    ours = provenance.identity("planted:FLASH")
    monkeypatch.setattr(provenance, "identity", lambda target: ours | {"sources of attn-parity": "0123"})
    run = attn_parity("fuzz", "--ray", cluster.address, "--target", "planted:FLASH", "--examples", 1, "--corpus", "none")
    assert run.code == 2
    (line,) = [line for line in run.err.splitlines() if not line.startswith("waiting until")]
    assert f"sources of attn-parity: got {ours['sources of attn-parity']}, expected 0123" in line


@pytest.mark.nightly
def test_a_node_without_attn_parity_is_refused_in_one_line(cluster, attn_parity, tmp_path):
    (tmp_path / "other" / "attn_fuzz").mkdir(parents=True)
    (tmp_path / "other" / "attn_fuzz" / "__init__.py").touch()  # found before the installed package, and empty
    run = attn_parity("fuzz", "--ray", cluster.address, "--target", "planted:FLASH", "--working-dir", "other")
    assert run.code == 2
    (line,) = [line for line in run.err.splitlines() if not line.startswith("waiting until")]
    assert line.endswith("No module named 'attn_fuzz.run': install attn-parity there as it is on this machine")


def test_a_resource_that_no_node_has_is_refused_in_one_line(cluster, attn_parity):
    for arguments in (("--needs", "gfx1100"), ("--device", "cuda")):
        run = attn_parity("fuzz", "--ray", cluster.address, "--target", "planted:FLASH", *arguments)
        assert run.code == 2
        (line,) = run.err.splitlines()
        assert f"no node of the cluster has CPU and {'GPU' if 'cuda' in arguments else 'gfx1100'}" in line


def test_auto_without_a_cluster_is_refused_in_one_line(attn_parity, monkeypatch):
    """Ray's own words name its options, which are none of this command."""

    def none_there(address):
        raise ConnectionError("Could not find any running Ray instance. Please specify the one by setting the `--address` flag")

    monkeypatch.setattr(fleet.services, "canonicalize_bootstrap_address_or_die", none_there)
    run = attn_parity("fuzz", "--target", "planted:FLASH", "--ray", "auto")
    assert run.code == 2
    (line,) = run.err.splitlines()
    assert "--ray auto: this machine is a node of no Ray cluster" in line
    assert "--address" not in line


def test_auto_after_the_cluster_has_ended_is_refused_in_one_line(attn_parity, monkeypatch):
    """Ray itself would wait for minutes, and print what its library logs."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    run = attn_parity("fuzz", "--target", "planted:FLASH", "--ray", "auto")
    assert run.code == 2
    (line,) = run.err.splitlines()
    assert "nothing answers at " in line
    assert ":1, which is auto here" in line


@pytest.mark.parametrize("seconds", [0, fleet.PATIENCE_SECONDS + 1])
def test_a_run_that_waits_for_a_node_says_so(seconds, monkeypatch):
    answer = node.SeenTarget("CPU", None)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(ray, "wait", lambda said, timeout: (said if timeout > seconds else [], []))
    monkeypatch.setattr(ray, "get", lambda said: said)
    monkeypatch.setattr(fleet.Cluster, "start", lambda *_: iter([answer]))
    said = []
    ours = fleet.Cluster("cpu", nodes=1, room=1, task=None)
    assert ours.look("planted:FLASH", lambda: said.append("waits")) == answer
    assert said == ["waits"] * (seconds > 0)


def test_without_ray_its_extra_is_named(attn_parity, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "attn_fuzz.run.processes.fleet")
    monkeypatch.delattr(attn_fuzz.run.processes, "fleet")
    run = attn_parity("fuzz", "--target", "planted:FLASH", "--ray", "auto")
    assert (run.code, run.err) == (2, "attn-parity: this needs ray, which is missing: pip install 'attn-parity[ray]'\n")


def test_a_head_that_answers_no_more_ends_the_run(tmp_path, monkeypatch):
    """Ray itself would end this process, a minute later and without a report."""
    monkeypatch.setattr(fleet, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(fleet, "HEAD_SECONDS", 0.0)
    plan = FuzzPlan(target="planted:FLASH", device="cpu", examples=1, seed=1, folder=tmp_path)
    tasks = fleet.Tasks(lambda plan: None, "127.0.0.1:1", fleet.Nodes(pytest.fail))  # pyright: ignore[reportArgumentType]
    outcome = runner.run([plan], 1, stop_at_failure=False, place=lambda plans: contextlib.nullcontext(tasks))
    assert outcome.error == "the head of the Ray cluster, 127.0.0.1:1, answers no more"


@pytest.mark.parametrize(("workers", "room"), [(None, 24), (3, 4), (6, 8), (100, 24)])
def test_few_workers_take_larger_shares_of_gpus(workers, room, monkeypatch):
    """Two nodes of GPUs, one of which is short of CPUs, and a node without."""
    have = [{"CPU": 64, "GPU": 2}, {"CPU": 8, "GPU": 2}, {"CPU": 64}]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources} for resources in have])
    ours = fleet.cluster("auto", [], workers)
    assert (ours.device, ours.nodes, ours.room) == ("cuda", 2, room)


def test_a_node_runs_nothing_for_another_identity():
    with pytest.raises(InputError, match=r"torch: got .*, expected 1\.0 as on this machine"):
        next(node.task(provenance.identity("planted:FLASH") | {"torch": "1.0"}, "planted:FLASH", b"not read"))


def test_another_module_of_the_target_is_another_identity(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert "module my_kernel_of_nobody" not in provenance.identity("my_kernel_of_nobody:TARGET")
    path = tmp_path / "my_kernel_of_nobody.py"
    path.write_text("TARGET = 1")
    one = provenance.identity("my_kernel_of_nobody:TARGET")["module my_kernel_of_nobody"]
    path.write_text("TARGET = 2")
    assert one != provenance.identity("my_kernel_of_nobody:TARGET")["module my_kernel_of_nobody"]

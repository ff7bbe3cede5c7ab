"""The ranks of `triton-over-ranks`: what they give, that a dead one is noticed, and that no process is left."""

import errno
import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from attn_fuzz.errors import HelperKilledError
from attn_fuzz.interpreted import new_memory
from attn_fuzz.run.processes import prepared
from attn_fuzz.targets.ranks.processes import TIMEOUT, RankProcesses


def in_a_process(test):
    """Runs the test in a process without other threads, which ranks are forked from."""

    @functools.wraps(test)
    def run(**fixtures):
        process = prepared.start("cpu", _call_wrapped, run, fixtures)
        process.join(60)
        assert process.exitcode == 0

    return run


def _call_wrapped(run, fixtures):
    run.__wrapped__(**fixtures)


def of_rank(group, number):
    """The sum over the ranks, which shows that they meet; in float8, which pickle does not know."""
    total = torch.tensor(float(number))
    dist.all_reduce(total, group=group)
    if number < 0:
        raise ValueError(f"rank {group.rank()} of {group.size()}")
    return total.to(torch.float8_e4m3fn)


def own_id(group):
    return os.getpid()


def dies(group):
    if group.rank():
        os._exit(3)


def is_killed(group):
    if group.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier(group)


def fails_on_one(group, which):
    """One rank fails before the others have met it."""
    if group.rank() == which:
        raise ArithmeticError(f"on rank {which}")
    dist.barrier(group)


@in_a_process
def test_nobody_waits_for_a_rank_that_fails():
    for which in (0, 1):
        processes = RankProcesses(3, (RuntimeError,))  # of gloo, whose other end has gone
        begin = time.monotonic()
        with pytest.raises(ArithmeticError, match=f"on rank {which}"):
            processes.call(fails_on_one, [(which,)] * 3)
        processes.close()
        assert time.monotonic() - begin < TIMEOUT.total_seconds() / 2, "the others have waited for it"


@in_a_process
def test_each_rank_gives_its_result_or_its_error():
    processes = RankProcesses(3, (ValueError,))
    assert [float(total) for total in processes.call(of_rank, [(1,), (2,), (4,)])] == [7, 7, 7]
    assert [float(total) for total in processes.call(of_rank, [(1,), (2,)])] == [3, 3]
    total, error = processes.call(of_rank, [(2,), (-1,)])
    assert (float(total), repr(error)) == (1, "ValueError('rank 1 of 2')")
    processes.close()


def new_numbers(group):
    return torch.empty(4)


@in_a_process
def test_new_memory_of_each_rank_holds_what_new_memory_holds_here():
    processes = RankProcesses(3, ())
    for with_numbers in (False, True):
        with new_memory.filled(with_numbers):
            made = torch.stack(processes.call(new_numbers, [()] * 3))
        assert made.isnan().all() if not with_numbers else (made > 1).all()
    processes.close()


@in_a_process
def test_a_rank_that_dies_is_an_error():
    processes = RankProcesses(2, (ValueError,))
    with pytest.raises(ChildProcessError, match="the process of a rank ended while it attended"):
        processes.call(dies, [(), ()])
    with pytest.raises(ChildProcessError):
        processes.call(own_id, [(), ()])
    processes.close()
    assert len(set(RankProcesses(3, (ValueError,)).call(own_id, [()] * 3))) == 3, "no ranks after a dead one"


@in_a_process
def test_a_rank_that_is_killed_from_outside_is_no_fault_of_the_kernel():
    processes = RankProcesses(3, (ValueError,))
    with pytest.raises(HelperKilledError, match="SIGKILL has ended the process of a rank"):
        processes.call(is_killed, [()] * 3)
    processes.close()


class Reset:
    """The end of a pipe whose other end was closed while something was unread: the system says ECONNRESET, and not EOF."""

    def send_bytes(self, data):
        pass

    def recv_bytes(self):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@in_a_process
def test_a_rank_whose_connection_is_reset_is_an_error():
    processes = RankProcesses(2, (ValueError,))
    ends, processes._ends = processes._ends, [Reset()]
    with pytest.raises(ChildProcessError, match="the process of a rank ended while it attended"):
        processes.call(own_id, [(), ()])
    processes._ends = ends
    processes.close()


@in_a_process
def write_ids_of_ranks(path):
    path.write_text(json.dumps(RankProcesses(3, (ValueError,)).call(own_id, [()] * 3)))


def test_the_ranks_end_with_the_process_that_made_them(tmp_path):
    write_ids_of_ranks(path=tmp_path / "ids")
    ids = json.loads((tmp_path / "ids").read_text())
    assert len(set(ids)) == 3
    end = time.monotonic() + 5
    while alive := [i for i in ids if Path(f"/proc/{i}").exists()]:
        assert time.monotonic() < end, f"still alive after 5 s: {alive}"
        time.sleep(0.1)

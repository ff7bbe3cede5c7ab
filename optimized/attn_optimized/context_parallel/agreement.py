"""Checks that all ranks make the same call. Otherwise they would wait for each other, or add numbers of different rows.

Every rank sends its call to all others, in one collective of fixed size. So all ranks know of a rank that refuses its own
call, and of a rank whose call is another one, and each of them raises an error.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from attn_contract import ContractError
from attn_contract.arguments import check_type, named


class OneOf(NamedTuple):
    """An argument that is one of a few values, which are the same on all ranks."""

    value: object
    values: tuple[object, ...]


Compared = int | float | OneOf | Callable[[], int]
"""An argument as ranks compare it: a number, the index of its value, or a function that makes a checksum of it."""
TIMEOUT, MIN_TIMEOUT, MAX_TIMEOUT = timedelta(seconds=60), timedelta(milliseconds=1), timedelta(days=365)
MAX_NUMBERS = 24
"""The number of numbers in every message about a call, so that calls of other kinds have messages of the same size."""


class RanksError(RuntimeError):
    """Another rank refused its call, came too late or has died."""


def check_timeout(timeout: timedelta) -> None:
    """Check how long a rank waits for the others. torch counts milliseconds, and takes 0 of them for no limit."""
    check_type("timeout", timeout, timedelta, "a timedelta")
    if not MIN_TIMEOUT <= timeout <= MAX_TIMEOUT:
        raise ContractError("timeout", timeout, "a timedelta from 1 ms to 365 days")


def run(
    what: str, group: dist.ProcessGroup, timeout: timedelta, collective: Callable[..., dist.Work | None], *tensors: Any
) -> None:
    """Run a collective. What follows on a GPU's stream waits for it; in gloo the process waits.

    Raises:
        RanksError: it failed, or in gloo took longer than the timeout.
    """
    start(what, group, timeout, collective, *tensors)()


def start(
    what: str, group: dist.ProcessGroup, timeout: timedelta, collective: Callable[..., dist.Work | None], *tensors: Any
) -> Callable[[], None]:
    """Start a collective, and return a function that waits for it as `run` does. A GPU runs later launches beside it.

    Raises:
        RanksError: it failed, or in gloo took longer than the timeout. What is returned raises it, too.
    """
    with _naming(what, timeout):
        work = _started(group, collective, tensors)
    is_gloo = dist.get_backend(group) == dist.Backend.GLOO

    def wait() -> None:
        with _naming(what, timeout):
            work.wait(*([timeout] if is_gloo else []))

    return wait


def run_to_the_end(
    what: str, group: dist.ProcessGroup, timeout: timedelta, collective: Callable[..., dist.Work | None], *tensors: Any
) -> None:
    """Run a collective for which the process waits, also on a GPU. A group of NCCL cannot be used after a timeout.

    Raises:
        RanksError: it failed, or took longer than the timeout.
    """
    with _naming(what, timeout):
        _started(group, collective, tensors).wait(timeout)


def _started(group: dist.ProcessGroup, collective: Callable[..., dist.Work | None], tensors: tuple[Any, ...]) -> dist.Work:
    work = collective(*tensors, group=group, async_op=True)
    assert work is not None
    return work


@contextmanager
def _naming(what: str, timeout: timedelta) -> Iterator[None]:
    """Raise torch's errors as a RanksError that names the collective."""
    try:
        yield
    except RuntimeError as error:
        reason = f"a rank has died, or did not come within {timeout.total_seconds():g} s"
        raise RanksError(f"attention over ranks: {what} failed: {reason}: {error}") from error


def compare_calls(
    group: dist.ProcessGroup,
    call: Mapping[str, Compared] | Exception,
    names: tuple[str, ...],
    timeout: timedelta,
) -> None:
    """Compare this rank's call with the others', and wait until all ranks have come.

    Args:
        call: the numbers that must be the same on all ranks, by name; or the error by which this rank refuses its call.
        names: the names of the numbers, in one order on all ranks. They tell one kind of call from another.
        timeout: the time that a rank waits for the others.

    Raises:
        Exception: `call`, if it is an error.
        ContractError: an argument is not the same on all ranks, or another rank's call is of another kind.
        RanksError: another rank refused its call, or did not come.
    """
    device = torch.device("cpu" if dist.get_backend(group) == dist.Backend.GLOO else "cuda")
    own = torch.tensor(_message(call, names), dtype=torch.int64, device=device)
    gathered = [torch.zeros_like(own) for _ in range(group.size())]
    run_to_the_end("comparing the ranks' calls", group, timeout, dist.all_gather, gathered, own)
    if isinstance(call, Exception):
        raise call
    calls = torch.stack(gathered).tolist()
    if refusing := [rank for rank, (has_refused, *_) in enumerate(calls) if has_refused]:
        raise RanksError(f"attention over ranks: rank {refusing[0]} refused its call, and says why")
    if others := [rank for rank, (_, kind, *_) in enumerate(calls) if kind != own[1]]:
        expected = "the same function on all ranks, in the same order"
        raise ContractError("call", f"another function's on rank {others[0]}", expected)
    for place, name in enumerate(names, 2):
        for rank, of_rank in enumerate(calls):
            if of_rank[place] != calls[0][place]:
                got, expected = (_in_words(call[name], numbers[place]) for numbers in (of_rank, calls[0]))
                raise ContractError(name, f"{got} on rank {rank}", f"{expected}, as on rank 0")


def checksum(tensor: torch.Tensor) -> int:
    """A checksum of a tensor's values, for which the process waits."""
    return zlib.crc32(tensor.cpu().numpy().tobytes())


def _message(call: Mapping[str, Compared] | Exception, names: tuple[str, ...]) -> list[int]:
    """The message to the other ranks: 1 if the call is refused, its kind, and its numbers."""
    assert isinstance(call, Exception) or call.keys() == set(names)
    numbers = [0] * len(names) if isinstance(call, Exception) else [_number(call[name]) for name in names]
    kind = zlib.crc32("\n".join(names).encode())
    return [int(isinstance(call, Exception)), kind, *numbers, *[0] * (MAX_NUMBERS - len(names))]


def _number(value: Compared) -> int:
    if isinstance(value, OneOf):
        return value.values.index(value.value)
    if isinstance(value, float):
        return struct.unpack("<q", struct.pack("<d", value))[0]
    return value if isinstance(value, int) else value()


def _in_words(value: Compared, number: int) -> str:
    """A rank's number, which is of the kind of this rank's value."""
    if isinstance(value, OneOf):
        return named(value.values[number])
    if isinstance(value, float):
        return repr(struct.unpack("<d", struct.pack("<q", number))[0])
    return str(number) if isinstance(value, int) else f"values of checksum {number:08x}"

"""Whether all ranks make the same call. Ranks that do not would wait for each other, or add numbers of unlike rows.

Every rank tells all others what its call is, in one collective of fixed size. So all ranks know of a rank that refuses its own
call, and of a rank whose call is another one, and each of them raises an error.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from attn_contract import ContractError, UnsupportedError


class RanksError(RuntimeError):
    """Another rank refused its call, came too late or has died."""


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
    """Start a collective, and return what waits for it as `run` does. A GPU runs what is launched in between beside it.

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
    """Run a collective, for which the process waits on a GPU, too. NCCL's group is of no use after a timeout.

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
    call: Mapping[str, int | Callable[[], torch.Tensor]] | ContractError | UnsupportedError,
    names: tuple[str, ...],
    timeout: timedelta,
) -> None:
    """Compare this rank's call with the others', and wait until all ranks have come.

    Args:
        call: numbers that must be the same on all ranks, by name, or functions that compute them on the device; or why this
            rank refuses its call.
        names: of the numbers, in one order on all ranks.
        timeout: how long a rank waits for the others.

    Raises:
        ContractError, UnsupportedError: `call`, if it is an error.
        ContractError: a number is not the same on all ranks.
        RanksError: another rank refused its call, or did not come.
    """
    is_refused = isinstance(call, Exception)
    assert isinstance(call, Exception) or call.keys() == set(names)
    device = torch.device("cpu" if dist.get_backend(group) == dist.Backend.GLOO else "cuda")
    told = [torch.zeros(1 + len(names), dtype=torch.int64, device=device) for _ in range(group.size())]
    numbers = [torch.as_tensor(0 if isinstance(call, Exception) else _number(call[name]), device=device) for name in names]
    own = torch.stack([torch.as_tensor(int(is_refused), device=device), *numbers]).long()
    run_to_the_end("comparing the ranks' calls", group, timeout, dist.all_gather, told, own)
    if isinstance(call, Exception):
        raise call
    calls = torch.stack(told).tolist()
    if refusing := [rank for rank, (has_refused, *_) in enumerate(calls) if has_refused]:
        raise RanksError(f"attention over ranks: rank {refusing[0]} refused its call, and says why")
    for place, name in enumerate(names, 1):
        for rank, of_rank in enumerate(calls):
            if of_rank[place] != calls[0][place]:
                raise ContractError(name, f"{of_rank[place]} on rank {rank}", f"{calls[0][place]}, as on rank 0")


def _number(value: int | Callable[[], torch.Tensor]) -> int | torch.Tensor:
    return value if isinstance(value, int) else value()

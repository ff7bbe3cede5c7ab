"""A step split into phases, each with the requests that one kernel serves, by lengths that the host knows."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from attn_contract import Batch, ContractError
from attn_contract.arguments import check_vector
from attn_contract.validation import check_lengths


@dataclass(frozen=True, eq=False, kw_only=True)
class KeySpan:
    """Consecutive keys of each of R requests, to be gathered from the cache.

    Args:
        begins: [R] int32, the first key of each request.
        key_start_loc: [R + 1] int32, prefix sum of the numbers of keys.
        num_keys, max_key_len: their sum and their largest, on the host.
    """

    begins: torch.Tensor
    key_start_loc: torch.Tensor
    num_keys: int
    max_key_len: int

    @classmethod
    def of(cls, begins: torch.Tensor, ends: torch.Tensor, device: torch.device) -> "KeySpan":
        """Keys [begin, end) of each request, from lengths on the host."""
        lens = ends - begins
        return cls(
            begins=to_device(device, begins.int()),
            key_start_loc=to_device(device, start_loc(lens)),
            num_keys=int(lens.sum()),
            max_key_len=int(lens.max()),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseMetadata:
    """The requests of one phase, in the order of the step.

    Args:
        batch: only these requests; its query rows count from 0 and are all owned.
        rows: the rows of the step: a slice, or int64 indices if requests of other phases lie in between.
        query_lens, seq_lens: [R] int64, on the host.
    """

    batch: Batch
    rows: slice | torch.Tensor
    query_lens: torch.Tensor
    seq_lens: torch.Tensor


def phase(step: Batch, query_lens: torch.Tensor, seq_lens: torch.Tensor, chosen: torch.Tensor) -> PhaseMetadata:
    """The phase of the chosen requests, [R] bool; all lengths are the host's."""
    device = step.query_start_loc.device
    rows = chosen.repeat_interleave(query_lens).nonzero().flatten()
    taken = _consecutive(chosen.nonzero().flatten(), device)
    query_lens, seq_lens = query_lens[chosen], seq_lens[chosen]
    assert step.block_table is not None
    batch = Batch(
        query_start_loc=to_device(device, start_loc(query_lens)),
        seq_lens=step.seq_lens[taken],
        max_query_len=int(query_lens.max()),
        max_seq_len=int(seq_lens.max()),
        num_actual_tokens=len(rows),
        causal=True,
        block_table=step.block_table[taken],
    )
    return PhaseMetadata(batch=batch, rows=_consecutive(rows, device), query_lens=query_lens, seq_lens=seq_lens)


def _check_host(name: str, host: torch.Tensor, like: torch.Tensor) -> None:
    check_vector(name, host, torch.int32)
    if len(host) != len(like) or host.device.type != "cpu":
        raise ContractError(name, f"{len(host)} entries on {host.device}", f"{len(like)} on the CPU, as many as on the device")


def host_query_lens(step: Batch, query_start_loc_cpu: torch.Tensor, seq_lens_cpu: torch.Tensor | None) -> torch.Tensor:
    """[R] int64, from lengths that are checked; `seq_lens_cpu` is None if the host does not know it."""
    _check_host("query_start_loc_cpu", query_start_loc_cpu, step.query_start_loc)
    if seq_lens_cpu is not None:
        _check_host("seq_lens_cpu", seq_lens_cpu, step.seq_lens)
    known = torch.zeros(len(step.seq_lens), dtype=torch.int32, device="cpu") if seq_lens_cpu is None else seq_lens_cpu
    on_host = dataclasses.replace(step, query_start_loc=query_start_loc_cpu, seq_lens=known)
    return check_lengths(on_host, ("query_start_loc_cpu", "seq_lens_cpu"))


class HostLengths(Protocol):
    """A step, and the lengths on the CPU by which it is split."""

    @property
    def step(self) -> Batch: ...
    @property
    def query_start_loc_cpu(self) -> torch.Tensor: ...
    @property
    def seq_lens_cpu(self) -> torch.Tensor | None: ...


def check_host_lengths(attn_metadata: HostLengths, longest: int, block_size: int, *, values: bool) -> None:
    """Check that the block table has room for `longest`, of the lengths of the host, and with `values` that the device has the
    same lengths."""
    step = attn_metadata.step
    assert step.block_table is not None
    num_blocks = step.block_table.shape[1]
    if longest > num_blocks * block_size:
        expected = f"at most {num_blocks * block_size}: block_table has {num_blocks} columns of {block_size} slots"
        raise ContractError("seq_lens_cpu", longest, expected)
    if values:
        for name in ("query_start_loc", "seq_lens"):
            on_host, on_device = getattr(attn_metadata, f"{name}_cpu"), getattr(step, name).cpu()
            if len(wrong := (on_host != on_device).nonzero()):
                r = int(wrong[0])
                raise ContractError(f"{name}_cpu[{r}]", int(on_host[r]), f"{int(on_device[r])}, as on the device")


def _consecutive(indices: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    """Ascending indices as a slice if they have no gap."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == len(indices) else to_device(device, indices)


def start_loc(lens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()


def to_device(device: torch.device, host: torch.Tensor) -> torch.Tensor:
    """On the device, without waiting for it."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

"""Processes that are real ranks, which meet by gloo, or by NCCL with a GPU each.

Here is also what those of `test_attend_over_ranks` run.
"""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from attn_contract import Batch, Layer
from attn_fuzz.interpreted import interpreter
from attn_fuzz.run.processes import prepared

from tests.support import calls

H, HK, D, BLOCK_SIZE = 12, 2, 16, 4
QUERY_LENS, SEQ_LENS = [1, 3, 0, 2, 1], [1, 9, 0, 2, 33]
"""A request of one key, so that ranks but the first have none; drafts; a request without a query; a longer one."""
SHORT, LONG = timedelta(seconds=4), timedelta(seconds=20)


def whole_call(device: str = "cpu", **fields) -> calls.PagedCall:
    tokens = calls.random_tokens(QUERY_LENS, SEQ_LENS, num_heads=H, num_kv_heads=HK, head_size=D)
    return calls.paged_call(tokens, block_size=BLOCK_SIZE, device=device, **fields)


def local_call(group: dist.ProcessGroup, interleave: int, **fields) -> tuple[torch.Tensor, torch.Tensor, Layer, Batch]:
    """This rank's queries, cache, layer, and the step with the rank's block table."""
    from attn_reference import context_parallel

    rank, num_ranks, device = group.rank(), group.size(), device_of(group)
    whole = whole_call(device, **fields)
    tokens = calls.random_tokens(QUERY_LENS, SEQ_LENS, num_heads=H, num_kv_heads=HK, head_size=D)
    keys, values = tokens.key.split(SEQ_LENS), tokens.value.split(SEQ_LENS)
    own = [context_parallel.tokens_of_rank(length, rank, num_ranks, interleave) for length in SEQ_LENS]
    key, value = (torch.cat([x[i] for x, i in zip(xs, own, strict=True)]) for xs in (keys, values))
    tokens = replace(tokens, key=key, value=value, seq_lens=[len(i) for i in own])
    local = calls.paged_call(tokens, block_size=BLOCK_SIZE, device=device)
    heads = H // num_ranks
    q = whole.q[:, rank * heads : (rank + 1) * heads]
    return q, local.kv_cache, whole.layer, replace(whole.batch, block_table=local.batch.block_table)


def device_of(group: dist.ProcessGroup) -> str:
    return "cpu" if dist.get_backend(group) == dist.Backend.GLOO else "cuda"


def attends(group: dist.ProcessGroup, kernels: str, interleave: int, exchange: str, *, timeout: timedelta = LONG, **fields):
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    q, kv_cache, layer, batch = local_call(group, interleave, **fields)
    step = local_step(batch, Dealing(num_ranks=group.size(), rank=group.rank(), interleave=interleave))
    return attend_over_ranks(group, q, kv_cache, layer, step, exchange=exchange, timeout=timeout, **_functions(kernels))


def _functions(kernels: str) -> dict[str, Callable]:
    if kernels == "triton":
        return {}
    import attn_reference

    return {"attention": attn_reference.paged_attention, "merge": attn_reference.merge_attn_parts}


def counts_messages(group: dist.ProcessGroup):
    """The number of network calls in an all-to-all of outputs and LSEs."""
    all_to_all, sent = dist.all_to_all_single, []

    def counted(received, message, **options):
        sent.append(message)
        return all_to_all(received, message, **options)

    dist.all_to_all_single = counted
    try:
        attends(group, "reference", 1, "all_to_all")
    finally:
        dist.all_to_all_single = all_to_all
    return (torch.tensor(len(sent)),)


def disagrees(group: dist.ProcessGroup, **of_rank_1):
    """A call that is another one on rank 1."""
    arguments = {"interleave": 1, "exchange": "all_to_all"} | (of_rank_1 if group.rank() == 1 else {})
    return attends(group, "reference", **arguments)


CHANGES: dict[str, dict[str, Callable]] = {
    "rows": {"q": lambda q: torch.cat([q, q])},
    "device": {"q": lambda q: q.to("meta")},
    "gradient": {"q": lambda q: q.clone().requires_grad_()},
    "dtypes": {"q": torch.Tensor.half, "kv_cache": torch.Tensor.half},
    "cache": {"kv_cache": torch.Tensor.half},
    # of the same sum, also where each is multiplied by its place
    "lengths": {"batch": lambda batch: replace(batch, seq_lens=batch.seq_lens + batch.seq_lens.new_tensor([2, -1, 0, 0, 0]))},
    "selected": {"batch": lambda batch: replace(batch, selected=batch.selected.flip(1))},
    "nothing": {},
}
"""Changes that rank 1 makes to an argument that the other ranks have as it is."""


def differs(group: dist.ProcessGroup, *, change: str = "nothing", fields: dict | None = None, **options):
    """A call in which rank 1 has changed arguments, and options of its own; `fields` are the layer's on all ranks."""
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    call = dict(zip(("q", "kv_cache", "layer", "batch"), local_call(group, 1, **(fields or {})), strict=True))
    changes = CHANGES[change] if group.rank() == 1 else {}
    call |= {argument: changed(call[argument]) for argument, changed in changes.items()}
    step = local_step(call.pop("batch"), Dealing(num_ranks=group.size(), rank=group.rank()))
    options = {"timeout": LONG, **_functions("reference")} | (options if group.rank() == 1 else {})
    return attend_over_ranks(group, *call.values(), step, **options)


def has_a_wrong_option(group: dist.ProcessGroup, **of_rank_1):
    return differs(group, fields={"output_scale": torch.tensor(0.5)}, **of_rank_1)


def makes_another_kind_of_call(group: dist.ProcessGroup):
    """Rank 1 compares a prefill, while rank 0 attends."""
    from attn_optimized.backends.triton_mla.over_ranks.impl import COMPARED_PREFILL
    from attn_optimized.context_parallel.agreement import compare_calls

    if group.rank() == 1:
        compare_calls(group, dict.fromkeys(COMPARED_PREFILL, 7), COMPARED_PREFILL, LONG)
    return attends(group, "reference", 1, "all_to_all")


def does_not_come(group: dist.ProcessGroup):
    """Rank 1 makes no call, and lives until the others have given up."""
    if group.rank() == 1:
        time.sleep(1.5 * SHORT.total_seconds())
        return ()
    return attends(group, "reference", 1, "all_to_all", timeout=SHORT)


def dies_in_the_middle(group: dist.ProcessGroup):
    """Rank 1 dies when the calls have been compared."""
    return differs(group, attention=lambda *arguments, **outputs: os._exit(3))


def over_ranks(num_ranks: int, folder: Path, scenarios: dict[str, Callable], device_type: str = "cpu") -> list[dict]:
    """The results or errors of each rank by scenario; {} of a rank that died.

    Ranks meet by gloo on a "cpu", and by NCCL on "cuda".
    """
    arguments = (num_ranks, folder, scenarios, device_type)
    processes = [prepared.start(device_type, run, rank, *arguments) for rank in range(num_ranks)]
    deadline = time.monotonic() + 90
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert not process.is_alive(), "a rank hangs"
    finally:
        for process in processes:
            process.kill()
            process.join()
    paths = [folder / f"{rank}.pt" for rank in range(num_ranks)]
    return [torch.load(path) if path.exists() else {} for path in paths]


def run(rank: int, num_ranks: int, folder: Path, scenarios: dict[str, Callable], device_type: str) -> None:
    """Run scenarios one after the other, and save what each gives or raises."""
    torch.set_num_threads(1)
    backend = "gloo"
    if device_type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(rank)
        # else torch waits a minute for the dumps of other processes before it ends this one
        os.environ["TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"] = "500"
    else:
        os.environ["TRITON_INTERPRET"] = "1"  # also beside a GPU
        interpreter.install()  # as in the fuzzer's processes, and in those of other tests
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks, timeout=LONG)
    dist.barrier()  # NCCL connects in a group's first collective, which has no timeout
    group = dist.group.WORLD
    assert group is not None
    results = {}
    for name, scenario in scenarios.items():
        try:
            results[name] = tuple(tensor.cpu() for tensor in scenario(group))
        except Exception as error:
            results[name] = (f"{type(error).__name__}: {error}", traceback.format_exc())
    torch.save(results, folder / f"{rank}.pt")
    if device_type == "cuda":
        os._exit(0)  # a group whose collective has failed may wait for it while it is destroyed

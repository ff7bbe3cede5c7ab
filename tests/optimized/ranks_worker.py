"""What each process of `test_attend_over_ranks` runs: real ranks, which meet by gloo."""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from attn_contract import Batch, Layer

from tests import calls

H, HK, D, BLOCK_SIZE = 12, 2, 16, 4
QUERY_LENS, SEQ_LENS = [1, 3, 0, 2, 1], [1, 9, 0, 2, 33]
"""A request of one key, so that ranks but the first have none; drafts; a request without a query; a longer one."""
SHORT = timedelta(seconds=4)


def whole_call(**fields) -> calls.PagedCall:
    tokens = calls.random_tokens(QUERY_LENS, SEQ_LENS, num_heads=H, num_kv_heads=HK, head_size=D)
    return calls.paged_call(tokens, block_size=BLOCK_SIZE, **fields)


def local_call(rank: int, num_ranks: int, interleave: int, **fields) -> tuple[torch.Tensor, torch.Tensor, Layer, Batch]:
    """This rank's queries, cache, layer, and the step with the rank's block table."""
    from attn_reference import context_parallel

    whole = whole_call(**fields)
    tokens = calls.random_tokens(QUERY_LENS, SEQ_LENS, num_heads=H, num_kv_heads=HK, head_size=D)
    keys, values = tokens.key.split(SEQ_LENS), tokens.value.split(SEQ_LENS)
    own = [context_parallel.tokens_of_rank(length, rank, num_ranks, interleave) for length in SEQ_LENS]
    key, value = (torch.cat([x[i] for x, i in zip(xs, own, strict=True)]) for xs in (keys, values))
    local = calls.paged_call(replace(tokens, key=key, value=value, seq_lens=[len(i) for i in own]), block_size=BLOCK_SIZE)
    heads = H // num_ranks
    q = whole.q[:, rank * heads : (rank + 1) * heads]
    return q, local.kv_cache, whole.layer, replace(whole.batch, block_table=local.batch.block_table)


def attends(group: dist.ProcessGroup, kernels: str, interleave: int, exchange: str, **fields):
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    q, kv_cache, layer, batch = local_call(group.rank(), group.size(), interleave, **fields)
    step = local_step(batch, Dealing(num_ranks=group.size(), rank=group.rank(), interleave=interleave))
    return attend_over_ranks(group, q, kv_cache, layer, step, exchange=exchange, timeout=SHORT, **_functions(kernels))


def _functions(kernels: str) -> dict[str, Callable]:
    if kernels == "triton":
        return {}
    import attn_reference

    return {"attention": attn_reference.paged_attention, "merge": attn_reference.merge_attn_parts}


def disagrees(group: dist.ProcessGroup, **of_rank_1):
    """A call that is another one on rank 1."""
    arguments = {"interleave": 1, "exchange": "all_to_all"} | (of_rank_1 if group.rank() == 1 else {})
    return attends(group, "reference", **arguments)


def disagrees_about_rows(group: dist.ProcessGroup):
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    q, kv_cache, layer, batch = local_call(group.rank(), group.size(), 1)
    q = torch.cat([q, q]) if group.rank() == 1 else q
    step = local_step(batch, Dealing(num_ranks=group.size(), rank=group.rank()))
    return attend_over_ranks(group, q, kv_cache, layer, step, timeout=SHORT, **_functions("reference"))


def is_on_another_device(group: dist.ProcessGroup):
    """The queries of rank 1 are where its step is not."""
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    q, kv_cache, layer, batch = local_call(group.rank(), group.size(), 1)
    q = q.to("meta") if group.rank() == 1 else q
    step = local_step(batch, Dealing(num_ranks=group.size(), rank=group.rank()))
    return attend_over_ranks(group, q, kv_cache, layer, step, timeout=SHORT, **_functions("reference"))


def does_not_come(group: dist.ProcessGroup):
    """Rank 1 makes no call, and lives until the others have given up."""
    if group.rank() == 1:
        time.sleep(1.5 * SHORT.total_seconds())
        return ()
    return attends(group, "reference", 1, "all_to_all")


def dies_in_the_middle(group: dist.ProcessGroup):
    """Rank 1 dies when the calls have been compared."""
    from attn_optimized.context_parallel import Dealing, attend_over_ranks, local_step

    q, kv_cache, layer, batch = local_call(group.rank(), group.size(), 1)
    step = local_step(batch, Dealing(num_ranks=group.size(), rank=group.rank()))
    functions = _functions("reference")
    if group.rank() == 1:
        functions["attention"] = lambda *arguments, **outputs: os._exit(3)
    return attend_over_ranks(group, q, kv_cache, layer, step, timeout=SHORT, **functions)


def run(rank: int, num_ranks: int, folder: Path, scenarios: dict[str, partial]) -> None:
    """Run scenarios one after the other, and save what each gives or raises."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks, timeout=5 * SHORT)
    group = dist.group.WORLD
    assert group is not None
    results = {}
    for name, scenario in scenarios.items():
        try:
            results[name] = tuple(scenario(group))
        except Exception as error:
            results[name] = (f"{type(error).__name__}: {error}", traceback.format_exc())
    torch.save(results, folder / f"{rank}.pt")

"""The cost of `batch_invariant=True`, and the scratch memory of split keys: `python -m benchmarks.batch_invariance`.

On a GPU: medians of replayed CUDA graphs, bfloat16, H = 32, HK = 8, D = 128, blocks of 16 in random order.
"""

import itertools
from collections.abc import Callable

import attn_optimized
import torch
from attn_contract import Batch, Layer, Layout
from rich.console import Console
from rich.table import Table

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, BLOCK_SIZE = 32, 8, 128, 16
REPLAYS = 30
CASES = {
    "decode, 1 x 128k": ([1], [131072]),
    "decode, 8 x 32k": ([1] * 8, [32768] * 8),
    "decode, 64 x 8k": ([1] * 64, [8192] * 64),
    "decode, 256 x 1k": ([1] * 256, [1024] * 256),
    "4 query tokens, 64 x 8k": ([4] * 64, [8192] * 64),
    "extend, 64 on 32k": ([64], [32768]),
    "prefill, 4 x 4k": ([4096] * 4, [4096] * 4),
}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.batch_invariance: torch sees no GPU here")
    table = Table("case", "ms", "invariant, ms", "ratio", "splits", "scratch, MiB", box=None)
    for name, (query_lens, seq_lens) in CASES.items():
        q, kv_cache, layer, batch = call(query_lens, seq_lens)
        out = torch.empty_like(q)
        plan = attn_optimized.plan_of(q, layer, batch)

        def attend(invariant: bool, arguments=(q, kv_cache, layer, batch), out=out) -> None:
            attn_optimized.paged_attention(*arguments, out=out, batch_invariant=invariant)

        usual, invariant = (median_ms(lambda mode=mode: attend(mode)) for mode in (False, True))
        scratch = f"{plan.scratch_bytes / 2**20:.1f}"
        table.add_row(name, f"{usual:.3f}", f"{invariant:.3f}", f"{invariant / usual:.2f}", str(plan.splits), scratch)
    console = Console(width=100)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    console.print(table)


def call(query_lens: list[int], seq_lens: list[int]) -> tuple[torch.Tensor, torch.Tensor, Layer, Batch]:
    """Tensors of a causal decoder step."""
    blocks = [-(-n // BLOCK_SIZE) for n in seq_lens]
    order = iter(torch.randperm(sum(blocks)).split(blocks))
    block_table = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True).int().cuda()
    shape = (sum(blocks), 2, BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE)
    kv_cache = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    q = torch.randn(sum(query_lens), NUM_HEADS, HEAD_SIZE, dtype=torch.bfloat16, device="cuda")
    layer = Layer(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        layout=Layout.BLOCKS_FIRST_NHD,
    )
    starts = [0, *itertools.accumulate(query_lens)]
    batch = Batch(
        query_start_loc=torch.tensor(starts, dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device="cuda"),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        num_actual_tokens=len(q),
        causal=True,
        block_table=block_table,
    )
    return q, kv_cache, layer, batch


def median_ms(run: Callable[[], None]) -> float:
    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[REPLAYS // 2]


if __name__ == "__main__":
    main()

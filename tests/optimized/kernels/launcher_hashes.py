"""Say for GPUs, which need not be here, whether `compile_call` gives what Triton's own launcher would load, as JSON.

Run as a script, in a process without Triton's interpreter: `python launcher_hashes.py gfx942 sm90`.
"""

import json
import sys
from types import SimpleNamespace

import torch
from attn_binaries.compilation import compiled
from attn_contract import Batch, Layer, Layout
from attn_fuzz.emulated.compilation import gpu_target
from attn_optimized.attention import paged_attention_calls, plan_of
from attn_optimized.kernel_call import KernelCall
from triton.runtime import driver


def decode_calls(architecture: str, num_blocks: int) -> list[KernelCall]:
    """A split decode and its reduction, over a cache of some size."""

    def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    layer = Layer(num_heads=32, num_kv_heads=8, head_size=128, scale=0.1, layout=Layout.BLOCKS_FIRST_NHD)
    batch = Batch(
        query_start_loc=on_meta(3, dtype=torch.int32),
        seq_lens=on_meta(2, dtype=torch.int32),
        max_query_len=1,
        max_seq_len=4096,
        num_actual_tokens=2,
        causal=True,
        block_table=on_meta(2, 256, dtype=torch.int32),
    )
    q, cache = on_meta(2, 32, 128), on_meta(num_blocks, 2, 16, 8, 128)
    plan = plan_of(q, layer, batch, architecture=architecture, compute_units=64)
    return list(paged_attention_calls(q, cache, layer, batch, plan, out=torch.empty_like(q)))


def launcher_hash(call: KernelCall, architecture: str) -> str:
    """The hash of the code that the launcher compiles where the driver says that this GPU is here."""
    target = gpu_target(architecture)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target, get_current_device=lambda: architecture, get_current_stream=lambda device: 0
        )
    )
    launch = call.launch
    return launch.kernel.run(grid=launch.grid, warmup=True, **call.arguments, **launch.constants, **launch.options).hash


def main(architectures: list[str]) -> None:
    report = {
        f"{architecture} {call.launch.kernel.fn.__name__} {num_blocks}": [
            launcher_hash(call, architecture),
            compiled(call, architecture)[0].hash,
        ]
        for architecture in architectures
        for num_blocks in (1 << 8, 1 << 16)
        for call in decode_calls(architecture, num_blocks)
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

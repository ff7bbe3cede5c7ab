"""`python -m benchmarks indexer`: the stages of a decode that chooses its keys, beside others' kernels of the same stage.

An index layer of DeepSeek-V3.2: 64 heads of 128 dims, 2048 keys of each query, float8 keys in blocks of 64 with a float32 scale
each. Attention after it has 16 latent heads of 576 dims (a rank of eight), in bfloat16.
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from attn_fuzz.text import one_line
from attn_parity.console import notes, plain_table, results
from attn_parity.device import device_name

from benchmarks.measuring.device import use_device
from benchmarks.options import aiter_option, tiny_option, vllm_option

if TYPE_CHECKING:
    import torch

HEADS, HEAD_SIZE, TOP_K, BLOCK_SIZE = 64, 128, 2048, 64
LATENT_HEADS, LATENT_SIZE, VALUE_SIZE = 16, 576, 512
CASES = ((32, 32 << 10), (8, 128 << 10), (2, 512 << 10), (1, 32 << 10), (1, 128 << 10), (1, 512 << 10))
"""Requests of one query each, and keys of each."""
TINY = ((2, 300),)
COLUMNS = ("median", "10 % to 90 %", "times the floor")
MAX_LOGIT_DIFFERENCE = 1e-3
"""The largest difference of logits of two participants, as a share of the largest logit: beyond it nothing is timed."""


class Decode(NamedTuple):
    """Tensors of a step."""

    requests: int
    keys: int
    q: "torch.Tensor"
    weights: "torch.Tensor"
    index_cache: "torch.Tensor"
    kv_cache: "torch.Tensor"
    latent_q: "torch.Tensor"
    block_table: "torch.Tensor"
    seq_lens: "torch.Tensor"


@click.command("indexer")
@vllm_option
@aiter_option
@tiny_option("Two requests of 300 keys, on a CPU too")
def command(vllm: Path | None, aiter: Path | None, tiny: bool) -> None:
    """Time index logits, selection and attention over the selection, in decodes of 32k to 512k keys.

    The floor of a stage is the time to read and write its bytes once.
    """
    device = use_device(tiny=tiny)
    from attn_fuzz.foreign.loading import variable
    from attn_parity.timing import side_by_side

    from benchmarks.measuring import clock, machine
    from benchmarks.participants.loading import package_folder
    from benchmarks.results import in_words, versions

    for package, folder in (("vllm", vllm), ("aiter", aiter)):
        if folder is not None:
            os.environ[variable(package)] = str(package_folder(package, folder).parent)
    results.print(f"{device_name(device.type)}, {in_words(versions({}))}")
    rate = machine.rates(device, tiny=tiny).read
    for requests, keys in TINY if tiny else CASES:
        step = decode(requests, keys, device)
        table = plain_table(f"{requests} x {keys} keys: us", *COLUMNS, right=COLUMNS)
        for stage, (moved, participants) in stages_of(step).items():
            loops = {}
            for name, run in participants:
                try:
                    run()
                    loops[name] = clock.loop_of(device, [run])
                except Exception as error:
                    table.add_row(f"{stage}: {name}", f"{type(error).__name__}: {error}"[:80])
            floor_us = 1e6 * moved / rate
            spreads = side_by_side([*loops.values()], seconds=0.1 if tiny else 2.0)
            for name, spread in zip(loops, spreads, strict=True):
                cells = (f"{1e3 * spread.ms:.1f}", f"{1e3 * spread.p10:.1f} to {1e3 * spread.p90:.1f}")
                table.add_row(f"{stage}: {name}", *cells, f"{1e3 * spread.ms / floor_us:.2f}")
        results.print(table)


def decode(requests: int, keys: int, device: "torch.device") -> Decode:
    """A step whose requests have blocks of their own, in drawn order, and random numbers."""
    import torch

    width = -(-keys // BLOCK_SIZE)
    blocks = requests * width
    generator = torch.Generator(device=device).manual_seed(keys)
    drawn = functools.partial(torch.randn, generator=generator, device=device)
    table = torch.randperm(blocks, generator=generator, device=device).int().view(requests, width)
    index_cache = torch.zeros(blocks, BLOCK_SIZE, HEAD_SIZE + 4, dtype=torch.uint8, device=device)
    codes = index_cache.view(blocks, -1)[:, : BLOCK_SIZE * HEAD_SIZE].view(torch.float8_e4m3fn)
    codes.copy_(drawn(codes.shape, dtype=torch.bfloat16).to(codes.dtype))
    scales = index_cache.view(blocks, -1)[:, BLOCK_SIZE * HEAD_SIZE :].view(torch.float32)
    scales.copy_(drawn(scales.shape).abs() + 0.1)
    return Decode(
        requests=requests,
        keys=keys,
        q=drawn((requests, HEADS, HEAD_SIZE)).to(torch.float8_e4m3fn),
        weights=drawn((requests, HEADS)),
        index_cache=index_cache,
        kv_cache=drawn((blocks, BLOCK_SIZE, LATENT_SIZE), dtype=torch.bfloat16),
        latent_q=drawn((requests, LATENT_HEADS, LATENT_SIZE), dtype=torch.bfloat16),
        block_table=table,
        seq_lens=torch.full((requests,), keys, dtype=torch.int32, device=device),
    )


def stages_of(step: Decode) -> dict[str, tuple[float, list[tuple[str, Callable[[], Any]]]]]:
    """The bytes and the participants of each stage. Logits of other projects are compared with ours."""
    import attn_optimized
    import torch
    from attn_contract import Batch, Indexer, IndexLayout, Layer, Layout

    layer = Indexer(num_heads=HEADS, head_size=HEAD_SIZE, top_k=TOP_K, layout=IndexLayout.FLAT, cache_dtype=torch.float8_e4m3fn)
    starts = torch.arange(step.requests + 1, dtype=torch.int32, device=step.q.device)
    of_step: dict[str, Any] = {"query_start_loc": starts, "seq_lens": step.seq_lens, "block_table": step.block_table}
    sizes: dict[str, Any] = {"max_query_len": 1, "max_seq_len": step.keys, "num_actual_tokens": step.requests}
    batch = Batch(causal=True, **of_step, **sizes)
    ours = functools.partial(attn_optimized.index_logits, step.q, step.weights, step.index_cache, layer, batch)
    logits = ours()
    others = [(name, run) for name, run in others_logits(step) if _agrees(run, logits[0], name)]
    select = functools.partial(attn_optimized.select, logits, layer, batch)
    topk = functools.partial(torch.topk, logits[0], min(TOP_K, step.keys), sorted=False)
    attention = Layer(
        num_heads=LATENT_HEADS, num_kv_heads=1, head_size=LATENT_SIZE, head_size_v=VALUE_SIZE, scale=LATENT_SIZE**-0.5,
        layout=Layout.LATENT, selection_unit=1,
    )  # fmt: skip
    over = Batch(causal=True, selected=select(), **of_step, **sizes)
    out = step.latent_q.new_empty(step.requests, LATENT_HEADS, VALUE_SIZE)
    attend = functools.partial(attn_optimized.paged_attention, step.latent_q, step.kv_cache, attention, over, out=out)
    keys = step.requests * step.keys
    chosen = step.requests * min(TOP_K, step.keys)
    return {
        "logits": (keys * (HEAD_SIZE + 4 + 4), [("ours", ours), *others]),
        "selection": (4 * (keys + step.requests * TOP_K), [("ours", select), ("torch.topk", topk)]),
        "attention": (2 * chosen * LATENT_SIZE + 4 * chosen, [("ours", attend)]),
    }


def _agrees(run: Callable[[], Any], ours: "torch.Tensor", name: str) -> bool:
    """True if another's logits are ours; if not, why it is not timed is printed."""
    try:
        got = run()[: len(ours), : ours.shape[1]]
    except Exception as error:
        notes.print(one_line(f"{name} did not run: {type(error).__name__}: {error}", 300))
        return False
    worst = float((got - ours).abs().max() / ours.abs().max())
    if not worst <= MAX_LOGIT_DIFFERENCE:
        notes.print(f"{name} is not timed: its logits differ by {worst:.2g} of the largest one")
    return worst <= MAX_LOGIT_DIFFERENCE


def others_logits(step: Decode) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Kernels of a decode over a flat index cache: vLLM's for ROCm, and AITER's where it has no Gluon."""
    import torch
    from attn_fuzz.targets.packages.aiter import mqa_logits as aiter_mqa_logits
    from attn_fuzz.targets.packages.vllm import indexer as vllm_indexer

    logits = torch.empty(step.requests, step.keys, dtype=torch.float32, device=step.q.device)
    cache, q = step.index_cache.unsqueeze(2), step.q.unsqueeze(1)
    units = torch.cuda.get_device_properties(step.q.device).multi_processor_count if step.q.is_cuda else 1
    if vllm_indexer.VLLM_PAGED_MQA_LOGITS.unavailable("cuda") is None:
        module = vllm_indexer.load(torch.float8_e4m3fn)
        workspace = SimpleNamespace(get_simultaneous=lambda *shapes: (logits,))
        vars(module).update(current_workspace_manager=lambda: workspace, _decode_cu_count=lambda: units)
        given = (q, cache, step.weights, step.seq_lens, step.block_table, step.keys)
        yield "vLLM", functools.partial(module.rocm_fp8_paged_mqa_logits_triton, *given)
    if aiter_mqa_logits.AITER_PAGED_MQA_LOGITS.unavailable("cuda") is None:
        given = (q, cache, step.weights, logits, step.seq_lens, step.block_table, units)

        def aiter() -> "torch.Tensor":
            aiter_mqa_logits.launch_paged(*given)
            return logits

        yield "AITER", aiter

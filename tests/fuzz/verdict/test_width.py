"""The bound is as wide as correct kernels need it and no wider: they come near it, and a forgotten key breaks it."""

import dataclasses

import attn_reference
import pytest
import torch
from attn_contract import Layout
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.judge import judge
from attn_fuzz.verdict.rounding import Rounding

BLOCK_SIZE, HEAD_SIZE = 16, 64
ROUNDING = Rounding(keys_per_tile=64, splits=8, exact_division=True)
"""Of a kernel: the interpreter's, and a GPU's that splits the keys."""
LENGTHS = (128, 2048, 32768)
LEAST = {"out float32": 0.05, "out float16": 0.7, "out bfloat16": 0.7, "out fp8_e4m3fn": 0.7, "out fp8_e4m3fnuz": 0.7}
LEAST |= {"lse float32": 0.05, "lse float16": 0.05, "lse bfloat16": 0.05}
"""Error / bound that the kernels reach at least, by tensor and dtype. With a bound that is twice as wide, most reach less."""


def step_of(dtype: str, kind: str, n: int, seed: int) -> tuple[Case, tensors.Step]:
    """A decode of n keys."""
    case = Case(
        target="reference-fp32",
        dtype=dtype,
        group_size=2,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        requests=(Request(1, n, tuple(range(n // BLOCK_SIZE))),),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=BLOCK_SIZE, num_blocks=n // BLOCK_SIZE),
        writes=False,
        values=Values(kind, seed),
    )
    return case, tensors.build(case)


def attend(step: tensors.Step, seq_len: int) -> tensors.Step:
    batch = dataclasses.replace(step.batch, seq_lens=torch.full_like(step.batch.seq_lens, seq_len))
    attn_reference.paged_attention(step.q, step.kv_cache, step.layer, batch, out=step.out)
    return step


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["exact", "one_hot"])
@pytest.mark.parametrize("n", LENGTHS)
def test_one_forgotten_key_among_n_is_seen_in_values_made_for_it(dtype, kind, n):
    for seed in range(3):
        case, step = step_of(dtype, kind, n, seed)
        assert judge(case, attend(step, n), ROUNDING).kind == "agree"
        assert judge(case, attend(step, n - 1), ROUNDING).kind != "agree"


@pytest.mark.nightly
@pytest.mark.parametrize(("dtype", "most_keys"), [("float32", 32768), ("float16", 2048), ("bfloat16", 128)])
def test_one_forgotten_key_among_as_many_is_seen_in_random_values(dtype, most_keys):
    """A bound that is twice as wide sees it no longer in 16 bits."""
    for seed in range(3):
        case, step = step_of(dtype, "random", most_keys, seed)
        assert judge(case, attend(step, most_keys - 1), ROUNDING).kind != "agree"


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_correct_kernels_come_near_the_bound_and_keep_it(fuzz_apart):
    progress = fuzz_apart("triton", 150, seed=2)
    assert progress.failure is None
    most: dict[str, float] = {}
    for name, bins in progress.ratios.items():
        tensor, dtype, _ = name.split(" ", 2)
        largest = max((i for i, count in enumerate(bins) if count), default=0)
        most[f"{tensor} {dtype}"] = max(most.get(f"{tensor} {dtype}", 0), ratios.EDGES[min(largest, len(ratios.EDGES) - 1)])
    assert most.keys() == LEAST.keys()
    assert {name: found for name, found in most.items() if not LEAST[name] <= found <= 1} == {}

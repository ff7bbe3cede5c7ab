"""A call that checks no values waits for no device, so that a CUDA graph can hold it."""

from dataclasses import replace
from functools import partial

import attn_optimized
import pytest
import torch
from attn_contract import Layout
from attn_optimized.attention import forget_launches

from tests.optimized.test_wrong_arguments import write_of
from tests.waits import waits_of

NUMBERS = torch.tensor([2, 0, 1])
WAITING = {
    "bool": lambda: bool((NUMBERS == 1).all()),
    "int": lambda: int(NUMBERS.max()),
    "nonzero": lambda: NUMBERS.nonzero(),
    "mask": lambda: NUMBERS[NUMBERS > 0],
    "equal": lambda: torch.equal(NUMBERS, NUMBERS),
    "repeat_interleave": lambda: torch.repeat_interleave(NUMBERS, NUMBERS),
}


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_a_number_that_is_read_is_a_wait(call):
    assert waits_of(call)
    assert not waits_of(lambda: (NUMBERS.cumsum(0) + NUMBERS.long())[NUMBERS].repeat_interleave(2).clone())


@pytest.fixture
def calls(paged_call, varlen_call, device):
    step, dense = paged_call([3, 1], [20, 9], sinks=[0.0] * 4), varlen_call([3, 2], alibi_slopes=torch.ones(4))
    flags = step._replace(batch=replace(step.batch, causal=torch.tensor([True, False], device=device)))
    latent = paged_call([2], [9], layout=Layout.LATENT, num_kv_heads=1, head_size=48, head_size_v=32)
    scales = dict.fromkeys(("k_scale", "v_scale"), torch.ones((), device=device))
    write = write_of(Layout.KV_FIRST_NHD, device, kv_cache_dtype=torch.float8_e4m3fn, **scales)
    rotated = write | {"q": write["k"].clone(), "positions": torch.zeros(2, dtype=torch.int64, device=device)}
    rotated |= {"cos_sin_cache": torch.tensor([[1.0, 0.0]], device=device), "is_neox": True}
    kv_c, k_pe = torch.zeros(2, 32, device=device), torch.zeros(2, 16, device=device)
    written = {"kv_c": kv_c, "k_pe": k_pe, "kv_cache": latent.kv_cache, "layer": latent.layer}
    written["slot_mapping"] = torch.full((2,), -1, dtype=torch.int64, device=device)
    outs, lses = torch.zeros(2, 3, 2, 16, device=device), torch.zeros(2, 2, 3, device=device)
    return {
        "paged": partial(attn_optimized.paged_attention, *step),
        "flags": partial(attn_optimized.paged_attention, *flags),
        "latent": partial(attn_optimized.paged_attention, *latent),
        "invariant": partial(attn_optimized.paged_attention, *step, batch_invariant=True),
        "dense": partial(attn_optimized.varlen_attention, *dense),
        "cascade": partial(attn_optimized.cascade_attention, *step, 0),
        "write": partial(attn_optimized.write_kv_cache, **write),
        "rope": partial(attn_optimized.rope_and_write_kv_cache, **rotated),
        "latent write": partial(attn_optimized.write_latent_cache, **written),
        "states": partial(attn_optimized.merge_attn_states, outs[0], lses[0], outs[1], lses[1]),
        "parts": partial(attn_optimized.merge_attn_parts, outs, lses),
    }


KINDS = (
    *("paged", "flags", "latent", "invariant", "dense", "cascade"),
    *("write", "rope", "latent write", "states", "parts"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_in_a_first_call_or_a_later_one(kind, calls):
    forget_launches()
    for _ in range(2):
        assert waits_of(calls[kind]) == []


@pytest.mark.parametrize("kind", ["paged", "dense", "cascade", "write", "rope", "latent write"])
def test_values_are_read_on_demand(kind, calls):
    assert waits_of(partial(calls[kind], validate=True))

"""Which calls the warp specialized kernel serves, and what it computes; the fuzzer draws `triton@prompts`."""

import gc
import weakref

import attn_optimized
import pytest
import torch
from attn_contract import Batch, Layer, Layout
from attn_fuzz.targets.triton import warp_specialized
from attn_optimized.attention import attention_launches
from attn_optimized.kernels.warp_specialized import warp_specialized_kernel
from attn_optimized.launch.call import AttentionCall, PagedKeys

from tests.support.calls import PagedCall

H200 = {"architecture": "sm90", "compute_units": 132}


@pytest.fixture
def interpreted_h200(device):
    if device.type == "cuda":
        pytest.skip("prompts of so few tokens do not fill a GPU: attn-parity fuzz --target triton@prompts")
    with warp_specialized():
        yield


def dense(call):
    return call._replace(kv_cache=call.kv_cache.contiguous())


def served(call, out=None, **gpu):
    """The launch's constants if the kernel serves a call."""
    gpu = gpu or {"architecture": "sm90", "compute_units": 1}
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch, **gpu)
    out = torch.empty_like(call.q) if out is None else out
    launch = attention_launches(
        plan, AttentionCall(call.q, PagedKeys(call.kv_cache), call.layer, call.batch, out, None)
    ).attention
    return launch.constants if launch.kernel is warp_specialized_kernel else None


SINKS = [0.5, 30.0, -30.0, -torch.inf]


@pytest.mark.parametrize(
    ("head_size", "block_size", "layout", "sinks"),
    [
        (256, 64, Layout.BLOCKS_FIRST_NHD, SINKS),
        (256, 192, Layout.KV_FIRST_HND, None),
        (128, 128, Layout.KV_FIRST_HND, SINKS),
        (128, 256, Layout.BLOCKS_FIRST_NHD, None),
    ],
)
def test_the_kernel_agrees_with_the_reference(
    head_size, block_size, layout, sinks, paged_call, assert_agrees, interpreted_h200
):
    lens = [70, 0, 1, 200, 33], [300, 0, 150, 200, 64]
    sizes = {"head_size": head_size, "block_size": block_size}
    call = dense(paged_call(*lens, **PLAIN | sizes, layout=layout, sinks=sinks))
    assert served(call) is not None
    assert_agrees(call, attn_optimized.paged_attention)


PLAIN = {"block_size": 64, "head_size": 256, "dtype": torch.float16}
REFUSED = {
    "window": {"window": (40, -1)},
    "soft cap": {"logits_soft_cap": 5.0},
    "non-causal": {"causal": False},
    "flags": {"causal": [True]},
    "scale below 0": {"scale": -0.5},
    "packed": {"layout": Layout.CONTENT_PACKED},
    "page of 32": {"block_size": 32},
    "128 dims over pages of half a tile": {"head_size": 128},
    "64 dims": {"head_size": 64},
    "float32": {"dtype": torch.float32},
}


@pytest.mark.parametrize("name", REFUSED)
def test_only_rules_that_it_names_are_served(name, paged_call):
    assert served(dense(paged_call([130], [300], **PLAIN))) is not None
    assert served(dense(paged_call([130], [300], **PLAIN | REFUSED[name]))) is None


def test_unaligned_rows_and_another_type_of_outputs_are_not_served(paged_call):
    call = dense(paged_call([130], [300], **PLAIN))
    q = call.q.new_empty(call.q.numel() + 1)[1:].view(call.q.shape)
    assert served(call) is not None
    assert served(call._replace(q=q)) is None
    padded = torch.nn.functional.pad(call.kv_cache.flatten(1), (0, 8))[:, :-8].view(call.kv_cache.shape)
    assert served(call._replace(kv_cache=padded)) is None, "rows of one block are no whole rows from those of the next"
    assert served(call, out=call.q.float()) is None


def on_meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def prompts(lens, head_size, block_size, most_keys=None, heads=16, kv_heads=8):
    """Prompts, or chunks of prompts behind `most_keys` keys at most, for a GPU that is not here."""
    ints, starts = on_meta(len(lens), dtype=torch.int32), on_meta(len(lens) + 1, dtype=torch.int32)
    layer = Layer(num_heads=heads, num_kv_heads=kv_heads, head_size=head_size, scale=0.1, layout=Layout.BLOCKS_FIRST_NHD)
    batch = Batch(
        query_start_loc=starts,
        seq_lens=ints,
        max_query_len=max(lens),
        max_seq_len=most_keys or max(lens),
        num_actual_tokens=sum(lens),
        causal=True,
        block_table=on_meta(len(lens), 64, dtype=torch.int32),
    )
    return PagedCall(on_meta(sum(lens), heads, head_size), on_meta(64, 2, block_size, kv_heads, head_size), layer, batch)


@pytest.mark.parametrize(
    ("lens", "head_size", "block_size", "most_keys", "is_served"),
    [
        ((8192,), 256, 64, None, True),
        ((8192,), 256, 32, None, False),
        ((8192,), 64, 128, None, False),
        ((1024,) * 32, 256, 64, None, True),
        ((4096, *[1] * 30), 256, 64, None, True),
        ((4096, *[1] * 40), 256, 64, None, False),
        ((512,), 256, 64, None, False),
        ((100,) * 60, 256, 64, None, False),
        ((512,) * 8, 256, 64, 30_000, True),
        ((512,) * 8, 256, 64, 35_000, False),
        ((8192,), 128, 128, None, False),
        ((1024,) * 4, 128, 128, 4096, True),
        ((1024,) * 4, 128, 64, 4096, False),
        ((1024,) * 4 + (1,) * 5, 128, 128, 4096, False),
    ],
)
def test_an_h200_runs_prompts_by_it(lens, head_size, block_size, most_keys, is_served):
    call = prompts(lens, head_size, block_size, most_keys)
    assert (served(call, **H200) is not None) == is_served
    assert served(call, architecture="gfx942", compute_units=304) is None
    assert served(call, architecture="sm100", compute_units=148) is None


def test_the_interpreter_runs_what_amd_runs(paged_call):
    call = dense(paged_call([130], [300], **PLAIN))
    assert served(call, architecture="interpreter", compute_units=1) is None


def test_no_tensor_of_a_step_is_kept(paged_call):
    call = paged_call([70, 1], [300, 20], **PLAIN)
    attn_optimized.paged_attention(*call)
    tensors = [weakref.ref(tensor) for tensor in (call.q, call.kv_cache, call.batch.query_start_loc, call.batch.seq_lens)]
    del call
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * len(tensors)

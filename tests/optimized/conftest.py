"""Calls of the kernels, drawn from a few numbers, and their comparison with the reference by the judge's bound."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import attn_optimized
import pytest
import torch
from attn_contract import Layout
from attn_fuzz.targets.triton import MODE_OF_FORMAT, TRITON, TRITON_LATENT
from attn_optimized.attention import paged_attention_calls
from attn_optimized.kernel_call import Launch

from tests.support import calls
from tests.support.agreement import assert_within_bound
from tests.support.calls import PagedCall, VarlenCall

GUARD = 5
"""Elements after each row of an output that a kernel must not write."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every dtype that is right here: the interpreter multiplies bfloat16 wrongly."""
    if "dtype" in metafunc.fixturenames:
        dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def paged_call(device: torch.device) -> Callable[..., PagedCall]:
    """Builds a call from lengths, with NaN in the slots of all keys that no query sees, as in blocks that were freed."""

    def build(
        query_lens: Sequence[int],
        seq_lens: Sequence[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_size: int = 32,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> PagedCall:
        sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_size": head_size}
        tokens = calls.random_tokens(query_lens, seq_lens, dtype=dtype, **sizes)
        call = calls.paged_call(tokens, device=device, **options)
        return calls.forget(call, calls.unseen_slots(call))

    return build


@pytest.fixture
def varlen_call(device: torch.device) -> Callable[..., VarlenCall]:
    """Builds a call from lengths."""

    def build(
        query_lens: Sequence[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_size: int = 32,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> VarlenCall:
        sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_size": head_size}
        return calls.varlen_call(calls.random_tokens(query_lens, query_lens, dtype=dtype, **sizes), device=device, **options)

    return build


def launches(call: PagedCall, **gpu: Any) -> list[Launch]:
    """The launches of a paged call, planned for this machine or for a GPU: options of `plan_of`."""
    plan = attn_optimized.plan_of(call.q, call.layer, call.batch, **gpu)
    out = call.q.new_empty(*call.q.shape[:2], call.layer.v_head_size)
    return [made.launch for made in paged_attention_calls(*call, plan, out=out)]


def kind_of(call: PagedCall, **gpu: Any) -> Any:
    """For what the attention kernel of a paged call is compiled."""
    return launches(call, **gpu)[0].constants["KIND"]


FUNCTIONS = ("paged", "flags", "latent", "invariant", "plan", "dense", "cascade")
FUNCTIONS += ("write", "rope", "latent write", "states", "parts")
"""The calls that `every_call` makes."""


@pytest.fixture
def every_call(paged_call, varlen_call, device) -> Callable[[torch.dtype], dict[str, Callable[..., object]]]:
    """Builds calls of every function by name, of tensors of a dtype. A write writes to no slot."""

    def build(dtype: torch.dtype) -> dict[str, Callable[..., object]]:
        step, dense = paged_call([3, 1], [20, 9], dtype=dtype, sinks=[0.0] * 4), varlen_call([3, 2], dtype=dtype)
        sizes = {"num_kv_heads": 1, "head_size": 48, "head_size_v": 32, "dtype": dtype}
        latent = paged_call([2], [9], layout=Layout.LATENT, **sizes)
        flags = replace(step.batch, causal=torch.tensor([True, False], device=device))
        k, v = torch.zeros(2, 2, 2, 32, dtype=dtype, device=device)
        zeros = torch.zeros(2, dtype=torch.int64, device=device)
        rope = (step.q[:2].clone(), k, v, zeros, torch.tensor([[1.0, 0.0]], device=device), *step[1:3], zeros - 1)
        rows = torch.zeros(2, 48, dtype=dtype, device=device)
        outs, lses = torch.zeros(2, 3, 2, 16, dtype=dtype, device=device), torch.zeros(2, 2, 3, device=device)
        return {
            "paged": partial(attn_optimized.paged_attention, *step),
            "flags": partial(attn_optimized.paged_attention, *step[:3], flags),
            "latent": partial(attn_optimized.paged_attention, *latent),
            "invariant": partial(attn_optimized.paged_attention, *step, batch_invariant=True),
            "plan": partial(attn_optimized.plan_of, step.q, *step[2:]),
            "dense": partial(attn_optimized.varlen_attention, *dense),
            "cascade": partial(attn_optimized.cascade_attention, *step, 0),
            "write": partial(attn_optimized.write_kv_cache, k, v, *step[1:3], zeros - 1),
            "rope": partial(attn_optimized.rope_and_write_kv_cache, *rope, is_neox=True),
            "latent write": partial(attn_optimized.write_latent_cache, rows[:, :32], rows[:, 32:], *latent[1:3], zeros - 1),
            "states": partial(attn_optimized.merge_attn_states, outs[0], lses[0], outs[1], lses[1]),
            "parts": partial(attn_optimized.merge_attn_parts, outs, lses),
        }

    return build


@pytest.fixture
def assert_agrees() -> Callable[..., None]:
    """Runs a call and judges its rows; every other element of its outputs must stay as it was."""

    def check(call: PagedCall | VarlenCall, attend: Callable[..., torch.Tensor] | None = None) -> None:
        """`attend`: what runs instead of the call's own function of attn_optimized."""
        q = call.q
        num_tokens, num_heads, v_head_size = len(q), call.layer.num_heads, call.layer.v_head_size
        if attend is None:
            attend = attn_optimized.paged_attention if isinstance(call, PagedCall) else attn_optimized.varlen_attention
        out_dtype = q.dtype if call.layer.q_scale is None else torch.float16
        out_dtype = out_dtype if call.layer.output_scale is None else torch.float8_e4m3fn
        guarded_out = torch.full((num_tokens, num_heads * v_head_size + GUARD), torch.nan, device=q.device).to(out_dtype)
        guarded_lse = torch.full((num_heads, num_tokens + GUARD), torch.nan, device=q.device)
        out, lse = guarded_out[:, : num_heads * v_head_size], guarded_lse[:, :num_tokens]
        assert attend(*call, out=out, lse=lse, validate=True) is out
        mode = MODE_OF_FORMAT.get(call.layer.layout)
        target = TRITON if mode is None else TRITON_LATENT.modes[mode](TRITON_LATENT)
        assert_within_bound(call, out, lse, rounding=target.rounding(q.device.type))
        assert guarded_out[:, num_heads * v_head_size :].float().isnan().all()
        assert guarded_lse[:, num_tokens:].isnan().all()

    return check

"""Every function refuses a call with one wrong argument before it writes anything, also after a right call of the same form."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import attn_optimized
import pytest
import torch
from attn_contract import KVCacheView, Layer, Layout
from attn_fuzz.cases.wrong_arguments import dims_of
from attn_optimized.attention import forget_launches
from attn_optimized.context_parallel import Dealing, LocalStep, attend_over_ranks, local_layer, local_step, weighted_part

from tests.support.calls import PagedCall
from tests.support.wrong_arguments import not_refused, wrong_calls


@dataclass(frozen=True, kw_only=True)
class RightCall:
    """A call of a function by the names of its arguments; `optional`, `free` and `written` are those of `wrong_calls`.

    `legal` are the beginnings of what `wrong_calls` says of calls that are right.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    optional: tuple[str, ...] = ()
    free: dict[str, tuple[int, ...]] = field(default_factory=dict)
    legal: tuple[str, ...] = ()
    written: tuple[str, ...] = ("out", "lse")

    def wrong(self):
        every = wrong_calls(self.function, self.arguments, optional=self.optional, free=self.free, written=self.written)
        return ((what, call) for what, call in every if not what.startswith(self.legal)) if self.legal else every

    def check(self) -> None:
        tensors = [value for value in self.arguments.values() if isinstance(value, torch.Tensor)]
        forget_launches()
        assert not_refused(self.wrong(), tensors) == []
        self.function(**self.arguments)
        assert not_refused(self.wrong(), tensors) == [], "after a right call"


FORMS = {
    "a step": ([3, 1], [20, 9], {}),
    "one row of one head": ([1], [1], {"num_heads": 1, "num_kv_heads": 1}),
    "a row of scales": ([2, 3], [9, 4], {"layout": Layout.CONTENT_PACKED_SCALED, "kv_cache_dtype": torch.int8}),
    "a latent cache": ([2], [9], {"layout": Layout.LATENT, "num_kv_heads": 1, "head_size": 48, "head_size_v": 32}),
}
MODES = {"plain": {}, "validate": {"validate": True}, "batch_invariant": {"batch_invariant": True}}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def call(request, paged_call) -> PagedCall:
    query_lens, seq_lens, options = request.param
    return paged_call(query_lens, seq_lens, **options)


def outputs_of(call) -> dict[str, torch.Tensor]:
    q = call.q
    return {"out": q.new_zeros(*q.shape[:2], call.layer.v_head_size), "lse": torch.zeros(q.shape[1], len(q), device=q.device)}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_wrong_arguments_of_paged_attention_are_refused(mode, call):
    function = partial(attn_optimized.paged_attention, **mode)
    free = {"kv_cache": dims_of(call.layer.layout, "block", "slot")}
    RightCall(function=function, arguments=call._asdict() | outputs_of(call), optional=("out", "lse"), free=free).check()


@pytest.mark.parametrize("query_lens", [[3, 2], [1]])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_wrong_arguments_of_varlen_attention_are_refused(mode, query_lens, varlen_call):
    call = varlen_call(query_lens)
    function = partial(attn_optimized.varlen_attention, **mode)
    RightCall(function=function, arguments=call._asdict() | outputs_of(call), optional=("out", "lse")).check()


@pytest.mark.parametrize("validate", [False, True])
def test_wrong_arguments_of_cascade_attention_are_refused(validate, paged_call):
    call = paged_call([1, 2], [40, 60])
    table = call.batch.block_table.clone()
    table[:, :2] = table[0, :2]
    call = call._replace(batch=replace(call.batch, block_table=table))
    function = partial(attn_optimized.cascade_attention, validate=validate)
    arguments = call._asdict() | {"common_prefix_len": 32} | outputs_of(call)
    free = {"kv_cache": dims_of(call.layer.layout, "block", "slot")}
    RightCall(function=function, arguments=arguments, optional=("out", "lse"), free=free).check()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_batch_that_does_not_fit_the_call(mode, call, varlen_call):
    dense, latent = varlen_call([3, 2]), call.layer.layout.has_latent_value
    paged, attend = partial(attn_optimized.paged_attention, **mode), partial(attn_optimized.varlen_attention, **mode)
    table = torch.zeros((dense.batch.num_requests, 1), dtype=torch.int32, device=dense.q.device)
    wrong = {
        "no block table": partial(paged, *call[:3], replace(call.batch, block_table=None)),
        "a block table without a cache": partial(attend, *dense[:4], replace(dense.batch, block_table=table)),
        "more tokens than rows": partial(paged, *call[:3], replace(call.batch, num_actual_tokens=len(call.q) + 1)),
        "more dense tokens than rows": partial(attend, *dense[:4], replace(dense.batch, num_actual_tokens=len(dense.q) + 1)),
        "V of another width than v has": partial(attend, *dense[:3], replace(dense.layer, head_size_v=16), dense.batch),
    }
    if latent:
        narrower = replace(call.layer, head_size_v=call.layer.v_head_size - 1)
        wrong["V of another width than out has"] = partial(paged, *call[:2], narrower, call.batch, **outputs_of(call))
    assert not_refused(iter(wrong.items())) == []


def write_of(layout: Layout, device: torch.device, **fields: Any) -> dict[str, Any]:
    """Two rows of a write to no slot, so that the right call writes nothing."""
    layer = Layer(num_heads=2, num_kv_heads=2, head_size=16, scale=1.0, layout=layout, **fields)
    dtype = layer.kv_cache_dtype or torch.float16
    view = KVCacheView.dense(layout, num_blocks=3, block_size=8, num_kv_heads=2, head_size=16, itemsize=dtype.itemsize)
    k, v = torch.ones(2, 2, 2, 16, dtype=torch.float16, device=device)
    slots = torch.full((2,), -1, dtype=torch.int64, device=device)
    cache = view.tensor(torch.zeros(view.end * dtype.itemsize, dtype=torch.uint8, device=device).view(dtype))
    return {"k": k, "v": v, "kv_cache": cache, "layer": layer, "slot_mapping": slots}


WRITES = {
    "blocks first": (Layout.BLOCKS_FIRST_NHD, {}),
    "planes of heads": (Layout.KV_FIRST_HND, {}),
    "inline scales": (Layout.CONTENT_PACKED_SCALED, {"kv_cache_dtype": torch.int8}),
}


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(("layout", "fields"), WRITES.values(), ids=WRITES)
def test_wrong_arguments_of_write_kv_cache_are_refused(layout, fields, validate, device):
    arguments = write_of(layout, device, **fields)
    free = {"kv_cache": dims_of(layout, "block", "slot"), "slot_mapping": (0,)}
    write = partial(attn_optimized.write_kv_cache, validate=validate)
    RightCall(function=write, arguments=arguments, free=free, written=("kv_cache",)).check()


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(("layout", "fields"), WRITES.values(), ids=WRITES)
def test_rope_and_write_kv_cache(layout, fields, validate, device):
    arguments = write_of(layout, device, **fields)
    arguments |= {"q": arguments["k"].clone(), "positions": torch.zeros(2, dtype=torch.int64, device=device)}
    arguments |= {"cos_sin_cache": torch.tensor([[1.0, 0.0]], device=device), "is_neox": True}
    dims = dims_of(layout, "block", "slot")
    free = {"kv_cache": dims, **dict.fromkeys(("slot_mapping", "q", "positions", "cos_sin_cache"), (0,))}
    write = partial(attn_optimized.rope_and_write_kv_cache, validate=validate)
    RightCall(function=write, arguments=arguments, free=free, written=("kv_cache", "q")).check()
    more = {name: arguments[name].repeat(2) for name in ("slot_mapping", "positions")}
    wrong = ((f"more {name} than rows", partial(write, **{**arguments, name: longer})) for name, longer in more.items())
    assert not_refused(wrong) == []


@pytest.mark.parametrize("validate", [False, True])
def test_wrong_arguments_of_write_latent_cache_are_refused(validate, device):
    layer = Layer(num_heads=2, num_kv_heads=1, head_size=40, head_size_v=32, scale=1.0, layout=Layout.LATENT)
    latent, rotated = torch.ones(2, 32, device=device), torch.ones(2, 8, device=device)
    slots = torch.full((2,), -1, dtype=torch.int64, device=device)
    arguments = {"kv_c": latent, "k_pe": rotated, "kv_cache": torch.zeros(3, 8, 40, device=device), "layer": layer}
    write = partial(attn_optimized.write_latent_cache, validate=validate)
    free = {"kv_cache": (0, 1), "slot_mapping": (0,)}
    RightCall(function=write, arguments=arguments | {"slot_mapping": slots}, free=free, written=("kv_cache",)).check()


MERGED = ("out", "lse", "prefill_tokens_with_context", "output_scale")


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float8_e4m3fn])
def test_wrong_arguments_of_merge_attn_states_are_refused(out_dtype, device):
    a, b, out = (torch.zeros(3, 2, 16, device=device) for _ in range(3))
    lse_a, lse_b, lse = (torch.zeros(2, 3, device=device) for _ in range(3))
    arguments = {"out_a": a, "lse_a": lse_a, "out_b": b, "lse_b": lse_b, "out": out.to(out_dtype), "lse": lse}
    arguments["prefill_tokens_with_context"] = 2
    if out_dtype is not torch.float32:
        arguments["output_scale"] = torch.ones((), device=device)
    merge = attn_optimized.merge_attn_states
    RightCall(function=merge, arguments=arguments, optional=MERGED, legal=("output_scale with one more",)).check()
    beyond = partial(merge, **{**arguments, "prefill_tokens_with_context": 4})
    assert not_refused(iter([("a prefix of more rows than there are", beyond)])) == []


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float8_e4m3fn])
def test_wrong_arguments_of_merge_attn_parts_are_refused(out_dtype, device):
    outs, lses = torch.zeros(4, 3, 2, 16, device=device), torch.zeros(4, 2, 3, device=device)
    out, lse = torch.zeros(3, 2, 16, device=device).to(out_dtype), torch.zeros(2, 3, device=device)
    arguments = {"outs": outs, "lses": lses, "out": out, "lse": lse, "lse_base": "e"}
    if out_dtype is not torch.float32:
        arguments["output_scale"] = torch.ones((), device=device)
    merge = attn_optimized.merge_attn_parts
    legal = ("lses with gaps", "output_scale with one more")
    RightCall(function=merge, arguments=arguments, optional=MERGED, legal=legal).check()
    no_parts = partial(merge, **{**arguments, "outs": outs[:0], "lses": lses[:0]})
    assert not_refused(iter([("no parts", no_parts)])) == []


def test_wrong_parts_of_ranks_are_refused(paged_call, device):
    call = paged_call([3, 1], [20, 9])
    dealing = Dealing(num_ranks=3, rank=1, interleave=2)
    RightCall(function=Dealing, arguments={"num_ranks": 3, "rank": 1, "interleave": 2}).check()
    RightCall(function=local_step, arguments={"batch": call.batch, "dealing": dealing}).check()
    RightCall(function=LocalStep, arguments={"whole": call.batch, "batch": call.batch, "dealing": dealing}).check()
    RightCall(function=local_layer, arguments={"layer": call.layer, "dealing": dealing}).check()
    part = {"out": torch.zeros(5, 2, 16, device=device), "lses": torch.zeros(3, 2, 5, device=device), "rank": 1}
    free = {"out": (2,), "lses": (0,)}
    # torch takes any strides
    gaps = ("out with gaps", "lses with gaps")
    RightCall(function=weighted_part, arguments=part, free=free, legal=gaps, written=()).check()
    no_group = partial(attend_over_ranks, "no such thing", *[None] * 4)
    assert not_refused(iter([("group='no such thing'", no_group)])) == []

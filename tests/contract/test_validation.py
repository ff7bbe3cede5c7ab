"""Every way in which a call can contradict itself is refused by name, value and expectation, before anything is written."""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, KVCacheView, Layer, Layout, validation
from attn_contract.layouts import LATENT_FORMATS
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import refusals
from tests.support.calls import with_idle_strides
from tests.support.latent_formats import latent_sizes
from tests.support.refusals import Refusal

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")

Arguments = dict[str, object]

LAYER_FIELDS = [field.name for field in fields(Layer)]
BATCH_FIELDS = [field.name for field in fields(Batch)]
MOST = 2**31 - 1
"""The largest int32."""


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def int64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def cache(
    num_blocks: int = 6, block_size: int = 4, num_kv_heads: int = 2, head_size: int = 8, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.zeros(num_blocks, 2, block_size, num_kv_heads, head_size, dtype=dtype)


def paged() -> Arguments:
    """Three requests of 2, 1 and 3 queries; H 4, HK 2, D 8, blocks of 4 slots; two rows that no request owns."""
    return {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "scale": 0.5,
        "layout": Layout.BLOCKS_FIRST_NHD,
        "sinks": torch.zeros(4),
        "query_start_loc": int32(0, 2, 3, 6),
        "seq_lens": int32(5, 4, 3),
        "max_query_len": 3,
        "max_seq_len": 5,
        "num_actual_tokens": 7,
        "causal": True,
        "block_table": torch.tensor([[3, 1, -1], [0, -7, MOST], [5, 6, 3]], dtype=torch.int32),
        "slot_mapping": int64(15, 4, 3, 20, 21, 22),
        "q": torch.zeros(8, 4, 8),
        "kv_cache": cache(),
        "out": torch.full((8, 4, 8), torch.nan),
        "lse": torch.full((4, 8), torch.nan),
    }


def cross() -> Arguments:
    return paged() | {"attn_type": AttentionType.ENCODER_DECODER, "causal": False, "slot_mapping": None}


def varlen() -> Arguments:
    dense = {"attn_type": AttentionType.ENCODER, "causal": False, "layout": None, "block_table": None, "slot_mapping": None}
    k, v = torch.zeros(2, 7, 2, 8)
    arguments = paged() | dense | {"seq_lens": int32(2, 1, 3), "k": k, "v": v}
    del arguments["kv_cache"]
    return arguments


def rules() -> Arguments:
    """All that a decoder's visibility and logits may take, over an x-packed cache."""
    per_request = {"bidirectional_ranges": torch.zeros(3, 2, 2, dtype=torch.int32), "qq_bias": torch.zeros(4, 4)}
    per_layer = {"alibi_slopes": torch.zeros(4), "logits_soft_cap": 50.0, "sink_tokens": 1, "chunked_local": 4}
    packed = {"layout": Layout.X_PACKED, "kv_cache": torch.zeros(2, 6, 64)}
    return paged() | packed | per_request | per_layer | {"window": (4, 4), "ranges_clamped": True}


def selecting() -> Arguments:
    """Units of 2 tokens, of which each KV head selects its own; the last row of q belongs to no request."""
    of_rows = [[0, 2], [1, -1], [1, 0], [-1, -1], [1, -3], [0, 1], [9, 9], [9, 9]]
    return paged() | {"selection_unit": 2, "selected": torch.tensor([of_rows] * 2).int()}


def sharing() -> Arguments:
    """Two tokens share a key: requests of 2, 2 and 1 keys."""
    return paged() | {"key_unit": 2}


def quantized(dtype: torch.dtype, **scales: torch.Tensor) -> Arguments:
    return {"kv_cache_dtype": dtype, "kv_cache": cache(dtype=dtype)} | scales


def fixed() -> Arguments:
    """Scales that do not change."""
    return quantized(torch.float8_e4m3fn, k_scale=torch.tensor(0.5), v_scale=torch.ones(2))


def of_inline_scales() -> Arguments:
    """A scale per token and head in the rows."""
    rows = torch.zeros(6, 2, 4, 24, dtype=torch.int8)
    return {"kv_cache_dtype": torch.int8, "kv_cache": rows, "layout": Layout.CONTENT_PACKED_SCALED}


def fp8() -> Arguments:
    """A call with quantized output."""
    return paged() | fixed() | {"output_scale": torch.ones(1), "out": torch.zeros(8, 4, 8).to(torch.float8_e4m3fn)}


def float8_q() -> Arguments:
    """Queries of the cache's float8 type, with a scale of each KV head."""
    q, out = torch.zeros(8, 4, 8).to(torch.float8_e4m3fn), torch.full((8, 4, 8), torch.nan).half()
    return paged() | fixed() | {"q": q, "out": out, "q_scale": torch.ones(2)}


def per_token() -> Arguments:
    """A quantized cache with a scale per token and head in tensors of their own."""
    return paged() | quantized(torch.int8, k_scale_cache=torch.ones(6, 4, 2), v_scale_cache=torch.ones(6, 4, 2))


def inline() -> Arguments:
    return paged() | of_inline_scales()


def mla() -> Arguments:
    """A latent cache: rows of 8, of which V is the first 6."""
    latent = {"num_kv_heads": 1, "layout": Layout.LATENT, "head_size_v": 6, "kv_cache": torch.zeros(6, 4, 8)}
    return paged() | latent | {"out": torch.full((8, 4, 6), torch.nan)}


def two_widths() -> Arguments:
    """Dense k and v of 8 dims and of 3."""
    return varlen() | {"head_size_v": 3, "v": torch.zeros(7, 2, 3), "out": torch.full((8, 4, 3), torch.nan)}


def write() -> Arguments:
    """Six slots for seven rows, one of them not to be written."""
    k, v = torch.ones(2, 7, 2, 8)
    return {
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 8,
        "scale": 0.5,
        "layout": Layout.BLOCKS_FIRST_NHD,
        "k": k,
        "v": v,
        "kv_cache": cache(),
        "slot_mapping": int64(15, 4, -1, 20, 21, 22),
    }


def write_fp8() -> Arguments:
    return write() | fixed()


def write_per_token() -> Arguments:
    return write() | quantized(torch.int8, k_scale_cache=torch.zeros(6, 4, 2), v_scale_cache=torch.zeros(6, 4, 2))


def write_inline() -> Arguments:
    return write() | of_inline_scales()


def write_mla() -> Arguments:
    rows = torch.ones(7, 20)
    layer = {
        name: mla()[name] for name in ("num_heads", "num_kv_heads", "head_size", "scale", "layout", "head_size_v", "kv_cache")
    }
    return layer | {"kv_c": rows[:, 1:7], "k_pe": rows[:, 9:11], "slot_mapping": int64(15, 4, -1, 20, 21, 22)}


def rope() -> Arguments:
    """Eight rows of q, seven of them with positions, six of those written; 6 of 8 dims are rotated; 10 positions are known."""
    rotation = {"positions": int64(4, 3, 3, 0, 1, 2, 9), "cos_sin_cache": torch.ones(10, 6), "is_neox": True}
    return write() | rotation | {"q": torch.ones(8, 4, 8)}


def merge() -> Arguments:
    out_a, out_b, out = torch.zeros(3, 5, 4, 8)
    lse_a, lse_b, lse = torch.zeros(3, 4, 5)
    return {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, "out": out, "lse": lse}


def merge_parts() -> Arguments:
    return {
        "outs": torch.zeros(3, 5, 4, 8),
        "lses": torch.zeros(3, 4, 5),
        "out": torch.zeros(5, 4, 8),
        "lse": torch.zeros(4, 5),
    }


OPERATION = {
    paged: "paged_attention",
    cross: "paged_attention",
    varlen: "varlen_attention",
    rules: "paged_attention",
    selecting: "paged_attention",
    fp8: "paged_attention",
    float8_q: "paged_attention",
    per_token: "paged_attention",
    inline: "paged_attention",
    mla: "paged_attention",
    two_widths: "varlen_attention",
    write_mla: "write_latent_cache",
    write: "write_kv_cache",
    write_fp8: "write_kv_cache",
    write_per_token: "write_kv_cache",
    write_inline: "write_kv_cache",
    rope: "rope_and_write_kv_cache",
    merge: "merge_attn_states",
    merge_parts: "merge_attn_parts",
}


def call(valid: Callable[[], Arguments], arguments: Arguments, module: str, *, values: bool = True) -> object:
    """The result of the call that `arguments` describe: of a package, or only of the contract's checks."""
    # imported late: whether attn_optimized's kernels are interpreted is decided when it is imported, by its own tests
    name, package = OPERATION[valid], importlib.import_module(module)
    if "scale" in arguments:
        arguments = gathered("layer", Layer, LAYER_FIELDS, arguments)
    if "query_start_loc" in arguments:
        arguments = gathered("batch", Batch, BATCH_FIELDS, arguments)
    if package is validation:
        name = f"check_{name}"
    flag = {"attn_contract.validation": "values", "attn_optimized": "validate"}.get(module)
    flags = {flag: values} if flag and valid not in (merge, merge_parts) else {}
    return getattr(package, name)(**arguments, **flags)


def gathered(argument: str, kind: type, names: list[str], arguments: Arguments) -> Arguments:
    """The arguments with some of them as fields of one."""
    others = {name: value for name, value in arguments.items() if name not in names}
    return {argument: kind(**{name: arguments[name] for name in names if name in arguments})} | others


def tensors_of(arguments: Arguments) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor) and not value.is_sparse}


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the allocation under a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def fused() -> Arguments:
    """q, k and v as slices of one tensor."""
    q, k, v = torch.zeros(8, 64).split([32, 16, 16], dim=1)
    return {"q": q.unflatten(1, (4, 8)), "k": k.unflatten(1, (2, 8)), "v": v.unflatten(1, (2, 8))}


def fused_rows() -> Arguments:
    """q, which is rotated in place, between k and v in each row of one tensor."""
    k, q, v = torch.ones(7, 64).split([16, 32, 16], dim=1)
    return {"q": q.unflatten(1, (4, 8)), "k": k.unflatten(1, (2, 8)), "v": v.unflatten(1, (2, 8))}


def one_row_in_place() -> Arguments:
    """A merge of one row into its first state, of which the outputs are views with another row stride."""
    states = {
        "out_a": torch.zeros(1, 4, 8),
        "out_b": torch.zeros(1, 4, 8),
        "lse_a": torch.zeros(4, 1),
        "lse_b": torch.zeros(4, 1),
    }
    return states | {"out": with_idle_strides(states["out_a"]), "lse": with_idle_strides(states["lse_a"])}


def with_nan(tensor: torch.Tensor, *index: int) -> torch.Tensor:
    return with_number(tensor, torch.nan, *index)


def with_number(tensor: torch.Tensor, number: float, *index: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = number
    return changed


def one_dim_early(fused: Arguments) -> Arguments:
    """q moved by one element, so that it begins in k's last one."""
    q = fused["q"]
    return fused | {"q": q.as_strided(q.shape, q.stride(), q.storage_offset() - 1)}


def scales_between_rows() -> Arguments:
    """Rows of 8 bytes of a head, each followed by its scale: one allocation, two tensors for its bytes and its scales."""
    raw = torch.zeros(6 * 2 * 4 * 2 * 12, dtype=torch.int8)
    scales = raw.view(torch.float32).as_strided((6, 2, 4, 2), (48, 24, 6, 3), 2)
    kv_cache = raw.as_strided((6, 2, 4, 2, 8), (192, 96, 24, 12, 1))
    return {"kv_cache": kv_cache, "k_scale_cache": scales[:, 0], "v_scale_cache": scales[:, 1]}


def with_scales(valid: Callable[[], Arguments], layout: Layout) -> Arguments:
    """`mla` or `write_mla` in bfloat16, over slots with scales."""
    sizes = latent_sizes(layout)
    view = KVCacheView.dense(layout, num_blocks=6, block_size=4, num_kv_heads=1, itemsize=1, **sizes)
    cache = view.tensor(torch.zeros(view.end, dtype=torch.uint8)).view(torch.float8_e4m3fn)
    of_layer = {"layout": layout, "kv_cache_dtype": torch.float8_e4m3fn, "kv_cache": cache, **sizes}
    k, v = sizes["head_size"], sizes["head_size_v"]
    shapes = {"q": (8, 4, k), "out": (8, 4, v)} if valid is mla else {"kv_c": (7, v), "k_pe": (7, k - v)}
    return valid() | of_layer | {name: torch.ones(shape).bfloat16() for name, shape in shapes.items()}


NO_REQUEST = {"query_start_loc": int32(0), "seq_lens": int32(), "max_query_len": 0, "max_seq_len": 0, "num_actual_tokens": 0}
ONE_BLOCK = torch.zeros(2048).as_strided((1, 2, 4, 2, 8), (7, 64, 16, 8, 1), 5)
"""A cache of one block, whose block stride is never taken."""
BETWEEN_ROWS = {"kv_cache": scales_between_rows()["kv_cache"]}
FLOAT8_OUT = {"out": torch.zeros(5, 4, 8).to(torch.float8_e4m3fn)}

CALLS = {builder.__name__: builder for builder in OPERATION}
OF_SCALES = [one for one in refusals.of(__file__) if one.call.endswith(" with scales")]
REFUSALS = [one for one in refusals.of(__file__) if one.call.split()[0] in CALLS and one not in OF_SCALES]
OF_VALUES = [one for one in REFUSALS if one.call.endswith(" values")]
ALWAYS = [one for one in REFUSALS if one not in OF_VALUES]


def made(refusal: Refusal) -> tuple[Callable[[], Arguments], Arguments]:
    """The builder of a right call, and its arguments with what is wrong."""
    valid = CALLS[refusal.call.split()[0]]
    return valid, refusal.changed(valid(), globals())


ACCEPTED = [*(Refusal(name, "", "") for name in CALLS), *refusals.of(__file__, "accepted.txt")]


@pytest.mark.parametrize("package", ["attn_contract.validation", "attn_reference", "attn_optimized"])
@refusals.parametrize(REFUSALS)
def test_refuses_and_writes_nothing(refusal, package):
    valid, arguments = made(refusal)
    before = {name: memory(tensor).clone() for name, tensor in tensors_of(arguments).items() if not tensor.is_meta}
    with pytest.raises(ContractError) as caught:
        call(valid, arguments, package)
    refusal.check(caught.value)
    for name, tensor in before.items():
        assert torch.equal(memory(arguments[name]), tensor), f"{name} was written"


@pytest.mark.parametrize("layout", LATENT_FORMATS)
@refusals.parametrize(OF_SCALES)
def test_slots_with_scales_are_refused(refusal, layout):
    """By layers as by calls. A message may name the layout."""
    valid = CALLS[refusal.call.split()[0]]
    with pytest.raises(ContractError) as caught:
        call(valid, refusal.changed(with_scales(valid, layout), globals()), "attn_contract.validation")
    refusal._replace(message=refusal.message.format(layout=layout)).check(caught.value)


@pytest.mark.parametrize("layout", LATENT_FORMATS)
@pytest.mark.parametrize("valid", [mla, write_mla])
@pytest.mark.parametrize("package", ["attn_contract.validation", "attn_reference"])
def test_slots_with_scales_are_accepted(package, valid, layout):
    call(valid, with_scales(valid, layout), package)


@refusals.parametrize(OF_VALUES)
def test_values_are_read_only_when_asked(refusal):
    """A kernel that ships must not wait for its device: with values=False not one operation runs on a tensor."""
    valid, arguments = made(refusal)
    with NoOperations():
        call(valid, arguments, "attn_contract.validation", values=False)


@pytest.mark.parametrize("valid", [paged, varlen, write, rope])
@pytest.mark.parametrize("values", ["no", None, 1])
def test_whether_values_are_checked_is_true_or_false(valid, values):
    with pytest.raises(ContractError, match=r"validate: got .*, expected a bool"):
        call(valid, valid(), "attn_contract.validation", values=values)


@refusals.parametrize(ALWAYS)
def test_everything_else_is_checked_always(refusal):
    with pytest.raises(ContractError) as caught:
        call(*made(refusal), "attn_contract.validation", values=False)
    refusal.check(caught.value)


@pytest.mark.parametrize("accepted", ACCEPTED, ids=[f"{one.call}: {one.edit}" for one in ACCEPTED])
def test_accepts_and_another_default_device_changes_nothing(accepted):
    plain, on_meta = made(accepted), made(accepted)
    call(*plain, "attn_contract.validation")
    expected = call(*plain, "attn_reference")
    with torch.device("meta"):
        call(*on_meta, "attn_contract.validation")
        result = call(*on_meta, "attn_reference")
    found = tensors_of(on_meta[1] | {"result": result})
    for name, tensor in tensors_of(plain[1] | {"result": expected}).items():
        assert tensor.is_meta or torch.equal(memory(found[name]), memory(tensor)), name


def test_parameters_pass_where_no_gradient_is_wanted():
    with torch.no_grad():
        call(paged, paged() | {"sinks": torch.nn.Parameter(torch.zeros(4))}, "attn_reference")


def test_a_refused_gradient_may_be_of_the_sinks():
    """A Layer may hold a model's parameter; only a call that would have to differentiate is refused."""
    arguments = paged() | {"sinks": torch.nn.Parameter(torch.zeros(4))}
    with pytest.raises(ContractError, match=r"^sinks: got requires_grad=True, expected no gradients"):
        call(paged, arguments, "attn_reference")


def test_accepted_interleaved_tensors_share_no_memory():
    """Two tensors of scales over one allocation, with any strides: an accepted pair is disjoint, element by element."""
    random = Random(0)
    layer = Layer(**{name: value for name, value in write_per_token().items() if name in LAYER_FIELDS})
    k, v, slot_mapping = torch.ones(1, 2, 8), torch.ones(1, 2, 8), int64(0)
    kv_cache, raw = cache(num_blocks=2, block_size=3, dtype=torch.int8), torch.zeros(256)
    interleaved = shared = 0
    for _ in range(3000):
        strides = [random.choices([1, 2, 3, 4, 6, 8, 12, 16, 24], k=3) for _ in range(2)]
        offsets = [random.randrange(24) for _ in range(2)]
        views = [raw.as_strided((2, 3, 2), *place) for place in zip(strides, offsets, strict=True)]
        elements = [
            {offset + sum(map(int.__mul__, index, stride)) for index in itertools.product(range(2), range(3), range(2))}
            for stride, offset in zip(strides, offsets, strict=True)
        ]
        scales = dict(zip(("k_scale_cache", "v_scale_cache"), views, strict=True))
        disjoint = not elements[0] & elements[1]
        shared += not disjoint
        try:
            validation.check_write_kv_cache(k, v, kv_cache, replace(layer, **scales), slot_mapping, values=False)
        except ContractError:
            continue
        assert disjoint, (strides, offsets)
        interleaved += max(map(min, elements)) < min(map(max, elements))
    assert interleaved > 30
    assert shared > 300


class NoOperations(TorchDispatchMode):
    """Fails on any operation on a tensor's elements."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran")


def test_strides_of_an_empty_tensor_mean_nothing():
    empty = {name: torch.zeros(1).expand(shape) for name, shape in (("q", (0, 4, 8)), ("out", (0, 4, 8)), ("lse", (4, 0)))}
    none = {"block_table": torch.zeros(1, dtype=torch.int32).expand(0, 3), "slot_mapping": int64()}
    call(paged, paged() | empty | NO_REQUEST | none, "attn_reference")

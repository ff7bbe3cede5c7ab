"""Silence is refusal: a rule that nobody has named is refused by everybody, and by name.

The rule is one that does not exist, `unheard_of`. A contributor who adds a rule to the contract, and forgets somebody, sees the
same refusals.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import attn_optimized
import attn_reference
import msgspec
import pytest
import torch
from attn_contract import (
    YES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    ContractError,
    KVCacheView,
    Layer,
    Layout,
    UnsupportedError,
    rules,
)
from attn_contract.capabilities import Only
from attn_contract.rules import VISIBILITY, holds_rules, rule
from attn_fuzz import Call, CaptureError, capture
from attn_fuzz.cases.case import Cache, Case
from attn_fuzz.targets import registry
from attn_optimized import aiter_adapter, attention
from attn_optimized.aiter_adapter import recorded
from attn_optimized.backends import BACKENDS
from attn_optimized.selector import PRIORITIES, priorities, select

AITER = recorded("2026-08")
# the kernels run where the other tests run them
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE: dict[str, Any] = {"num_heads": 2, "num_kv_heads": 2, "head_size": 64, "scale": 0.125}


@pytest.fixture
def unheard(monkeypatch) -> Iterator[type[Layer]]:
    """A Layer that has one more rule, which is registered while a test runs."""

    @holds_rules
    @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
    class Unheard(Layer):
        unheard_of: int = rule(1, label="an unheard-of rule", acts_on=VISIBILITY)

    attention.forget_launches()  # of the same layer in another test
    yield Unheard
    del rules._rules["unheard_of"]
    attention.forget_launches()


@pytest.fixture
def forgotten() -> type[Layer]:
    """A Layer with one more field, of which no record tells anything."""

    @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
    class Forgotten(Layer):
        unheard_of: int = 1

    attention.forget_launches()
    return Forgotten


@dataclasses.dataclass
class Arguments:
    """One decode of two requests in float16."""

    layer: Layer
    batch: Batch
    q: torch.Tensor
    kv_cache: torch.Tensor
    out: torch.Tensor


def call_of(layer_type: type[Layer], layout: Layout = Layout.BLOCKS_FIRST_NHD, **settings: Any) -> Arguments:
    sizes = {"num_blocks": 2, "block_size": 16, "num_kv_heads": 2, "head_size": 64, "itemsize": 2}
    view = KVCacheView.dense(layout, **sizes)
    q = torch.ones(2, 2, 64, dtype=torch.float16, device=DEVICE)
    batch = Batch(
        query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor([3, 2], dtype=torch.int32, device=DEVICE),
        max_query_len=1,
        max_seq_len=3,
        num_actual_tokens=2,
        causal=True,
        block_table=torch.tensor([[0], [1]], dtype=torch.int32, device=DEVICE),
    )
    kv_cache = view.tensor(torch.ones(view.end, dtype=torch.float16, device=DEVICE))
    return Arguments(layer_type(**SHAPE, layout=layout, **settings), batch, q, kv_cache, torch.full_like(q, torch.nan))


def dense_call(layer_type: type[Layer], **settings: Any) -> Arguments:
    call = call_of(layer_type)
    encoder = layer_type(**SHAPE, attn_type=AttentionType.ENCODER, **settings)
    batch = dataclasses.replace(call.batch, seq_lens=torch.ones_like(call.batch.seq_lens), causal=False, block_table=None)
    return dataclasses.replace(call, layer=encoder, batch=batch)


def paged(function: Callable[..., Any], *before: Any) -> Callable[[type[Layer]], Any]:
    def run(layer_type: type[Layer], **settings: Any) -> None:
        call = call_of(layer_type, **settings)
        function(*before, call.q, call.kv_cache, call.layer, call.batch, out=call.out)

    return run


def varlen(package: Any) -> Callable[[type[Layer]], Any]:
    def run(layer_type: type[Layer], **settings: Any) -> None:
        call = dense_call(layer_type, **settings)
        package.varlen_attention(call.q, call.q, call.q, call.layer, call.batch, out=call.out)

    return run


def cascade(q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch, *, out: torch.Tensor) -> None:
    attn_optimized.cascade_attention(q, kv_cache, layer, batch, 0, out=out)


def flash(layer_type: type[Layer], **settings: Any) -> None:
    call = call_of(layer_type, **settings)
    starts = call.batch.query_start_loc
    options = {"max_query_len": 1, "max_key_len": 1, "causal": True, "out": call.out}
    aiter_adapter.flash_attn_varlen(
        AITER, call.q, call.q, call.q, call.layer, query_start_loc=starts, key_start_loc=starts, **options
    )


def assembly(layer_type: type[Layer], **settings: Any) -> None:
    paged(aiter_adapter.pa_fwd_asm, AITER)(layer_type, layout=Layout.SHUFFLED, **settings)


def selecting(backend: str, layer_type: type[Layer], layout: Layout, **settings: Any) -> None:
    """A layer of a backend whose layers attend to what an indexer selected."""
    unit = 1 if layout is Layout.LATENT else 128
    form = {**LATENT, "selection_unit": 1} if layout is Layout.LATENT else {"head_size": 128, "selection_unit": 128}
    layer = layer_type(**{**SHAPE, **form, "layout": layout, **settings})
    buffer = torch.zeros(4, 128, dtype=torch.int32, device=DEVICE)
    buffer = buffer if unit == 1 else buffer.expand(layer.num_kv_heads, -1, -1)
    size = 16 if unit == 1 else unit
    BACKENDS[backend].impl(layer, dtype=torch.float16, block_size=size, aiter=AITER, topk_indices_buffer=buffer)


def kernel_of(backend: str) -> Callable[[type[Layer]], Any]:
    def run(layer_type: type[Layer], **settings: Any) -> None:
        layout = BACKENDS[backend].capabilities(AITER).layouts.values[0]
        if "SPARSE" in backend:
            selecting(backend, layer_type, layout, **settings)
            return
        if backend in SERVE_TWO_WIDTHS:
            settings = {**TWO_WIDTHS, **settings}
        if layout is Layout.LATENT:
            layer = layer_type(**{**SHAPE, **LATENT, **settings})
            weight = {"kv_b_proj": torch.zeros(2 * 32, 48, dtype=torch.float16, device=DEVICE), "v_head_dim": 16}
            of_mla = weight if backend == "TRITON_MLA" else {}
            BACKENDS[backend].impl(layer, dtype=torch.float16, block_size=16, aiter=AITER, **of_mla)
            return
        layer = call_of(layer_type, **{"layout": layout, **settings}).layer
        BACKENDS[backend].impl(layer, dtype=torch.float16, block_size=16, aiter=AITER)

    return run


CALLED: dict[str, Callable[..., None]] = {
    "the kernels, paged": paged(attn_optimized.paged_attention),
    "the kernels, dense": varlen(attn_optimized),
    "cascade attention": paged(cascade),
    "the reference, paged": paged(attn_reference.paged_attention),
    "the reference, dense": varlen(attn_reference),
    "AITER's unified_attention": paged(aiter_adapter.unified_attention, AITER),
    "AITER's paged_attention_v1": paged(aiter_adapter.paged_attention_v1, AITER),
    "AITER's pa_fwd_asm": assembly,
    "AITER's flash_attn_varlen_func": flash,
    **{f"backend {name}": kernel_of(name) for name in BACKENDS},
}


@pytest.mark.parametrize("run", CALLED.values(), ids=CALLED)
def test_a_rule_that_is_not_named_is_refused(run, unheard):
    with pytest.raises(UnsupportedError, match="an unheard-of rule"):
        run(unheard, unheard_of=3)


@pytest.mark.parametrize("run", CALLED.values(), ids=CALLED)
def test_a_field_without_a_record_is_refused(run, forgotten):
    with pytest.raises((UnsupportedError, ContractError), match="unheard_of"):
        run(forgotten, unheard_of=3)


@pytest.mark.parametrize("name", [name for name in CALLED if "AITER" not in name])
def test_a_rule_that_is_off_is_refused_by_nobody(name, unheard):
    """Or the refusals above would be of something else."""
    CALLED[name](unheard, unheard_of=1)


@pytest.mark.parametrize("name", ["the kernels, paged", "the kernels, dense"])
def test_kernels_that_name_the_rule_are_launched(name, unheard, monkeypatch):
    monkeypatch.setattr(attention, "IMPLEMENTED_RULES", attention.IMPLEMENTED_RULES | {"unheard_of"})
    CALLED[name](unheard, unheard_of=3)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if BACKENDS[name].capabilities(AITER).available])
def test_a_backend_that_names_the_rule_serves_it(backend, unheard, monkeypatch):
    declared: Capabilities = BACKENDS[backend].capabilities(AITER)
    named = dataclasses.replace(declared, rules={**declared.rules, "unheard_of": YES})
    monkeypatch.setattr(BACKENDS[backend], "capabilities", classmethod(lambda cls, aiter: named))
    kernel_of(backend)(unheard, unheard_of=3)


def runs_on(backend: str, architecture: str) -> bool:
    """True if a backend runs on an architecture at all. If not, it gives no other reason there."""
    prefixes = BACKENDS[backend].capabilities(AITER).architectures
    return not isinstance(prefixes, Only) or architecture.startswith(tuple(prefixes.values))


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1201", "sm90", "interpreter"])
def test_no_backend_is_selected(architecture, unheard):
    config = AttentionConfig.of(call_of(unheard, unheard_of=3).layer, torch.float16, block_size=16)
    config = dataclasses.replace(config, layout=None)
    names = priorities(architecture)
    for name in names:
        assert "an unheard-of rule" in {refusal.property for refusal in BACKENDS[name].capabilities(AITER).refusals(config)}
    with pytest.raises(UnsupportedError) as refused:
        select(config, architecture=architecture, aiter=AITER)
    running = sum(runs_on(name, architecture) for name in names)
    assert str(refused.value).count("an unheard-of rule not supported: it is not declared") == running
    assert str(refused.value).count(f"architecture {architecture} not supported") == len(names) - running
    assert architecture in PRIORITIES or architecture.startswith(("gfx", "sm"))


@pytest.mark.parametrize("name", ["unheard", "forgotten"])
def test_no_case_is_written_without_the_rule(name, request, tmp_path):
    call = call_of(request.getfixturevalue(name), unheard_of=3)
    with pytest.raises(CaptureError, match="unheard_of"):
        capture(Call(q=call.q, layer=call.layer, batch=call.batch, kv_cache=call.kv_cache), tmp_path / "case.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", registry.battery())
def test_every_target_must_refuse_the_rule(name, unheard):
    class UnheardCase(Case, tag="unheard"):
        unheard_of: int = 1

    support = registry.load(name).support("cpu")
    attn_type = support.attn_types[0]
    cache = Cache(layout=support.layouts[0], block_size=16, num_blocks=1) if attn_type.reads_cache else None
    plain = UnheardCase(target=name, attn_type=attn_type, head_size=64, cache=cache)
    assert support.beyond(msgspec.structs.replace(plain, unheard_of=3)) == "an unheard-of rule"
    assert support.beyond(plain) != "an unheard-of rule"


TWO_WIDTHS: dict[str, Any] = {"head_size_v": 48, "layout": Layout.CONTENT_PACKED}
SERVE_TWO_WIDTHS: frozenset[str] = frozenset({"TRITON_ATTN_DIFFKV"})
"""The backends that serve K and V of two widths in a cache, and nothing else. Every other one refuses them."""
LATENT: dict[str, Any] = {"num_kv_heads": 1, "head_size_v": 48, "layout": Layout.LATENT}
READERS: dict[str, Callable[..., object]] = {
    "the kernels": attn_optimized.paged_attention,
    "cascade attention": cascade,
    "AITER's unified_attention": functools.partial(aiter_adapter.unified_attention, AITER),
    "AITER's paged_attention_v1": functools.partial(aiter_adapter.paged_attention_v1, AITER),
    "AITER's pa_fwd_asm": functools.partial(aiter_adapter.pa_fwd_asm, AITER),
}
SERVE_LATENT_CACHES: frozenset[str] = frozenset({"the kernels", "TRITON_MLA", "ROCM_AITER_MLA", "ROCM_AITER_TRITON_MLA"})
"""The names in READERS, and of backends, that serve a latent cache. Every other one refuses it."""


def read_latent_cache(name: str, out: torch.Tensor) -> None:
    call = call_of(Layer)
    kv_cache = torch.ones(2, 16, 64, dtype=torch.float16, device=DEVICE)
    READERS[name](call.q, kv_cache, Layer(**{**SHAPE, **LATENT}), call.batch, out=out)


@pytest.mark.parametrize("name", [name for name in READERS if name in SERVE_LATENT_CACHES])
def test_a_latent_cache_is_read_by_those_who_name_it(name):
    read_latent_cache(name, out := torch.full((2, 2, 48), torch.nan, dtype=torch.float16, device=DEVICE))
    assert (out == 1).all()  # as every V is


@pytest.mark.parametrize("name", [name for name in READERS if name not in SERVE_LATENT_CACHES])
def test_a_latent_cache_is_refused_by_all_who_do_not_name_it(name):
    out = torch.full((2, 2, 48), torch.nan, dtype=torch.float16, device=DEVICE)
    with pytest.raises(UnsupportedError, match="head_size_v"):
        read_latent_cache(name, out)
    assert out.isnan().all()


@pytest.mark.parametrize("rotates", [False, True])
def test_the_kernels_that_write_k_and_v_refuse_a_latent_cache(rotates):
    call = call_of(Layer)
    arguments = {"k": call.q[:, :1], "v": call.q[:, :1, :48], "layer": Layer(**{**SHAPE, **LATENT})}
    arguments["kv_cache"] = torch.zeros(2, 16, 64, dtype=torch.float16, device=DEVICE)
    arguments["slot_mapping"] = torch.tensor([3], device=DEVICE)
    write = attn_optimized.write_kv_cache
    if rotates:
        arguments |= {"q": call.q.clone(), "positions": torch.tensor([0], device=DEVICE), "is_neox": True}
        arguments["cos_sin_cache"] = torch.ones(1, 2, device=DEVICE)
        write = attn_optimized.rope_and_write_kv_cache
    with pytest.raises(ContractError, match="use write_latent_cache"):
        write(**arguments)
    assert not arguments["kv_cache"].any()


def test_dense_v_of_another_width_is_refused_by_all_who_do_not_name_it():
    call = dense_call(Layer, head_size_v=48)
    starts = call.batch.query_start_loc
    # this one knows one head size, so all its tensors have it
    options = {"max_query_len": 1, "max_key_len": 1, "causal": False, "out": call.out}
    with pytest.raises(UnsupportedError, match="head_size_v"):
        aiter_adapter.flash_attn_varlen(
            AITER, call.q, call.q, call.q, call.layer, query_start_loc=starts, key_start_loc=starts, **options
        )
    assert call.out.isnan().all()

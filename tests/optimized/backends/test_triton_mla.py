"""TRITON_MLA: prefills expanded, decodes absorbed, and what is refused; and the AITER backends that refuse every layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from attn_contract import AttentionType, ContractError, Layer, Layout, UnsupportedError
from attn_fuzz.targets.backends.layers import common_metadata
from attn_optimized.backends import BACKENDS, CommonAttentionMetadata
from attn_optimized.backends.triton_mla import MlaMetadata, MlaMetadataBuilder, TritonMlaImpl
from attn_reference.latent import absorbed, expanded, up_projected

from tests.support.ambient import states_that_change
from tests.support.calls import forget, is_new, paged_call, random_tokens, shuffled_blocks
from tests.support.wrong_arguments import not_refused, wrong_calls

MLA = BACKENDS["TRITON_MLA"]
HEADS, NOPE, ROPE, VALUE, LATENT, BLOCK_SIZE = 4, 24, 8, 16, 32, 16
MIXED = {"query_lens": [1, 5, 2, 20, 1, 7], "seq_lens": [30, 5, 2, 70, 1, 40]}


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """A step of an engine: the cache holds the contexts, and NaN where this step's tokens are to be written.

    `tokens` are the rows of each request as they should be read.
    """

    q: torch.Tensor
    new: torch.Tensor
    tokens: list[torch.Tensor]
    kv_cache: torch.Tensor
    common: CommonAttentionMetadata
    weight: torch.Tensor

    @property
    def w_uk(self) -> torch.Tensor:
        return self.weight.view(HEADS, NOPE + VALUE, LATENT)[:, :NOPE].permute(2, 0, 1)

    @property
    def w_uv(self) -> torch.Tensor:
        return self.weight.view(HEADS, NOPE + VALUE, LATENT)[:, NOPE:].permute(2, 0, 1)


def layer_of(**changed: Any) -> Layer:
    sizes = {"num_heads": HEADS, "num_kv_heads": 1, "head_size": LATENT + ROPE, "head_size_v": LATENT}
    return Layer(**{**sizes, "scale": (NOPE + ROPE) ** -0.5, "layout": Layout.LATENT, **changed})


def step_of(query_lens: Sequence[int], seq_lens: Sequence[int], device: torch.device, **changed: Any) -> Step:
    sizes = {"num_heads": HEADS, "num_kv_heads": 1, "head_size": LATENT + ROPE, "dtype": torch.float16}
    rows = random_tokens(query_lens, seq_lens, **sizes)
    form = {"layout": Layout.LATENT, "head_size_v": LATENT, "block_size": BLOCK_SIZE, "gap": 0}
    call, new = paged_call(rows, device=device, **form), is_new(query_lens, seq_lens)
    slots, num_tokens = shuffled_blocks(seq_lens, BLOCK_SIZE).slots[new].to(device), sum(query_lens)
    common = common_metadata(call.batch, AttentionType.DECODER)
    fields = {"num_actual_tokens": num_tokens, "max_query_len": max(query_lens), "slot_mapping": slots, **changed}
    common = replace(common, **fields)
    draw = torch.Generator().manual_seed(1)
    return Step(
        q=torch.randn(num_tokens, HEADS, NOPE + ROPE, generator=draw).half().to(device),
        new=rows.key[new, 0].to(device),
        tokens=list(rows.key[:, 0].to(device).split(list(seq_lens))),
        kv_cache=forget(call, slots).kv_cache,
        common=common,
        weight=(torch.randn(HEADS * (NOPE + VALUE), LATENT, generator=draw) * 0.2).half().to(device),
    )


def impl_of(step: Step, layer: Layer | None = None, **options: Any) -> TritonMlaImpl:
    arguments = {"dtype": torch.float16, "block_size": BLOCK_SIZE, "kv_b_proj": step.weight, "v_head_dim": VALUE}
    return TritonMlaImpl(layer or layer_of(), **{**arguments, "validate": True, **options})


def run(step: Step, impl: TritonMlaImpl, **builder: Any) -> tuple[torch.Tensor, torch.Tensor, MlaMetadata]:
    """The outputs [T, N, V] and LSEs of a whole step, as an engine gets them."""
    metadata = MlaMetadataBuilder(AttentionType.DECODER, **builder).build(step.common)
    impl.do_kv_cache_update(step.new[:, :LATENT], step.new[:, LATENT:], step.kv_cache, step.common.slot_mapping)
    out = step.q.new_full((len(step.q), HEADS, VALUE), torch.nan)
    lse = torch.full((HEADS, len(step.q)), torch.nan, dtype=torch.float32, device=step.q.device)
    if (prefill := metadata.prefill) is not None:
        q, new = step.q[prefill.rows], step.new[prefill.rows]
        own_out, own_lse = torch.empty_like(out[prefill.rows]), torch.empty_like(lse[:, prefill.rows])
        flat = own_out.flatten(1)
        impl.forward_mha(q, new[:, :LATENT], new[:, LATENT:], step.kv_cache, metadata, output=flat, lse=own_lse)
        out[prefill.rows], lse[:, prefill.rows] = flat.view_as(own_out), own_lse
    if (decode := metadata.decode) is not None:
        q, new = step.q[decode.rows], step.new[decode.rows]
        query = absorbed(q[..., :NOPE], q[..., NOPE:], new[:, :LATENT], new[:, LATENT:], step.w_uk).query
        latent, own_lse = query.new_empty(*query.shape[:2], LATENT), torch.empty_like(lse[:, decode.rows])
        impl.forward_mqa(query, step.kv_cache, metadata, output=latent, lse=own_lse)
        out[decode.rows], lse[:, decode.rows] = up_projected(latent, step.w_uv), own_lse
    return out, lse, metadata


def assert_right(step: Step, out: torch.Tensor, lse: torch.Tensor, *, causal: bool = True) -> None:
    """Against each request by itself, expanded, in float64."""
    scale, row = (NOPE + ROPE) ** -0.5, 0
    for keys, query_len in zip(step.tokens, step.common.query_start_loc_cpu.diff().tolist(), strict=True):
        q = step.q[row : row + query_len].double()
        parts = q[..., :NOPE], q[..., NOPE:], keys[:, :LATENT].double(), keys[:, LATENT:].double()
        form = expanded(*parts, step.w_uk.double(), step.w_uv.double())
        logits = torch.einsum("tnd,knd->ntk", form.query, form.key) * scale
        if causal:
            first = len(keys) - query_len
            hidden = torch.arange(len(keys))[None] > torch.arange(first, len(keys))[:, None]
            logits = logits.masked_fill(hidden.to(logits.device), -torch.inf)
        expected = torch.einsum("ntk,knv->tnv", logits.softmax(-1), form.value)
        torch.testing.assert_close(out[row : row + query_len].double(), expected, rtol=0, atol=4e-3)
        torch.testing.assert_close(lse[:, row : row + query_len].double(), logits.logsumexp(-1), rtol=0, atol=4e-3)
        row += query_len
    assert row == len(out)


@pytest.mark.parametrize("context_chunk_keys", [1024, 16, 7])
@pytest.mark.parametrize("num_speculative_tokens", [0, 1, 6])
def test_decodes_prefills_and_extends_of_one_step(context_chunk_keys, num_speculative_tokens, device):
    step = step_of(**MIXED, device=device)
    options = {"context_chunk_keys": context_chunk_keys, "num_speculative_tokens": num_speculative_tokens}
    out, lse, metadata = run(step, impl_of(step), **options)
    assert_right(step, out, lse)
    assert metadata.prefill is not None
    chunks = {1024: 1, 16: 4, 7: 8}[context_chunk_keys]
    assert len(metadata.prefill.context_chunks) == chunks


@pytest.mark.parametrize("rows", [[1, 1, 1], [1, 3, 2]], ids=["one token each", "a draft"])
def test_a_step_of_decodes_is_handed_on_as_it_is(rows, device):
    """Nothing is copied to the device, and lengths of the host need not be known: a CUDA graph may hold it."""
    step = step_of(rows, [30, 5, 20], device, seq_lens_cpu=None)
    out, lse, metadata = run(step, impl_of(step), num_speculative_tokens=2)
    assert_right(step, out, lse)
    assert metadata.prefill is None
    assert metadata.decode is not None
    assert metadata.decode.batch is metadata.step
    assert metadata.decode.rows == slice(0, sum(rows))


@pytest.mark.parametrize("model_dtype", [torch.float16, torch.bfloat16])
def test_no_state_of_torch_changes_a_step(model_dtype, device):
    step = step_of(**MIXED, device=device)
    step = replace(step, **{name: getattr(step, name).to(model_dtype) for name in ("q", "new", "kv_cache", "weight")})
    impl = impl_of(step, dtype=model_dtype)
    assert states_that_change(lambda: run(step, impl, context_chunk_keys=16)[:2]) == []


def test_a_step_that_is_not_causal_is_all_decodes(device):
    step = step_of([4, 4], [30, 12], device, causal=False)
    out, lse, metadata = run(step, impl_of(step))
    assert metadata.prefill is None
    assert_right(step, out, lse, causal=False)


def test_a_float8_cache_has_one_scale_and_this_steps_tokens_are_not_rounded(device):
    step = step_of([6, 1], [40, 20], device)
    scale = torch.tensor([0.05], device=device)
    layer = layer_of(kv_cache_dtype=torch.float8_e4m3fn, k_scale=scale)
    stored = (step.kv_cache.float() / scale).to(torch.float8_e4m3fn)
    cached = [(rows.float() / scale).to(torch.float8_e4m3fn).float().mul(scale).half() for rows in step.tokens]
    tokens = [torch.cat([cached[0][:34], step.tokens[0][34:]]), cached[1]]
    step = replace(step, kv_cache=stored, tokens=tokens)
    out, lse, _ = run(step, impl_of(step, layer), context_chunk_keys=16)
    assert_right(step, out, lse)


def test_the_rest_of_the_batch_changes_nothing(device):
    """A request's chunks are its own, and chunks of requests that are gathered together do not depend on each other."""
    options = {"batch_invariant": True}
    together = step_of([20, 9, 33], [70, 100, 60], device)
    out, lse, _ = run(together, impl_of(together, **options), context_chunk_keys=4)
    start = together.common.query_start_loc_cpu.tolist()
    for r in range(3):
        rows = slice(start[r], start[r + 1])
        own = {"query_start_loc": torch.tensor([0, start[r + 1] - start[r]], dtype=torch.int32)}
        lens = together.common.seq_lens_cpu[r : r + 1]
        common = replace(
            together.common,
            query_start_loc=own["query_start_loc"].to(device),
            query_start_loc_cpu=own["query_start_loc"],
            seq_lens=lens.to(device),
            seq_lens_cpu=lens,
            num_actual_tokens=start[r + 1] - start[r],
            block_table_tensor=together.common.block_table_tensor[r : r + 1],
            slot_mapping=together.common.slot_mapping[rows],
        )
        alone = replace(together, q=together.q[rows], new=together.new[rows], common=common)
        own_out, own_lse, _ = run(alone, impl_of(alone, **options), context_chunk_keys=4)
        assert torch.equal(own_out, out[rows])
        assert torch.equal(own_lse, lse[:, rows])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"block_size": 8}, UnsupportedError, "block size 8"),
        ({"dtype": torch.float32}, UnsupportedError, "dtype"),
        ({"v_head_dim": 40}, ContractError, "kv_b_proj: got shape"),
        ({"v_head_dim": 0}, ContractError, "v_head_dim"),
        ({"kv_b_proj": torch.zeros(HEADS * 40, LATENT + 1).half()}, ContractError, "kv_b_proj: got shape"),
        ({"kv_b_proj": torch.zeros(HEADS * 40, LATENT)}, ContractError, "kv_b_proj: got torch.float32"),
        ({"kv_b_proj": torch.zeros(()).half()}, ContractError, r"kv_b_proj: got shape \(\), expected 2 dimensions"),
        ({"kv_b_proj": torch.zeros(HEADS * 536, LATENT).half()}, UnsupportedError, "expanded heads of 528 dims"),
        ({"kv_b_proj": torch.zeros(HEADS * 50, LATENT).half(), "v_head_dim": 40}, UnsupportedError, "and 40 of V"),
        ({"kv_b_proj": torch.zeros(HEADS * 8, LATENT).half(), "v_head_dim": 8}, ContractError, "kv_b_proj: got shape"),
    ],
)
def test_wrong_sizes_are_refused_by_name(options, error, words, device):
    with pytest.raises(error, match=words):
        impl_of(step_of([1], [3], device), **options)


def test_expanded_heads_are_as_wide_as_a_tile(device):
    weight = torch.zeros(HEADS * (512 - ROPE + VALUE), LATENT).half().to(device)
    assert impl_of(step_of([1], [3], device), kv_b_proj=weight).expanded.head_size == 512


def test_a_step_that_lacks_something_is_refused(device):
    step = step_of([5], [9], device)
    impl, builder = impl_of(step), MlaMetadataBuilder(AttentionType.DECODER)
    metadata = builder.build(step.common)
    latent = torch.zeros(5, HEADS, LATENT, dtype=torch.float16, device=device)
    query = torch.zeros(5, HEADS, LATENT + ROPE, dtype=torch.float16, device=device)
    with pytest.raises(ContractError, match=r"attn_metadata\.decode: got None"):
        impl.forward_mqa(query, step.kv_cache, metadata, output=latent)
    prefill = partial(impl.forward_mha, step.q, step.new[:, :LATENT], step.new[:, LATENT:], step.kv_cache)
    lens = {name: getattr(step.common, name) + 99 for name in ("seq_lens", "seq_lens_cpu")}
    longer = builder.build(replace(step.common, **lens, max_seq_len=200))
    decodes = MlaMetadataBuilder(AttentionType.DECODER, num_speculative_tokens=4).build(step.common)
    for wrong, words in ((longer, "seq_lens_cpu: got 108"), (decodes, r"attn_metadata\.prefill: got None")):
        with pytest.raises(ContractError, match=words):
            prefill(wrong, output=torch.empty(5, HEADS, VALUE, dtype=torch.float16, device=device))


# torch multiplies matrices of any strides; and the constructor gets no other tensor whose device it could differ from
SERVED = (*(f"{name} with gaps in its last dimension" for name in ("kv_b_proj", "kv_c", "k_pe")), "kv_b_proj on no device")


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("num_speculative_tokens", [0, 4], ids=["prefill", "decode"])
def test_one_wrong_argument_is_refused_before_anything_is_written(num_speculative_tokens, validate, device):
    step = step_of([5], [9], device)
    impl = impl_of(step, validate=validate)
    builder = MlaMetadataBuilder(AttentionType.DECODER, num_speculative_tokens=num_speculative_tokens)
    metadata, new = builder.build(step.common), step.new
    if metadata.prefill is not None:
        method, rows = impl.forward_mha, {"query": step.q, "kv_c": new[:, :LATENT], "k_pe": new[:, LATENT:]}
        width, free = VALUE, {}
    else:
        method, rows = impl.forward_mqa, {"query": torch.zeros(5, HEADS, LATENT + ROPE, dtype=torch.float16, device=device)}
        width, free = LATENT, {"query": (0,)}
    out, lse = (torch.zeros(5, HEADS, width, dtype=torch.float16, device=device), torch.zeros(HEADS, 5, device=device))
    given = {**rows, "kv_cache": step.kv_cache, "attn_metadata": metadata, "output": out, "lse": lse}
    written = {"kv_c": new[:, :LATENT], "k_pe": new[:, LATENT:], "kv_cache": step.kv_cache}
    written["slot_mapping"] = step.common.slot_mapping
    for call, arguments, own in (
        (method, given, free),
        (impl.do_kv_cache_update, written, {"slot_mapping": (0,)}),
    ):
        wrong = partial(wrong_calls, call, arguments, optional=("lse",), free={"kv_cache": (0,), **own})
        for _ in range(2):  # before and after a right call
            served = (each for each in wrong() if call != method or each[0] not in SERVED)
            assert not_refused(served, [out, lse, step.kv_cache]) == []
            call(**arguments)
    assert not_refused(wrong_calls(builder.build, {"common_attn_metadata": step.common})) == []


def test_one_wrong_argument_of_a_layer_is_refused(device, aiter):
    step = step_of([5], [9], device)
    right = {"layer": layer_of(), "dtype": torch.float16, "block_size": BLOCK_SIZE, "kv_b_proj": step.weight}
    right |= {"v_head_dim": VALUE, "validate": True, "batch_invariant": False, "allocation_layout": None, "aiter": aiter}
    optional = ("block_size", "allocation_layout", "aiter")
    wrong = (each for each in wrong_calls(TritonMlaImpl, right, optional=optional) if each[0] not in SERVED)
    assert not_refused(wrong) == []


def test_lengths_that_the_host_alone_has_are_refused(device):
    """A request that the host takes for one key shorter."""
    step = step_of([5], [9], device)
    impl = impl_of(step)
    metadata = MlaMetadataBuilder(AttentionType.DECODER).build(replace(step.common, seq_lens_cpu=step.common.seq_lens_cpu - 1))
    out = torch.empty(5, HEADS, VALUE, dtype=torch.float16, device=device)
    with pytest.raises(ContractError):
        impl.forward_mha(step.q, step.new[:, :LATENT], step.new[:, LATENT:], step.kv_cache, metadata, output=out)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"seq_lens_cpu": None}, ContractError, "seq_lens_cpu: got None"),
        ({"causal": torch.tensor([True])}, UnsupportedError, "one flag for a step"),
    ],
    ids=str,
)
def test_steps_that_cannot_be_split_are_refused(changed, error, words, device):
    with pytest.raises(error, match=words):
        MlaMetadataBuilder(AttentionType.DECODER).build(replace(step_of([5], [9], device).common, **changed))


def test_only_decoders_have_a_builder():
    with pytest.raises(UnsupportedError, match="only decoders have a latent cache"):
        MlaMetadataBuilder(AttentionType.ENCODER)


@pytest.mark.parametrize("name", ["ROCM_AITER_MLA", "ROCM_AITER_TRITON_MLA"])
def test_backends_without_an_adapter_refuse_to_build(name, aiter):
    """With a whole AITER, too: nothing pretends to be its kernels. It was said of "this installation", as if another one would
    have the adapter."""
    words = r"no adapter to AITER's assembly kernels.*nothing to install changes that, and vLLM's own backend.*; use TRITON_MLA"
    with pytest.raises(UnsupportedError, match=words) as refused:
        BACKENDS[name].impl(layer_of(), dtype=torch.float16, block_size=BLOCK_SIZE, aiter=aiter)
    assert str(refused.value).startswith(f"{name}: any layer not supported: ")
    assert "installation" not in str(refused.value)

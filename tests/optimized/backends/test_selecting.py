"""ROCM_AITER_MLA_SPARSE and MINIMAX_M3_SPARSE: layers that attend to what an indexer selected into a buffer."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layout, UnsupportedError
from attn_fuzz.targets.backends.layers import common_metadata
from attn_fuzz.targets.triton import TRITON
from attn_optimized.backends import BACKENDS, CommonAttentionMetadata

from tests.support.agreement import assert_within_bound
from tests.support.calls import PagedCall, forget, is_new, padded_rows, paged_call, random_tokens, shuffled_blocks
from tests.support.wrong_arguments import not_refused, wrong_calls

MLA, BLOCKS = "ROCM_AITER_MLA_SPARSE", "MINIMAX_M3_SPARSE"
# prefill, decode, padding, extend, and a draft that is verified
MIXED = [7, 1, 0, 20, 2], [7, 340, 0, 200, 260]
K = {MLA: 128, BLOCKS: 2}
"""The number of ids that a row selects."""
FORMS: dict[str, dict[str, Any]] = {
    MLA: {"num_kv_heads": 1, "head_size": 40, "head_size_v": 32, "selection_unit": 1, "layout": Layout.LATENT},
    BLOCKS: {"num_kv_heads": 2, "head_size": 128, "selection_unit": 128, "layout": Layout.CONTENT_PACKED},
}
BLOCK_SIZE = {MLA: 16, BLOCKS: 128}
every_backend = pytest.mark.parametrize("name", FORMS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """A step of an engine, whose cache holds this step's keys, too. `batch` is what the reference sees of it."""

    name: str
    call: PagedCall
    new: tuple[torch.Tensor, ...]
    common: CommonAttentionMetadata
    buffer: torch.Tensor

    @property
    def arguments(self) -> dict[str, Any]:
        sizes = {"dtype": self.call.q.dtype, "block_size": BLOCK_SIZE[self.name]}
        return {"layer": self.call.layer, **sizes, "topk_indices_buffer": self.buffer}

    def forward(self, impl: Any, out: torch.Tensor) -> partial[torch.Tensor]:
        """The layer's method, with the arguments of this step."""
        metadata = BACKENDS[self.name].builder(AttentionType.DECODER).build(self.common)
        given = {"query": self.call.q, "kv_cache": self.call.kv_cache, "attn_metadata": metadata, "output": out}
        if self.name == MLA:
            assert metadata.prefill is None
            rows = metadata.decode.rows
            return partial(impl.forward_mqa, **{**given, "query": self.call.q[rows], "output": out[rows]})
        return partial(impl.forward, key=self.new[0], value=self.new[1], **given)


def selection(name: str, seq_lens: list[int], query_lens: list[int], heads: int) -> torch.Tensor:
    """Distinct visible units of each row and head, as many as there are up to k, in any order, with -1 between and after."""
    draw, rows = torch.Generator().manual_seed(5), []
    for query_len, seq_len in zip(query_lens, seq_lens, strict=True):
        for position in range(seq_len - query_len, seq_len):
            units = position // FORMS[name]["selection_unit"] + 1
            of_heads = [torch.randperm(units, generator=draw)[: K[name] - 1] for _ in range(heads)]
            row = torch.full((heads, K[name]), -1)
            for head, chosen in enumerate(of_heads):
                row[head, torch.randperm(K[name], generator=draw)[: len(chosen)]] = chosen
            rows.append(row)
    return torch.stack(rows, 1).int()


def step_of(name: str, device: torch.device, **layer: Any) -> Step:
    """A step of mixed requests. The buffer has rows after the step's that no layer may follow."""
    query_lens, seq_lens = MIXED
    form, dtype = {**FORMS[name], **layer}, torch.float16
    sizes = {key: form.pop(key) for key in ("num_kv_heads", "head_size")}
    tokens = random_tokens(query_lens, seq_lens, dtype=dtype, num_heads=4, **sizes)
    heads = 1 if name == MLA else sizes["num_kv_heads"]
    selected = selection(name, seq_lens, query_lens, heads)
    buffer = torch.full((heads, 64, K[name] + 3), 1 << 30, dtype=torch.int32)[..., : K[name]]
    buffer[:, : selected.shape[1]] = selected
    options = {"block_size": BLOCK_SIZE[name], "gap": 0, "device": device, "selected": buffer.clone().to(device)}
    call = paged_call(tokens, **options, **form)
    blocks = shuffled_blocks(seq_lens, BLOCK_SIZE[name])
    new = is_new(query_lens, seq_lens)
    common = common_metadata(replace(call.batch, selected=None), AttentionType.DECODER)
    return Step(
        name=name,
        call=forget(call, blocks.slots[new]),
        new=padded_rows(tokens.key[new], tokens.value[new], device=device),
        common=replace(common, max_query_len=max(query_lens), slot_mapping=blocks.slots[new].to(device)),
        buffer=(buffer[0] if name == MLA else buffer).to(device),
    )


def written(impl: Any, step: Step) -> None:
    key, value = step.new
    if step.name == MLA:
        key, value = key[:, 0, :32], key[:, 0, 32:]
    impl.do_kv_cache_update(key, value, step.call.kv_cache, step.common.slot_mapping)


def out_of(step: Step) -> torch.Tensor:
    return step.call.q.new_full((*step.call.q.shape[:2], step.call.layer.v_head_size), torch.nan)


@every_backend
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("sinks", [None, [0.5, 3.0, -3.0, -torch.inf]])
def test_a_mixed_step_attends_to_what_was_selected(name, validate, sinks, device):
    if sinks and name == BLOCKS:
        pytest.skip("refused")
    step = step_of(name, device, sinks=sinks)
    impl = BACKENDS[name].impl(validate=validate, **step.arguments)
    written(impl, step)
    out = out_of(step)
    step.forward(impl, out)()
    assert_within_bound(step.call, out, rounding=TRITON.rounding(device.type))


@every_backend
def test_each_call_reads_the_buffer_anew(name, device):
    """An indexer writes into one buffer in each step, and in each layer that has one."""
    step = step_of(name, device)
    impl = BACKENDS[name].impl(**step.arguments)
    written(impl, step)
    step.forward(impl, out_of(step))()
    step.buffer[..., 0] = -1
    assert step.call.batch.selected is not None
    selected = step.call.batch.selected.clone()
    selected[..., 0] = -1
    changed = replace(step.call.batch, selected=selected)
    out = out_of(step)
    step.forward(impl, out)()
    assert_within_bound(step.call._replace(batch=changed), out, rounding=TRITON.rounding(device.type))


@every_backend
@pytest.mark.parametrize("validate", [False, True])
def test_wrong_arguments_are_refused_by_name(name, validate, device):
    step = step_of(name, device)
    arguments = step.arguments
    impl_class: Any = BACKENDS[name].impl
    make = partial(impl_class, topk_indices_buffer=arguments.pop("topk_indices_buffer"), validate=validate)
    assert not_refused(wrong_calls(make, arguments)) == []
    impl = make(**arguments)
    written(impl, step)
    out = out_of(step)
    forward = step.forward(impl, out)
    right = {key: value for key, value in forward.keywords.items() if key not in ("key", "value")}
    tensors = [out, step.call.kv_cache]
    assert not_refused(wrong_calls(forward, right, free={"kv_cache": (0,)}), tensors) == []


@every_backend
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda buffer: buffer.long(), "topk_indices_buffer: got torch.int64, expected torch.int32"),
        (lambda buffer: buffer[..., :8, :], "topk_indices_buffer: got 8 rows, expected at least num_actual_tokens"),
        (lambda buffer: buffer.transpose(-1, -2).contiguous().transpose(-1, -2), "topk_indices_buffer: .* dense"),
        (lambda buffer: buffer[..., 0], "topk_indices_buffer: "),
        (lambda buffer: buffer.to("meta"), "selected: .*meta"),
    ],
    ids=["a dtype", "too few rows", "strided ids", "a dimension", "no device"],
)
def test_a_buffer_that_no_step_can_read_is_refused(name, change, says, device):
    step = step_of(name, device)
    step = replace(step, buffer=change(step.buffer))
    out = out_of(step)
    with pytest.raises(ContractError, match=says):
        step.forward(BACKENDS[name].impl(**step.arguments), out)()
    assert out.isnan().all()


@every_backend
@pytest.mark.parametrize("wrong", ["after the request", "twice"])
def test_wrong_picks_are_refused_with_validate(name, wrong, device):
    step = step_of(name, device)
    row = step.buffer[..., 7, :]  # of the decode, which has units to spare
    row[..., :2] = 1 << 20 if wrong == "after the request" else 1
    out = out_of(step)
    with pytest.raises(ContractError, match=r"selected\[0, 7"):
        step.forward(BACKENDS[name].impl(validate=True, **step.arguments), out)()
    assert out.isnan().all()


def test_ids_that_vllm_would_drop_are_refused(device):
    """GLM-5.3-Flash's indexer selects 2048 tokens and up to 3 of an open pool. vLLM's backend cuts a row to index_topk."""
    step = step_of(MLA, device)
    wider = torch.nn.functional.pad(step.buffer, (0, 3))
    with pytest.raises(UnsupportedError, match=r"top_k 131 not supported: vLLM.* \(it takes multiples of 128\)"):
        BACKENDS[MLA].impl(**{**step.arguments, "topk_indices_buffer": wider})


def test_each_kv_head_has_its_blocks(device):
    step = step_of(BLOCKS, device)
    with pytest.raises(ContractError, match=r"topk_indices_buffer: got shape \(1, .*, expected num_kv_heads \(2\)"):
        BACKENDS[BLOCKS].impl(**{**step.arguments, "topk_indices_buffer": step.buffer[:1]})


@pytest.mark.parametrize("unasked", ["the LSE", "non-causal attention"])
@every_backend
def test_a_step_that_asks_for_more_is_refused(name, unasked, device):
    step = step_of(name, device)
    if unasked == "non-causal attention":
        step = replace(step, common=replace(step.common, causal=False))
    lse = torch.zeros(4, len(step.call.q), device=device) if unasked == "the LSE" else None
    out = out_of(step)
    with pytest.raises(UnsupportedError, match="not supported"):
        step.forward(BACKENDS[name].impl(**step.arguments), out)(lse=lse)
    assert out.isnan().all()


def test_latent_attention_to_picks_has_no_prefill(device):
    step = step_of(MLA, device)
    impl: Any = BACKENDS[MLA].impl(**step.arguments)
    builder = BACKENDS[MLA].builder
    with pytest.raises(ContractError, match=r"attn_metadata\.prefill: got None"):
        impl.forward_mha()
    with pytest.raises(UnsupportedError, match="only decoders have a latent cache"):
        builder(AttentionType.ENCODER)
    assert isinstance(builder(AttentionType.DECODER).build(step.common).decode.batch, Batch)

"""A rule or a layout that a side names and forgets is seen at once: the fuzzer would draw it, and all would agree."""

import dataclasses

import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_contract.rules import RULES
from attn_fuzz.cases import contradictions, tensors
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run.case.attempt import call_attention
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets import registry
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.triton import MODE_OF_FORMAT

from tests.support.latent_formats import latent_sizes
from tests.test_rule_parts import NAMES, case_with, replace


def without(step: Step, name: str) -> Step:
    """The step with a rule off, or where the tensors need the rule, with another number."""
    layer, batch = step.layer, step.batch
    if name in ("q_scale", "key_unit"):
        return dataclasses.replace(step, layer=dataclasses.replace(layer, **{name: 2 * getattr(layer, name)}))
    holder = layer if RULES[name].holder == "Layer" else batch
    off = dataclasses.replace(holder, **{name: RULES[name].off})
    if name == "selection_unit":
        batch = dataclasses.replace(batch, selected=None)
    return dataclasses.replace(
        step, layer=off if isinstance(off, Layer) else layer, batch=off if isinstance(off, Batch) else batch
    )


LAYOUT_OF_V = "head_size_v"
"""The rule whose width the tensors have: latent layouts show it."""
OTHERS = [name for name in NAMES if name != LAYOUT_OF_V]


@pytest.mark.parametrize("name", OTHERS)
def test_a_rule_changes_what_the_reference_gives(name):
    step = tensors.build(case_with(name))
    call_attention(step, REFERENCE_FP32)
    own = step.out.clone()
    call_attention(without(step, name), REFERENCE_FP32)
    assert not torch.equal(own.nan_to_num(), step.out.nan_to_num()), name


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_give_what_the_reference_gives_beside_a_rule(name):
    verdict = try_case(replace(case_with(name), target="triton"), registry.load("triton"), "cpu")
    assert (name, verdict.kind, verdict.message) == (name, "agree", "")


def case_of(layout: Layout) -> Case:
    """A case that writes and reads a layout, quantized if the layout is."""
    sizes = {"num_kv_heads": 2, "group_size": 2, "head_size": 16, "dtype": "float16"}
    own = {}
    if layout.has_latent_value:
        sizes |= {"num_kv_heads": 1, "head_size_v": 8}
    if layout.has_inline_scales:
        own = {"dtype": "fp8_e4m3fn"}
    if layout.latent_format is not None:
        sizes |= {"dtype": "bfloat16", **latent_sizes(layout)}
    requests = tuple(Request(n, m, blocks, True) for n, m, blocks in ((3, 19, (0, 1)), (1, 2, (2,)), (5, 33, (3, 4, 5))))
    cache = Cache(layout=layout, block_size=16, num_blocks=8, **own)
    return Case(target="triton", cache=cache, requests=requests, values=Values("random", 3), lse=True, **sizes)


@pytest.mark.parametrize("layout", Layout, ids=str)
def test_kernels_give_what_the_reference_gives_in_a_layout(layout):
    case = case_of(layout)
    assert contradictions.contradiction(case) is None
    mode = MODE_OF_FORMAT.get(layout)
    name = f"triton-latent@{mode}" if mode else "triton-latent" if layout.has_latent_value else "triton"
    verdict = try_case(case, registry.load(name), "cpu")
    assert (layout, verdict.kind, verdict.message) == (layout, "agree", "")


@pytest.mark.parametrize("attn_type", AttentionType, ids=str)
def test_kernels_give_what_the_reference_gives_of_an_attention_type(attn_type):
    case = case_of(Layout.BLOCKS_FIRST_NHD)
    requests = case.requests
    if attn_type is not AttentionType.DECODER:
        requests = tuple(replace(each, causal=False) for each in requests)
    if not attn_type.reads_cache:
        requests = tuple(Request(each.query_len, each.query_len) for each in requests)
    cache = case.cache if attn_type.reads_cache else None
    case = replace(case, attn_type=attn_type, requests=requests, cache=cache)
    assert contradictions.contradiction(case) is None
    verdict = try_case(case, registry.load("triton"), "cpu")
    assert (attn_type, verdict.kind, verdict.message) == (attn_type, "agree", "")

"""Each field of a case changes the step that is built of it. A field that nobody builds is red by its name."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.poison import storage_of

from tests.fuzz.cases.test_dimensions import FIELDS, NESTED

replace = msgspec.structs.replace

NOT_BUILT = {
    "target": "the step is the same for every target",
    "earlier": "earlier calls are made of the built step",
    "program_order": "it is the interpreter's",
    **dict.fromkeys(("values.file", "values.sha256", "selected_width"), "only a captured call has it"),
}
"""Fields that no built step shows, each with the reason."""

PLAIN = Case(
    target="reference-fp32",
    num_kv_heads=2,
    head_size=8,
    requests=(Request(3, 7, (0, 1), True), Request(1, 2, (2,), True)),
    cache=Cache(layout=Layout.CONTENT_PACKED, block_size=4, num_blocks=4),
    values=Values("random", 3),
)
QUANTIZED = {"cache.dtype": "fp8_e4m3fn", "cache.scales": "tensor"}
BESIDE: dict[str, dict[str, Any]] = {
    "sink_tokens": {"window": (1, -1)},
    "ranges_clamped": {"window": (1, -1), "requests.bidirectional_ranges": ((0, 6),)},
    **{name: {"selection_unit": 4} for name in ("selected", "empty_selections", "selected_per_head")},
    "signed_slopes": {"alibi_slopes": True},
    "narrow_sinks": {"dtype": "float16", "sinks": "near"},
    **dict.fromkeys(("q_scale", "cache.dtype", "cache.scales"), QUANTIZED),
    **{f"cache.{name}": {"cache.layout": Layout.KV_FIRST_NHD} for name in ("planes", "slot_padding")},
    "saturated": {**QUANTIZED, "head_size": 512},
    "attn_type": {"requests": (Request(3, 7, (0, 1)),)},
    "key_unit": {"cache.block_size": 8, "requests": (Request(3, 7, (0,), True),)},
    "requests.causal": {"per_request_causal": True},
    "cache.layer": {"cache.num_layers": 2},
    "recycled": {"window": (1, -1)},
    "ordinary_writes": {"cache.neighbour": Layout.CONTENT_PACKED},
    **{f"rope.{name}": {"rope": Rope(rotary_dim=4)} for name in Rope.__struct_fields__},
    "rope.narrow_cache": {"rope": Rope(rotary_dim=4), "dtype": "float16"},
    "rope.all_rows": {"rope": Rope(rotary_dim=4), "rows_past": 1},
}
"""The fields without which a field says nothing."""
VALUES: dict[str, Any] = {
    "attn_type": AttentionType.ENCODER_DECODER,
    "window": (1, -1),
    "head_size_v": 4,
    "selection_unit": 4,
    "key_unit": 2,
    "unwritten": (0,),
    "requests.blocks": (1, 0),
    "requests.bidirectional_ranges": ((0, 6),),
    "rope.rotary_dim": 6,
    "cache.layout": Layout.KV_FIRST_NHD,
    "cache.order": PhysicalOrder.LBNHC,
    "cache.writer": Layout.KV_FIRST_NHD,
    "cache.neighbour": Layout.CONTENT_PACKED,
}
"""The value of a field whose type does not say another one."""


def set_in(case: Case, name: str, value: Any) -> Case:
    outer, _, inner = name.partition(".")
    if not inner:
        return replace(case, **{outer: value})
    first, *rest = each if isinstance(each := getattr(case, outer), tuple) else (each,)
    changed = replace(first, **{inner: value})
    return replace(case, **{outer: (changed, *rest) if rest else changed})


def other_value(name: str, case: Case) -> Any:
    """A value of a field that the case does not have."""
    if name in VALUES:
        return VALUES[name]
    outer, _, inner = name.partition(".")
    holder = getattr(case, outer) if inner else case
    own = getattr(holder[0] if isinstance(holder, tuple) else holder, inner or outer)
    hint = get_type_hints(NESTED[outer] if inner else Case)[inner or outer]
    words = [word for kind in (hint, *get_args(hint)) for word in get_args(kind) if isinstance(word, str)]
    if words:
        return next(word for word in words if word != own)
    return not own if isinstance(own, bool) else (own or 0) + 1


def shown(step: Any) -> Iterator[object]:
    """Everything in a step that can be compared: of a tensor its form, and the bytes of its storage."""
    if isinstance(step, torch.Tensor):
        yield from (step.dtype, step.shape, step.stride(), step.storage_offset())
        yield bytes(storage_of(step, torch.uint8).numpy())
    elif dataclasses.is_dataclass(step):
        for field in dataclasses.fields(step):
            yield field.name
            yield from shown(getattr(step, field.name))
    elif isinstance(step, dict | tuple):
        for each in step.items() if isinstance(step, dict) else step:
            yield from shown(each)
    else:
        yield step


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in NOT_BUILT])
def test_each_field_of_a_case_changes_its_step(name):
    case = PLAIN
    for field, value in BESIDE.get(name, {}).items():
        case = set_in(case, field, value)
    other = set_in(case, name, other_value(name, case))
    assert [contradiction(case), contradiction(other)] == [None, None]
    if list(shown(tensors.build(case))) == list(shown(tensors.build(other))):
        pytest.fail(f"{name}: the step is the same without it (attn_fuzz.cases.tensors)", pytrace=False)


def test_no_reason_is_for_a_field_that_there_is_not():
    assert set(NOT_BUILT) <= set(FIELDS)

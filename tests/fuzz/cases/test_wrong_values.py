"""A bound of the contract that is checked too far, too strictly or not at all is found by the earlier call "illegal"."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Layout
from attn_contract.arguments import check_tensor
from attn_contract.errors import ContractError
from attn_contract.validation import attention, cache, tensors, values
from attn_fuzz.cases.case import ILLEGAL, Cache, Case, Request, Rope
from attn_fuzz.cases.wrong_arguments import in_one_memory
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.targets.reference import REFERENCE_FP32


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse, validate=True):
    if kv_cache is None:
        attention.check_varlen_attention(q, k, v, layer, batch, out, lse, values=validate)
    else:
        attention.check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)


def _write(k, v, kv_cache, layer, slot_mapping, *, validate=True):
    cache.check_write_kv_cache(k, v, kv_cache, layer, slot_mapping, values=validate)


def _rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox, validate=True):
    arguments = (q, k, v, positions, cos_sin_cache, is_neox, kv_cache, layer, slot_mapping)
    cache.check_rope_and_write_kv_cache(*arguments, values=validate)


CHECKS = replace(
    REFERENCE_FP32,
    name="checks",
    attention=_attention,
    write_kv_cache=_write,
    rope_and_write_kv_cache=_rope,
    checks_arguments=True,
    sanitizes=True,
)
"""Functions that check their arguments, and write nothing."""
DECODER = Case(
    target="checks",
    head_size=8,
    requests=(
        Request(query_len=2, seq_len=7, blocks=(2, 0), causal=True),
        Request(query_len=3, seq_len=3, blocks=(3,), causal=True),
    ),
    cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=5),
    slack=1,
    earlier=(ILLEGAL,),
)
ENCODER = Case(
    target="checks",
    head_size=8,
    attn_type=AttentionType.ENCODER,
    requests=tuple(Request(query_len=length, seq_len=length, causal=False) for length in (2, 3)),
    slack=1,
    earlier=(ILLEGAL,),
)
CASES = {
    "sinks": msgspec.structs.replace(DECODER, sinks="near", lse=True),
    "slopes": msgspec.structs.replace(DECODER, alibi_slopes=True),
    "bias": msgspec.structs.replace(DECODER, qq_bias="random"),
    "rotation": msgspec.structs.replace(DECODER, rope=Rope(rotary_dim=8)),
    "selection": msgspec.structs.replace(DECODER, selection_unit=2, selected="all"),
    "scales": msgspec.structs.replace(DECODER, cache=msgspec.structs.replace(DECODER.cache, dtype="fp8_e4m3fn", scales="head")),
    "encoder": ENCODER,
}


def asked(name: str) -> str:
    error = Attempt(CASES[name], CHECKS, "cpu").error
    return "" if error is None else str(error)


@pytest.mark.parametrize("name", CASES)
def test_the_contract_checks_each_bound(name):
    assert not asked(name)


def nothing(*arguments):
    return arguments[0].query_start_loc.cpu().long().diff() if hasattr(arguments[0], "query_start_loc") else None


def off_by(original, field, by):
    """The check with another bound: a field of its last argument, or that argument itself."""

    def check(*arguments):
        *first, bound = arguments
        if field is None:
            return original(*first, bound + by)
        known = {name: getattr(bound, name, None) for name in ("num_blocks", "num_slots", "block_size")}
        return original(*first, SimpleNamespace(**known | {field: known[field] + by}))

    return check


@pytest.mark.parametrize(
    ("name", "check", "words"),
    [
        ("sinks", "check_lengths", "max_query_len of 2"),
        ("sinks", "check_block_table", "a block_table of 1 columns, 1 too few,"),
        ("encoder", "check_keys_are_own", "seq_lens"),
        ("sinks", "check_slots", "a slot of -2"),
        ("selection", "check_selected", "a selected unit of 4"),
        ("sinks", "check_logit_values", "an element of sinks"),
        ("slopes", "check_logit_values", "an element of alibi_slopes"),
        ("bias", "check_logit_values", "an element of qq_bias"),
        ("scales", "check_scale_values", "an element of k_scale of 0.0"),
        ("rotation", "check_positions", "a position of -1"),
    ],
)
def test_a_missing_check_is_found(name, check, words, monkeypatch):
    for module in (attention, cache):
        if hasattr(module, check):
            monkeypatch.setattr(module, check, nothing)
    assert words in asked(name)
    assert asked(name).endswith("was not refused")


@pytest.mark.parametrize(
    ("name", "check", "field", "by", "words"),
    [
        ("sinks", "check_blocks", "num_blocks", 1, "in use of 5 after a legal call was not refused"),
        ("sinks", "check_blocks", "num_blocks", -1, "in use of 4 after a legal call was refused, and is legal"),
        ("sinks", "check_slots", "num_slots", 1, "a slot of 20 after a legal write was not refused"),
        ("sinks", "check_slots", "num_slots", -1, "a slot of 19 after a legal write was refused, and is legal"),
        ("rotation", "check_positions", None, 1, "a position of 8 after a legal write was not refused"),
    ],
)
def test_a_bound_that_is_off_by_one_is_found(name, check, field, by, words, monkeypatch):
    shifted = off_by(getattr(values, check), field, by)
    for module in (values, attention, cache):
        if hasattr(module, check):
            monkeypatch.setattr(module, check, shifted)
    assert words in asked(name)


@pytest.mark.parametrize(("name", "bound"), [("sinks", "MAX_LOGIT"), ("bias", "MAX_LOGIT"), ("scales", "SMALLEST_NORMAL")])
def test_a_number_that_is_checked_too_far_or_too_strictly_is_found(name, bound, monkeypatch):
    own, strict = getattr(values, bound), 0.5 if bound == "MAX_LOGIT" else 2.0
    for factor, end in ((strict, " was refused, and is legal"), (1 / strict, " was not refused")):
        monkeypatch.setattr(values, bound, own * factor)
        assert end in asked(name)


def test_written_tensors_that_share_memory_are_asked_for(monkeypatch):
    monkeypatch.setattr(tensors, "_check_own_memory", lambda *arguments: None)
    assert "out that overlaps itself in dimension 0 was not refused" in asked("sinks")
    only_others = lambda name, held, bytes_of, may_be: [check_tensor(each, held[each]) for each in held]  # noqa: E731
    monkeypatch.setattr(tensors, "_check_own_memory", only_others)
    monkeypatch.setattr("attn_fuzz.cases.wrong_arguments._folded", lambda right, dim: right.to("meta"))
    assert "an earlier call with out before the last bytes of q was not refused" in asked("sinks")


@pytest.mark.parametrize("order", [("out", "q"), ("q", "out"), ("out", "lse"), ("kv_cache", "out")])
def test_tensors_of_one_memory_are_refused_where_they_share_a_byte_and_accepted_beside_each_other(order):
    step = Attempt(msgspec.structs.replace(CASES["sinks"], earlier=()), CHECKS, "cpu").step
    outputs = {"out": step.out, "lse": step.lse}
    held = {"q": step.q, "kv_cache": step.kv_cache, **outputs}

    def call(**changed: torch.Tensor) -> None:
        now = held | changed
        _attention(now["q"], None, None, now["kv_cache"], step.layer, step.batch, out=now["out"], lse=now["lse"])

    with pytest.raises(ContractError, match="memory that reaches into"):
        call(**in_one_memory(held, *order))
    call(**in_one_memory(held, *order, later=1))

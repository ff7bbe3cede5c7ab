"""Rules as records: what can be registered, what a layer or a step asks for, and what is derived from a record."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

import pytest
import torch
from attn_contract import (
    RULES,
    AttentionConfig,
    AttentionType,
    Batch,
    ContractError,
    Layer,
    Layout,
    UnsupportedError,
    rules,
)
from attn_contract.ops import option
from attn_contract.rule_types import RULE_TYPES
from attn_contract.rules import (
    DECODER_ONLY,
    HEADS,
    LOGITS,
    OWN,
    PLAIN_FIELDS,
    VISIBILITY,
    active_rules,
    axes_of,
    held_rules,
    holds_rules,
    label_of,
    refuse_unnamed,
    rule,
)

SHAPE: dict[str, Any] = {"num_heads": 2, "num_kv_heads": 2, "head_size": 4, "scale": 0.5, "layout": Layout.KV_FIRST_NHD}
frozen = dataclasses.dataclass(frozen=True, eq=False, kw_only=True)


@pytest.fixture(autouse=True)
def only_while_a_test_runs() -> Iterator[None]:
    known = dict(rules._rules)
    yield
    rules._rules.clear()
    rules._rules.update(known)


def step(kind: type[Batch] = Batch, **settings: Any) -> Batch:
    starts = torch.tensor([0, 1], dtype=torch.int32)
    sizes = {"max_query_len": 1, "max_seq_len": 1, "num_actual_tokens": 1, "causal": True}
    return kind(query_start_loc=starts, seq_lens=starts[1:], **{**sizes, **settings})


def layer_with(type_: Any, off: Any, **record: Any) -> type[Layer]:
    """A class of layers that has one more rule, `extra`."""
    axes = (HEADS,) if type_ == torch.Tensor | None else ()
    field = rule(off, **{"label": "an extra", "acts_on": VISIBILITY, "axes": axes, **record})
    made = dataclasses.make_dataclass("Extra", [("extra", type_, field)], bases=(Layer,), frozen=True, eq=False, kw_only=True)
    return holds_rules(made)


class TestRegistration:
    def test_a_rule_takes_its_name_type_and_off_value_from_the_field(self):
        layer_with(int | None, None, attn_types=DECODER_ONLY, why_not="others are not decoders")
        record = RULES["extra"]
        assert (record.name, record.holder, record.type, record.off) == ("extra", "Layer", int | None, None)
        assert label_of("extra") == "an extra"
        assert label_of("unheard of") == "unheard of"

    def test_rules_of_layers_come_first_and_those_of_calls_last(self):
        layer_with(int, 0)
        holders = [record.holder for record in RULES.values()]
        assert holders == sorted(holders, key=["Layer", "Batch", "call"].index)
        assert list(RULES).index("extra") < list(RULES).index("qq_bias")

    def test_rules_exclude_rules_that_there_are(self):
        assert {name for record in RULES.values() for name in record.excludes} <= set(RULES)
        with pytest.raises(TypeError, match="rule extra: why_excluded says why it excludes rules, and only then"):
            layer_with(int, 0, excludes=("window",))

    def test_fields_of_a_subclass_are_registered_once(self):
        grown = layer_with(int, 0)
        before = dict(RULES)
        holds_rules(frozen(type("Grandchild", (grown,), {})))
        assert before == RULES
        assert list(held_rules(grown)) == [*held_rules(Layer), "extra"]
        assert "extra" not in held_rules(Layer)

    def test_a_subclass_of_batch_holds_rules_of_steps(self):
        @holds_rules
        @frozen
        class Marked(Batch):
            marks: torch.Tensor | None = rule(None, label="marks", acts_on=LOGITS, axes=(OWN,))

        assert RULES["marks"].holder == "Batch"
        assert active_rules(step(Marked)) == {}
        assert list(active_rules(step(Marked, marks=torch.zeros(1)))) == ["marks"]

    def test_one_name_is_one_rule(self):
        layer_with(int, 0)
        with pytest.raises(TypeError, match="rule extra: there is one of that name already"):
            layer_with(bool, False)

    def test_a_rule_is_not_declared_anew_by_a_subclass(self):
        record = rule(0, label="another", acts_on=VISIBILITY)
        for field in (record, dataclasses.field(default=7)):
            made = dataclasses.make_dataclass(
                "Hiding", [("sink_tokens", int, field)], bases=(Layer,), frozen=True, eq=False, kw_only=True
            )
            with pytest.raises(TypeError, match="rule sink_tokens"):
                holds_rules(made)

    def test_a_class_that_is_no_layer_and_no_batch_holds_none(self):
        with pytest.raises(TypeError, match="Stranger holds no rules"):
            holds_rules(dataclasses.make_dataclass("Stranger", [("extra", int, rule(0, label="x", acts_on=LOGITS))]))

    def test_a_rule_of_a_class_that_is_not_decorated_is_an_error(self):
        @frozen
        class Undecorated(Layer):
            extra: int = rule(0, label="an extra", acts_on=VISIBILITY)

        with pytest.raises(TypeError, match="rule extra is not registered: decorate Undecorated"):
            Undecorated(**SHAPE)

    @pytest.mark.parametrize(
        ("type_", "off", "message"),
        [
            (str, "", "its type is"),
            ("int | None", None, "its type is"),  # as `from __future__ import annotations` makes of all types
            (torch.Tensor, None, "its type is"),
            (int | float, 0, "its type is"),
            (torch.Tensor | None, torch.zeros(1), "cannot be the off value"),
            (bool, True, "cannot be the off value"),
            (bool, None, "cannot be the off value"),
            (int, None, "cannot be the off value"),
            (int, False, "cannot be the off value"),
            (int | None, 0.5, "cannot be the off value"),
            (float | None, "off", "cannot be the off value"),
            (tuple[int, int], (-1,), "cannot be the off value"),
        ],
    )
    def test_records_that_no_one_could_derive_from(self, type_, off, message):
        with pytest.raises(TypeError, match=rf"^rule extra: .*{message}"):
            layer_with(type_, off)
        assert "extra" not in RULES

    @pytest.mark.parametrize(
        ("type_", "axes"), [(torch.Tensor | None, ()), (torch.Tensor | None, ("H",)), (int | None, (HEADS,))]
    )
    def test_the_axes_of_a_tensor_are_known_and_nothing_else_has_any(self, type_, axes):
        with pytest.raises(TypeError, match="rule extra: axes says what each axis of a tensor counts"):
            layer_with(type_, None, axes=axes)

    def test_every_field_that_may_be_a_tensor_has_axes(self):
        for holder in (Layer, Batch):
            tensors = {field.name for field in dataclasses.fields(holder) if "Tensor" in str(field.type)}
            assert axes_of(holder).keys() == tensors
        assert [*axes_of(layer_with(torch.Tensor | None, None))][-1] == "extra"

    @pytest.mark.parametrize("record", [{"attn_types": DECODER_ONLY}, {"why_not": "nobody knows"}])
    def test_some_attention_types_and_the_reason_come_together(self, record):
        with pytest.raises(TypeError, match="why_not"):
            layer_with(int, 0, **record)


# by type: an off value, values of the type, and values that are not
VALUES: dict[Any, tuple[Any, list[Any], list[Any]]] = {
    bool: (False, [True], [None, 1, "yes", torch.ones(1)]),
    int: (0, [-3, 7], [None, True, 0.5, 2**31, "7", torch.ones(1)]),
    int | None: (None, [0, 7], [False, 0.5, -(2**31), (1,)]),
    float | None: (None, [0.5, -2.0], [True, float("nan"), float("inf"), 1e39, 10**400, "0.5"]),
    tuple[int, int]: ((-1, -1), [(0, 3)], [None, (1,), [1, 2], (1, 2, 3), (True, 1), (0.5, 1)]),
    torch.Tensor | None: (None, [torch.ones(1)], [True, 1.0, [1.0]]),
}


class TestValues:
    def test_every_type_is_here(self):
        assert set(VALUES) == set(RULE_TYPES)

    @pytest.mark.parametrize("type_", VALUES, ids=str)
    def test_without_a_check_a_rule_takes_the_values_of_its_type_and_no_other(self, type_):
        off, values, others = VALUES[type_]
        extended = layer_with(type_, off)
        assert active_rules(extended(**SHAPE)) == {}
        assert active_rules(extended(**SHAPE, extra=off)) == {}
        for value in values:
            layer = extended(**SHAPE, extra=value)
            assert active_rules(layer) == {"extra": value}
            assert type(layer.extra) is type(value)  # pyright: ignore[reportAttributeAccessIssue]
        for value in others:
            with pytest.raises(ContractError, match=r"^extra"):
                extended(**SHAPE, extra=value)

    def test_a_check_gets_the_layer_and_says_what_is_kept(self):
        def doubled(name: str, value: int, layer: Layer | None) -> int:
            return value * (1 if layer is None else layer.num_heads)

        assert layer_with(int, 0, check=doubled)(**SHAPE, extra=3).extra == 6  # pyright: ignore[reportAttributeAccessIssue]

    def test_an_optional_type_may_be_written_either_way(self):
        layer_with(Optional[torch.Tensor], None)  # noqa: UP045
        assert RULES["extra"].is_tensor
        assert option(RULES["extra"]) == "Tensor? extra=None"

    def test_attention_types_without_the_rule_refuse_a_value_that_asks_for_it(self):
        layer_with(tuple[int, int], (-1, -1), attn_types=DECODER_ONLY, why_not="they have no positions")
        record = RULES["extra"]
        record.check_defined((-1, -1), AttentionType.ENCODER)
        record.check_defined((3, 3), AttentionType.DECODER)
        with pytest.raises(ContractError) as refused:
            record.check_defined((3, 3), AttentionType.ENCODER)
        assert str(refused.value) == "extra: got (3, 3), expected (-1, -1) for ENCODER: they have no positions"


class TestAsked:
    def test_every_field_of_layer_and_batch_is_a_rule_or_plain(self):
        """A name that is missing costs a refusal; a name too many would let a rule pass in silence."""
        names = {field.name for kind in (Layer, Batch) for field in dataclasses.fields(kind)}
        held = {*held_rules(Layer), *held_rules(Batch)}
        assert names == held | PLAIN_FIELDS
        assert not held & PLAIN_FIELDS
        assert held == {name for name, record in RULES.items() if record.holder != "call"}

    def test_a_forgotten_plain_field_is_refused(self, monkeypatch):
        monkeypatch.setattr(rules, "PLAIN_FIELDS", PLAIN_FIELDS - {"output_scale"})
        monkeypatch.setattr(rules, "askable", rules.askable.__wrapped__)  # which keeps the fields of a class
        assert active_rules(Layer(**SHAPE)) == {}
        layer = Layer(**SHAPE, output_scale=torch.ones(1))
        with pytest.raises(UnsupportedError, match="output_scale not supported"):
            refuse_unnamed("somebody", RULES, layer)

    def test_layer_and_batch_together(self):
        layer = Layer(**SHAPE, window=(3, -1), sink_tokens=2)
        batch = step(qq_bias=torch.zeros(1, 1))
        assert list(active_rules(layer, batch)) == ["window", "sink_tokens", "qq_bias"]

    def test_unknown_fields_count_unless_they_have_their_default(self):
        @frozen
        class Unknown(Layer):
            needed: int
            listed: list[int] = dataclasses.field(default_factory=list)
            number: int = 1

        assert active_rules(Unknown(**SHAPE, needed=0)) == {"needed": 0}
        assert active_rules(Unknown(**SHAPE, needed=0, listed=[1], number=2)) == {"needed": 0, "listed": [1], "number": 2}

    def test_the_first_rule_that_is_not_named_is_refused_by_its_label(self):
        layer = Layer(**SHAPE, window=(3, -1), sink_tokens=2)
        refuse_unnamed("somebody", {"window", "sink_tokens"}, layer, step())
        with pytest.raises(UnsupportedError) as refused:
            refuse_unnamed("somebody", {"window"}, layer, step(), instead="somebody else")
        assert str(refused.value) == (
            "somebody: tokens at the start that a window keeps visible (sink_tokens) not supported: "
            "it does not implement this rule; use somebody else"
        )


class TestDerived:
    @pytest.mark.parametrize(
        ("type_", "off", "schema"),
        [
            (bool, False, "bool extra=False"),
            (int, 0, "int extra=0"),
            (int | None, None, "int? extra=None"),
            (float | None, None, "float? extra=None"),
            (tuple[int, int], (-1, -1), "int[] extra=[-1, -1]"),
            (torch.Tensor | None, None, "Tensor? extra=None"),
        ],
    )
    def test_a_rule_as_an_option_of_an_op(self, type_, off, schema):
        layer_with(type_, off)
        assert option(RULES["extra"]) == schema
        parsed = torch._C.parse_schema(f"attn_parity::op(Tensor q, *, {schema}) -> ()")
        assert parsed.arguments[1].name == "extra"
        assert parsed.arguments[1].has_default_value()

    @pytest.mark.parametrize("type_", VALUES, ids=str)
    def test_a_config_checks_values_as_a_layer_does_and_knows_of_tensors_only_that_there_is_one(self, type_):
        off, values, others = VALUES[type_]
        extended = layer_with(type_, off)
        config = AttentionConfig.of(extended(**SHAPE), torch.float16, block_size=16)
        assert not config.asks("extra")
        assert config.value_of("extra") == off
        for value in values:
            asking = AttentionConfig.of(extended(**SHAPE, extra=value), torch.float16, block_size=16)
            assert asking.value_of("extra") == (True if RULES["extra"].is_tensor else value)
            assert asking == config.with_rules(extra=asking.value_of("extra"))
        for value in others if type_ != torch.Tensor | None else [None, 1.0, torch.ones(1)]:
            with pytest.raises(ContractError, match=r"^extra"):
                config.with_rules(extra=value)

    def test_names_that_are_no_rules_are_errors(self):
        config = AttentionConfig(num_heads=1, num_kv_heads=1, head_size=4, dtype=torch.float16, block_size=16)
        for ask in (config.asks, config.value_of):
            with pytest.raises(ContractError, match=r"^name: got 'windw', expected one of window, "):
                ask("windw")

    def test_a_caller_does_not_overrule_the_layer_or_the_step(self):
        layer = Layer(**SHAPE, sinks=torch.zeros(2))
        for given in ({"sinks": False}, {"window": (-1, -1)}):
            with pytest.raises(ContractError, match="the layer or the batch says it"):
                AttentionConfig.of(layer, torch.float16, block_size=16, **given)
        with pytest.raises(ContractError, match=r"^non_causal: got False"):
            AttentionConfig.of(layer, torch.float16, block_size=16, batch=step(causal=False), non_causal=False)
        assert AttentionConfig.of(layer, torch.float16, block_size=16, non_causal=True).asks("non_causal")

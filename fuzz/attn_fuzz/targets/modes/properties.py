"""NAME@properties: relations between the outputs of a target (`attn_fuzz.properties`), without an oracle."""

import dataclasses
from collections.abc import Iterator

from attn_fuzz import properties
from attn_fuzz.cases.tensors import Step
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Mode, NoModeError, Target

CHUNKS = 3
"""The number of steps of a prefill, so that most chunks end inside a tile."""


def mode(launch: properties.Launch | None) -> Mode:
    """The mode, for `Target.modes`, of a target that can say how a step is launched. Equal launches must give equal bits."""
    return lambda target: _with_properties(target, launch)


def _with_properties(target: Target, launch: properties.Launch | None) -> Target:
    if target.dense_keys is not None:
        raise NoModeError(f"prefills of {target.name} read k and v of a step, which variants of a step do not have")

    def support(device: str) -> Support:
        declared = target.support(device)
        if device == "cpu":
            return declared
        return dataclasses.replace(
            declared,
            max_tokens=8 * declared.max_tokens,
            max_seq_len=16 * declared.max_seq_len,
            tile_sizes=(64, 16, 256, 2048),
            block_sizes=tuple(size for size in declared.block_sizes if size >= 16) or declared.block_sizes,
        )

    held = tuple(_of_support(target.support("cpu"), properties.error_bound(target.rounding), launch))
    return dataclasses.replace(target, support=support, oracle=False, properties=(*target.properties, *held))


def _queries_per_chunk(step: Step) -> int:
    return step.batch.max_query_len // CHUNKS + 1


def _of_support(
    support: Support, error: properties.ErrorBound, launch: properties.Launch | None
) -> Iterator[properties.Property]:
    """The properties of which each variant of a step is in a Support, too.

    How keys are split depends on the batch's sizes, and in a large batch on the lengths of its first requests. So bits may
    differ only where these do, or where the interpreter's matrix products do, which sum the last columns in another order.
    """
    rules, engine = {*support.rules}, support.engine
    yield properties.repetition()
    yield properties.request_order() if launch is None else properties.request_order(error, launch)
    yield properties.batch_composition(error)
    if {"bidirectional_ranges", "per_request_causal"} <= rules:
        yield properties.neighbours_rules(error)
    if engine.contexts:
        yield properties.chunked_prefill(_queries_per_chunk, error)
    pads = max(engine.unowned_rows) > 0 and max(engine.slack) > 0 and engine.empty_requests
    if pads:
        yield properties.padded_batch(error)
    yield properties.block_permutation()
    if support.unused_slots == "NaN" and max(engine.table_padding) > 0:
        yield properties.garbage()
    yield properties.head_permutation()
    yield properties.channel_permutation(error)
    yield properties.doubled_values()
    yield properties.additivity(error)
    yield properties.weights(error)
    yield properties.shifted_keys(error)
    if engine.other_scales:
        yield properties.scale_in_query()
    if "window" in rules and engine.windows == ("any",):
        yield properties.wide_window(error, launch)
    if {"non_causal", "per_request_causal"} <= rules and support.causal:
        # on an H200 a float8 cache with scales of tokens gave another last bit: other rows of the tile see other keys
        yield properties.last_row(error)
    if engine.more_queries_than_keys or engine.empty_requests:
        yield properties.forgotten_keys(error)
    if {"lse", "non_causal"} <= rules:
        yield properties.split_keys(error)
    if "selection_unit" in rules:
        yield properties.order_of_selection(error)
    if "selection_unit" in rules and "selection_unit" not in support.required_rules:
        yield properties.all_selected(error)

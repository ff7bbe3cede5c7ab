"""Engines that call kernels: restrictions of the calls that the contract allows.

The strategies draw this vocabulary directly. A restriction that `Support.exclude` expresses is drawn too, and thrown away.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from attn_contract import AttentionType, PhysicalOrder
from attn_fuzz.cases import edges_of_scales
from attn_fuzz.cases.case import Cache, Case, SelectionKind

WindowKind = Literal["any", "left", "symmetric", "by causality"]
RangeKind = Literal["any", "inside"]
QueryKind = Literal["any", "equal", "one"]
NUMBERS: Final = ("num_layers", "padding", "unowned_rows", "rows_past", "kv_rows_past", "table_padding", "slack")
"""Fields of Engine whose values are numbers; they stand for all numbers up to the largest one."""
GIVES_KEYS: Final[Mapping[str, Any]] = {"writes": (True,), "unwritten": False, "saturated": False}
"""Fields of an Engine whose steps all have a finite row of k and v for each of their query tokens."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The calls that an engine sends. The defaults are all that the contract allows.

    A bool says whether the engine ever sends what the field names. Every other field holds the values to draw, the simplest
    first; a third of the drawn layers have only this one. A number stands for all numbers up to the largest one. Most
    fields have the name of the field of Case or Cache that they restrict. A case beyond an Engine is not run on the target, and
    the target does not have to refuse it.

    Args:
        windows: kinds of windows. "any": each edge by itself. "left": (W - 1, -1). "symmetric": (W - 1, W - 1). "by causality":
            (W - 1, 0) in a causal step, else (W - 1, W - 1), as vLLM passes them.
        one_token_windows: windows whose left edge is 0, which some kernels take for no window.
        scale_signs: signs of the softmax scale.
        other_scales: softmax scales that are not 1 / sqrt(D).
        ranges: "inside": bidirectional ranges lie inside the prompt, and none is empty. "any": they may begin before it, end
            after it, or be empty.
        selection_units: tokens of the units that queries select.
        selections: kinds of selections; see Case.
        empty_selections: queries that see keys and select none.
        selected_per_head: True if each KV head has a selection of its own.
        signed_slopes: ALiBi slopes that are negative or 0.
        mixed_alibi: ALiBi with sinks or with ranges, or in steps that are not causal.
        mixed_ranges: bidirectional ranges in steps that are not causal.
        more_queries_than_keys: requests of self-attention that have fewer keys than queries.
        contexts, prompts: requests of self-attention with keys of earlier steps, and without.
        query_lens: numbers of queries of the requests of a step. "equal": the same for all, as when drafts are verified. "one":
            1 each, as in a decode.
        empty_requests: requests without a query, or without a key.
        empty_batches: steps without a request, or without a query in any request.
        shared_blocks: requests that share the blocks of a common prefix.
        planes: True if the cache is a K plane and a V plane.
        orders, num_layers, padding: the order of dimensions in memory, layers that share the allocation, and unused elements
            after each block.
        other_views: other layers see the allocation through another layout, to write this layer's keys or their own.
        writes: True if the step writes K and V.
        unwritten: query tokens that have slot -1, since an earlier step wrote their keys.
        ordinary_writes: True if a second layer that shares the allocation writes no special numbers such as NaN.
        saturated: infinite elements of k and v, which a quantized cache saturates.
        least_scales: scales of 2^-127 in caches of ue8m0 ones. The contract's writer writes none, nor does an engine's.
        recycled: NaN in keys outside all windows.
        fused_qkv, unlike_strides, flat_out, dense_out: forms of q, k, v, the scale caches and out; see Case.
        unowned_rows, rows_past, kv_rows_past: rows that no request owns; see Case.
        table_padding, slack: unused columns of the block table, and how much too large the bounds of lengths are.
        cited: where the engine's code shows a restriction, such as "triton_attn.py:503-508", by the name of its field. It is no
            restriction itself. `dataclasses.replace` keeps it, so an Engine with another value of a cited field cites again.

    Raises:
        ValueError: a field has no value, or one of another kind; or a field is cited that restricts nothing.
    """

    windows: tuple[WindowKind, ...] = ("any",)
    one_token_windows: bool = True
    scale_signs: tuple[int, ...] = (1, 0, -1)
    other_scales: bool = True
    ranges: tuple[RangeKind, ...] = ("any",)
    selection_units: tuple[int, ...] = (1, 4, 16, 2, 3, 128)
    selections: tuple[SelectionKind, ...] = get_args(SelectionKind)
    empty_selections: bool = True
    selected_per_head: tuple[bool, ...] = (False, True)
    signed_slopes: bool = True
    mixed_alibi: bool = True
    mixed_ranges: bool = True
    more_queries_than_keys: bool = True
    contexts: bool = True
    prompts: bool = True
    query_lens: tuple[QueryKind, ...] = ("any",)
    empty_requests: bool = True
    empty_batches: bool = True
    shared_blocks: bool = True
    planes: tuple[bool, ...] = (False, True)
    orders: tuple[PhysicalOrder, ...] = tuple(PhysicalOrder)
    num_layers: tuple[int, ...] = (1, 2, 3)
    padding: tuple[int, ...] = (0, 8, 32)
    other_views: bool = True
    writes: tuple[bool, ...] = (True, False)
    unwritten: bool = True
    ordinary_writes: tuple[bool, ...] = (False, True)
    saturated: bool = True
    least_scales: bool = True
    recycled: bool = True
    fused_qkv: tuple[bool, ...] = (False, True)
    unlike_strides: tuple[bool, ...] = (False, True)
    flat_out: tuple[bool, ...] = (False, True)
    dense_out: tuple[bool, ...] = (False, True)
    unowned_rows: tuple[int, ...] = (0, 1, 3)
    rows_past: tuple[int, ...] = (0, 1, 17)
    kv_rows_past: tuple[int, ...] = (0, 2)
    table_padding: tuple[int, ...] = (0, 1, 3)
    slack: tuple[int, ...] = (0, 1, 100)
    cited: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(values, bool):
                raise ValueError(f"Engine.{field.name}: got {values!r}, expected True or False")
            if isinstance(field.default, tuple) and (not isinstance(values, tuple) or not values):
                raise ValueError(f"Engine.{field.name}: got {values!r}, expected a tuple of at least one value")
        if idle := [name for name in self.cited if name not in self.restricted]:
            raise ValueError(f"Engine.cited: got {idle[0]!r}, expected fields that it restricts: {', '.join(self.restricted)}")

    @property
    def restricted(self) -> list[str]:
        """The fields that leave something out."""
        return [each.name for each in dataclasses.fields(self) if each.compare and getattr(self, each.name) != each.default]

    @property
    def gives_keys(self) -> bool:
        """See GIVES_KEYS."""
        return all(getattr(self, field) == value for field, value in GIVES_KEYS.items())

    @property
    def several_queries(self) -> bool:
        """True if a request may have more than one query, or none."""
        return {*self.query_lens} != {"one"}

    @property
    def idle_requests(self) -> bool:
        """True if a request may have no query. If all requests have the same number, such a step has no query."""
        return self.empty_requests and ("any" in self.query_lens or (self.empty_batches and self.several_queries))

    @property
    def fewer_keys(self) -> bool:
        """True if a request of self-attention may have fewer keys than queries."""
        return self.more_queries_than_keys and self.prompts and (self.several_queries or self.empty_requests)

    def not_sent(self, case: Case) -> str | None:
        """The first property of a case that the engine never sends, in words; None if it sends the case."""
        if self is ANY_ENGINE:
            return None
        for name, value_of in _VALUES.items():
            allowed, found = getattr(self, name), value_of(case)
            if isinstance(allowed, bool):
                if found and not allowed:
                    return f"{name}, never"
            elif found is not None and found not in allowed and not (name in NUMBERS and found <= max(allowed)):
                return f"{name} {found}, only {', '.join(map(str, allowed))}"
        if self.windows != ("any",) and not any(_IS_WINDOW[kind](case) for kind in self.windows):
            return f"windows {case.window}, only {', '.join(self.windows)}"
        if not any(_HAS_QUERIES[kind](case) for kind in self.query_lens):
            return f"query_lens {sorted({request.query_len for request in case.requests})}, only {', '.join(self.query_lens)}"
        if "any" not in self.ranges and any(not _is_inside(case, r) for r in range(len(case.requests))):
            return "ranges any, only inside"
        return None


def _of_cache(value: Callable[[Cache], Any]) -> Callable[[Case], Any]:
    return lambda case: None if case.cache is None else value(case.cache)


def _sign(case: Case) -> int:
    return (case.scale > 0) - (case.scale < 0)


def _lacks_keys(case: Case) -> bool:
    return case.attn_type is AttentionType.DECODER and any(request.context_len < 0 for request in case.requests)


def _shares_blocks(case: Case) -> bool:
    blocks = [block for request in case.requests for block in request.blocks]
    return len(set(blocks)) < len(blocks)


def _has_context(case: Case) -> bool:
    return case.attn_type is AttentionType.DECODER and any(request.context_len > 0 for request in case.requests)


def _has_prompt(case: Case) -> bool:
    return case.attn_type is AttentionType.DECODER and any(request.context_len <= 0 for request in case.requests)


def _has_least_scale(case: Case) -> bool:
    edge = edges_of_scales.edge_of(case)
    return edge is not None and edge.byte == edges_of_scales.MIN_BYTE


def _mixes_alibi(case: Case) -> bool:
    is_causal = case.attn_type is AttentionType.DECODER and all(request.causal for request in case.requests)
    return case.alibi_slopes and (case.sinks is not None or case.bidirectional_ranges or not is_causal)


_VALUES: Final[Mapping[str, Callable[[Case], Any]]] = {
    "one_token_windows": lambda case: case.window[0] == 0,
    "mixed_alibi": _mixes_alibi,
    "mixed_ranges": lambda case: case.bidirectional_ranges and not all(request.causal for request in case.requests),
    # packed pages round it up
    "selection_units": lambda case: None if case.cache and case.cache.layout.is_x_packed else case.selection_unit,
    "selections": lambda case: case.selected if case.selection_unit else None,
    "empty_selections": lambda case: case.selection_unit is not None and case.empty_selections,
    "selected_per_head": lambda case: case.selected_per_head if case.selection_unit and case.num_kv_heads > 1 else None,
    "contexts": _has_context,
    "prompts": _has_prompt,
    "scale_signs": _sign,
    "other_scales": lambda case: not math.isclose(case.scale, case.head_size**-0.5, rel_tol=1e-6),
    "more_queries_than_keys": _lacks_keys,
    "empty_requests": lambda case: any(not request.query_len or not request.seq_len for request in case.requests),
    "empty_batches": lambda case: not case.query_start_loc[-1],
    "shared_blocks": _shares_blocks,
    "planes": _of_cache(lambda cache: None if cache.holds_content_rows else cache.planes),
    "orders": _of_cache(lambda cache: cache.order if cache.holds_content_rows else None),
    "num_layers": _of_cache(lambda cache: cache.num_layers),
    "padding": _of_cache(lambda cache: cache.padding),
    "other_views": _of_cache(lambda cache: not {cache.writer, cache.neighbour} <= {None, cache.layout}),
    "unwritten": lambda case: bool(case.unwritten),
    "least_scales": _has_least_scale,
    "ordinary_writes": lambda case: case.ordinary_writes if case.cache is not None and case.cache.neighbour else None,
    **{
        name: lambda case, name=name: getattr(case, name)
        for name in (
            *("signed_slopes", "saturated", "recycled", "fused_qkv", "unlike_strides", "flat_out", "dense_out"),
            *("unowned_rows", "rows_past", "kv_rows_past", "table_padding", "slack"),
        )
    },
    "writes": lambda case: case.writes if case.cache is not None else None,
}
"""The value of each field in a case; None where a case has none. Windows, queries and ranges have predicates of their own."""


def _is_left(case: Case) -> bool:
    return case.window[1] < 0


def _is_symmetric(case: Case) -> bool:
    return case.window[0] == case.window[1]


def _is_by_causality(case: Case) -> bool:
    return case.window == window_by_causality(case.window[0], case)


_IS_WINDOW: Final[Mapping[str, Callable[[Case], bool]]] = {
    "any": lambda case: True,
    "left": _is_left,
    "symmetric": _is_symmetric,
    "by causality": _is_by_causality,
}


_HAS_QUERIES: Final[Mapping[str, Callable[[Case], bool]]] = {
    "any": lambda case: True,
    "equal": lambda case: len({request.query_len for request in case.requests}) <= 1,
    "one": lambda case: {request.query_len for request in case.requests} <= {1},
}


def window_by_causality(left: int, case: Case) -> tuple[int, int]:
    """The window of a case as vLLM passes it: nothing to the right of a causal query, and else as much as to the left."""
    is_causal = bool(case.requests) and all(request.causal for request in case.requests)
    return left, (min(left, 0) if is_causal else left)


def _is_inside(case: Case, r: int) -> bool:
    request = case.requests[r]
    return all(0 <= first <= last < request.seq_len for first, last in request.bidirectional_ranges)


ANY_ENGINE: Final = Engine()
"""The Engine that sends everything that the contract allows."""

VLLM: Final = Engine(
    windows=("by causality",),
    scale_signs=(1,),
    ranges=("inside",),
    more_queries_than_keys=False,
    empty_batches=False,
    other_views=False,
    ordinary_writes=(True,),
    saturated=False,
    unlike_strides=(False,),
    dense_out=(True,),
)
"""The calls of vLLM to a backend, with rows of padding, slots of -1, shared prefixes and requests without a query."""


def _restriction(field: str, value: Any) -> Callable[[Case], bool]:
    engine = Engine(**{field: value})
    return lambda case: engine.not_sent(case) is None


_NARROWER: Final[Mapping[str, tuple[Any, ...]]] = {
    "windows": (("left",), ("symmetric",), ("by causality",)),
    "ranges": (("inside",),),
    "query_lens": (("equal",), ("one",)),
    "scale_signs": ((1,),),
    "orders": (),
    **{name: ((0,),) for name in NUMBERS if name != "num_layers"},
    "num_layers": ((1,),),
}
RESTRICTIONS: Final[Mapping[str, Callable[[Case], bool]]] = {
    f"{field.name}={value!r}": _restriction(field.name, value)
    for field in dataclasses.fields(Engine)
    if field.compare
    for value in _NARROWER.get(field.name, (False,) if isinstance(field.default, bool) else ((False,), (True,)))
}
"""Restrictions of an Engine, as a user writes them, each with a function that is True for cases that meet it."""

"""Measures in wrong rows what a kernel computed, where no mistake of the table explains them.

A measurement has few free numbers: which keys a row sees, a factor of q.k or of each tile of keys. They must give all dims of
each wrong row, of which there are far more. So it is a fact about the output, which names the wrong step and not the cause.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from attn_contract import Layer
from attn_fuzz.explain.places import spans
from attn_fuzz.explain.search import SeenOutput
from attn_fuzz.mistakes.keys import TILES
from attn_reference import attend
from attn_reference.logits import to_logits, with_sink

KEYS = range(4, 641)
"""The numbers of keys of a request whose rows are measured: any factor of q.k has the output of one key, and some of two."""
MOST_ROWS, MOST_TOLD = 16, 3
"""The wrong rows of an output that are measured, and those that a line is about."""
LOOSE, LOOSEST = 2.0**-11, 0.1
"""The least and the largest share of its largest element by which a row may differ from a measurement."""
_FACTORS = torch.logspace(-8, 8, 257, base=2, dtype=torch.float64)


class Row(NamedTuple):
    """A row and head of an output that is wrong, and all keys [k] of its request, whether the row sees them or not."""

    place: str
    head: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    visible: torch.Tensor
    sink: torch.Tensor
    bias: torch.Tensor | None
    got: torch.Tensor
    near: torch.Tensor
    layer: Layer
    seen: SeenOutput

    def gives(self, out: torch.Tensor) -> torch.Tensor:
        """True for each output [..., Dv] that is the row's."""
        return ((out - self.got).abs() <= self.near).all(-1)

    def logits(self, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
        return to_logits(factor * self.layer.scale * (self.key @ self.query), self.bias, self.layer)

    def weights(self, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
        logits = torch.where(self.visible, self.logits(factor), -torch.inf)
        return torch.softmax(torch.cat([logits, self.sink.expand(*logits.shape[:-1], 1)], -1), -1)[..., :-1].nan_to_num(0)

    def out(self, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
        """[..., Dv], where q.k has a factor [..., 1]."""
        return self.weights(factor) @ self.value


_Trials = Iterator[tuple[str, torch.Tensor]]
"""Outputs that a row may have, and what it then does."""


def wrong_rows(seen: SeenOutput) -> list[Row]:
    """Some wrong rows of an output, of all requests. Numbers of hidden keys that are not finite are taken for 0."""
    found = list[Row]()
    for part, right in zip(seen.parts, seen.right, strict=True):
        request, layer = part.request, part.layer
        if right.all() or len(request.key) not in KEYS:
            continue
        (out, _, bound), got = seen.expected(part), seen.read(request.rows)
        largest = got.abs().amax(-1, keepdim=True)
        near = torch.minimum(torch.maximum(4 * bound.out, LOOSE * largest), LOOSEST * largest)
        sinks = with_sink(torch.empty(layer.num_heads, 1, 0).double(), layer)[:, 0]
        for q, h in (~right).nonzero().tolist():
            kv_head = h * layer.num_kv_heads // layer.num_heads
            key, value = (x[:, kv_head].nan_to_num(0, 0, 0) for x in (request.key, request.value))
            bias = None if request.bias is None else request.bias[h, q].nan_to_num(0, 0, -math.inf)
            place, visible = f"row {request.rows.start + q}, head {h}", request.visible[q].expand(len(key))
            row = Row(place, h, request.query[q, h], key, value, visible, sinks[h], bias, got[q, h], near[q, h], layer, seen)
            found += [] if row.gives(out[q, h]) else [row]
    # the first is taken: NaN, which no measurement gives
    found.sort(key=lambda row: bool(row.got.isfinite().all()))
    return found[:: max(1, len(found) // MOST_ROWS)]


def _other_queries(row: Row) -> _Trials:
    for part in row.seen.parts:
        for q, h in itertools.product(range(len(part.request.query)), range(row.layer.num_heads)):
            other = row._replace(query=part.request.query[q, h])
            yield f"has the query of row {part.request.rows.start + q}, head {h}", other.out()


def _other_keys(row: Row, *, what: tuple[str, ...]) -> _Trials:
    for part in row.seen.parts:
        both = {name: getattr(part.request, name)[: len(row.key)].nan_to_num(0, 0, 0) for name in what}
        for head in range(row.layer.num_kv_heads if len(part.request.key) >= len(row.key) else 0):
            other = row._replace(**{name: numbers[:, head] for name, numbers in both.items()})
            yield f"has that of KV head {head} of request {part.index}", other.out()


def _stretches(row: Row) -> _Trials:
    """A stretch of keys that the row does not see, sees although they are hidden, or sees alone."""
    logits = row.logits()
    shift = torch.maximum(logits.max(), row.sink)
    mass, sink = torch.exp(logits - shift)[:, None], torch.exp(row.sink - shift)
    both = torch.cat([mass, mass * row.value], 1)  # [k, 1 + Dv]
    shown = torch.where(row.visible[:, None], both, 0.0)
    should = f"and should see {spans(row.visible.nonzero().flatten().tolist()) or 'none'}"
    yield f"is 0, as if it saw no key, {should}", torch.zeros_like(row.got)
    begin, end = torch.triu_indices(len(both), len(both)).unbind()
    # a few dims rule out most stretches
    some = torch.cat([torch.zeros(1, dtype=torch.long), 1 + row.got.abs().topk(min(4, len(row.got))).indices])
    total = shown.sum(0)
    trials = [("does not see", total, -shown), ("sees hidden", total, both - shown), ("sees", 0 * total, both)]
    for words, start, more in trials:
        sums = torch.cat([torch.zeros_like(more[:1]), more.cumsum(0)])
        few = start[some] + sums[:, some][end + 1] - sums[:, some][begin]
        likely = ((few[:, 1:] / (few[:, :1] + sink) - row.got[some[1:] - 1]).abs() <= LOOSEST * row.got.abs().max()).all(-1)
        a, b = begin[likely], end[likely]
        state = start + sums[b + 1] - sums[a]
        given = row.gives(state[:, 1:] / (state[:, :1] + sink)).nonzero().flatten()
        if len(given):
            # the shortest: keys of weights near 0 may take part or not
            best = given[(b - a)[given].argmin()]
            yield f"{words} keys {spans(range(int(a[best]), int(b[best]) + 1))}, {should}", row.got


def _factor_of_products(rows: list[Row]) -> str | None:
    """One factor for all rows of a head: in some of them a key has all the weight, whatever the factor."""
    words = list[str]()
    for head in sorted({row.head for row in rows}):
        own = [row for row in rows if row.head == head]
        fitting = [f for f in map(_nearest_factor, own) if all(row.gives(row.out(f)) for row in own)]
        if not fitting or all(row.gives(row.out(1.25 * fitting[0] + 0.01)) for row in own):
            return None
        words.append(f"{_number(fitting[0])} in head {head}")
    return _told(words)


def _nearest_factor(row: Row) -> torch.Tensor:
    best, factors = _FACTORS[0], torch.cat([-_FACTORS, torch.zeros(1).double(), _FACTORS])
    for _ in range(6):
        best = factors[(row.out(factors[:, None]) - row.got).abs().amax(-1).argmin()]
        distances = (factors - best).abs()
        factors = best + distances[distances > 0].min() * torch.linspace(-1, 1, 65).double()
    return best


def _factor_of_tiles(row: Row, *, size: int) -> _Trials:
    tile = torch.arange(len(row.key)) // size
    sums = torch.stack([(row.weights() * (tile == n)) @ row.value for n in tile.unique()], 1)
    if 2 * sums.shape[1] <= len(row.got) and sums.isfinite().all() and row.got.isfinite().all():
        factors = torch.linalg.lstsq(sums, row.got[:, None]).solution.flatten()
        words = [f"{_number(f)} from key {n * size} on" for n, f in enumerate(factors)]
        yield f"has {', '.join(words) if len(words) > 1 else _number(factors[0])}", sums @ factors


def _number(x: torch.Tensor) -> str:
    named = {math.log2(math.e): "log2(e)", math.log(2): "ln(2)", 0.0: "0", 1.0: "1"}
    return next((word for number, word in named.items() if abs(float(x) - number) < 1e-3), f"{float(x):.4g}")


def _each(trials: Callable[[Row], _Trials]) -> Callable[[list[Row]], str | None]:
    def found(rows: list[Row]) -> str | None:
        each = [next((words for words, out in trials(row) if row.gives(out)), "") for row in rows]
        return _told([f"{row.place} {words}" for row, words in zip(rows, each, strict=True)]) if all(each) else None

    return found


def _told(words: list[str]) -> str:
    return "; ".join([*words[:MOST_TOLD], *["..."] * (len(words) > MOST_TOLD)])


MEASUREMENTS: dict[str, Callable[[list[Row]], str | None]] = {
    "q read elsewhere": _each(_other_queries),
    "V read elsewhere": _each(partial(_other_keys, what=("value",))),
    "K read elsewhere": _each(partial(_other_keys, what=("key",))),
    "K and V read elsewhere": _each(partial(_other_keys, what=("key", "value"))),
    "other keys are seen": _each(_stretches),
    "q.k has a factor": _factor_of_products,
    "all weights have a factor: the sum that they are divided by, or V": _each(partial(_factor_of_tiles, size=KEYS.stop)),
    **{f"the weights of each {n} keys have a factor": _each(partial(_factor_of_tiles, size=n)) for n in reversed(TILES)},
}
"""What all rows do, by what is then wrong. None: one of them does not."""


def _lse(seen: Sequence[SeenOutput]) -> str | None:
    """Factors of the largest logit and of the logarithm of the sum of weights, in all wrong LSEs."""
    terms = list[torch.Tensor]()
    for each, lse in ((each, each.lse) for each in seen if each.lse is not None):
        for part, right in zip(each.parts, each.right, strict=True):
            state, got = attend(part.request, part.layer), lse[:, part.request.rows].T.double()
            largest = with_sink(torch.where(part.request.visible, state.logits, -torch.inf), part.layer).amax(-1).T
            terms.append(torch.stack([largest, state.lse.T - largest, torch.ones_like(got), got], -1)[~right])
    a = torch.cat([torch.empty(0, 4), *terms])
    if len(a) < 8 or not a.isfinite().all():
        return None
    of_max, of_sum, more = factors = torch.linalg.lstsq(a[:, :3], a[:, 3:]).solution.flatten()
    near, right = LOOSE * a[:, 3].abs().clamp(min=1), torch.tensor([1.0, 1.0, 0.0])
    if ((a[:, :3] @ factors - a[:, 3]).abs() > near).any() or torch.allclose(factors, right.double(), atol=0.01):
        return None
    of_both = f"{_number(of_max)} * the largest logit + {_number(of_sum)} * the logarithm of the sum of weights relative to it"
    return f"the LSE is {of_both} + {_number(more)}"


def measured(seen: Sequence[SeenOutput]) -> list[tuple[str, int, bool]]:
    """What holds in the wrong rows of outputs, in how many, and whether that is all of them; what does comes first."""
    outputs = [rows for each in seen if (rows := wrong_rows(each))]
    if not outputs:
        return [(words, len(seen), True)] if (words := _lse(seen)) else []
    found = list[tuple[str, int, bool]]()
    for claim, measure in MEASUREMENTS.items():
        if told := [words for rows in outputs if (words := measure(rows))]:
            found.append((f"{claim}: {told[0]}. In a larger case: {told[-1]}", len(told), len(told) == len(outputs)))
    return sorted(found, key=lambda each: not each[2])

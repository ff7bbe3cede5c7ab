"""The host's numbers of the rules: what is compiled out changes nothing, and each request has its own causal flag."""

from collections.abc import Iterator

import msgspec
import z3
from attn_fuzz.cases.case import Case
from attn_proofs import inputs
from attn_proofs.counterexamples import paged
from attn_proofs.extract import Extraction
from attn_proofs.inputs import pointer
from attn_proofs.sources import Sources
from attn_proofs.specification import INT32_MAX
from attn_proofs.theorem import Claim, Model, Theorem
from attn_proofs.values import Record, as_tensor, integers, memory, symbol, truth

RULES = "attn_optimized.launch.rules"
KERNEL = "attn_optimized.kernels.attention.attention_kernel"
LEFT, RIGHT, SINKS = integers("window_left window_right sink_tokens")


def _off(sources: Sources) -> Iterator[Claim]:
    """Where sink tokens are compiled out, a window without edges shows them anyway."""
    extraction = Extraction(sources)
    layer = Record("Layer", {
        "window": (symbol("window_left"), symbol("window_right")), "sink_tokens": symbol("sink_tokens"), "chunked_local": None,
    })  # fmt: skip
    batch = Record("Batch", {"bidirectional_ranges": None, "qq_bias": None})
    other_masks = truth(extraction.call(f"{RULES}.has_other_masks", layer, batch))
    p, j = integers("p j")
    in_window = z3.And(z3.Or(LEFT < 0, p - j <= LEFT), z3.Or(RIGHT < 0, j - p <= RIGHT))
    given = (LEFT >= -1, RIGHT >= -1, SINKS >= 0, j >= 0, z3.Not(other_masks), *extraction.assumptions)
    small = (LEFT >= 0, LEFT <= 9, RIGHT == -1, SINKS >= 1, SINKS <= 5)
    yield Claim("sink tokens that are compiled out", given, z3.Or(in_window, j < SINKS) == in_window, small, extraction.lines)


def _distances(sources: Sources) -> Iterator[Claim]:
    """An edge of the window as a distance hides what the edge hides; -1 hides no key of an int32 sequence."""
    extraction = Extraction(sources)
    edge, apart = integers("edge apart")
    found = as_tensor(extraction.call("attn_optimized.launch.units.distance", symbol("edge"))).term
    given = (edge >= -1, edge <= INT32_MAX, apart <= INT32_MAX)
    yield Claim("a distance", given, (apart <= found) == z3.Or(edge < 0, apart <= edge), (), extraction.lines)


def _causal(sources: Sources) -> Iterator[Claim]:
    """With a flag for each request, the kernel reads the flag of the tile's own request."""
    extraction = Extraction(
        sources,
        grid=((z3.Int("tile"), z3.Int("tiles")), (z3.Int("heads"), z3.Int("groups")), (z3.Int("split"), z3.Int("splits"))),
    )
    kernel = sources.function(KERNEL).node
    arguments = {}
    for parameter in kernel.args.args:  # type: ignore[union-attr]
        name = parameter.arg
        is_flag = name.startswith("has_") or name in ("writes_output", "heads_first", "one_tile_per_request")
        flags = {"has_causal": 1, "one_tile_per_request": 1}
        arguments[name] = pointer(name) if name.endswith("_ptr") else flags.get(name, 0) if is_flag else symbol(name, "int32")
    arguments |= {
        "KIND": inputs.kind(),
        "scale": symbol("scale", "float"),
        "logits_soft_cap": symbol("logits_soft_cap", "float"),
    }
    extraction.call(KERNEL, **arguments)
    ahead = extraction.local("attention_kernel", "max_ahead").value.term
    request = extraction.local("attention_kernel", "request").value.term
    flag = memory("causal_ptr", "bool")
    goal = ahead == z3.If(flag(request), 0, z3.Int("max_ahead"))
    yield Claim("the flag of a request", tuple(extraction.assumptions), goal, (), extraction.lines)


def _sinks_case(model: Model) -> Case:
    left, sinks = model.within("window_left", 0, 9), model.within("sink_tokens", 1, 5)
    return paged([(20, 90)], window=(left, -1), sink_tokens=sinks, scale=0.25)


def _window_case(model: Model) -> Case:
    return paged([(20, 90)], window=(model("edge"), -1), scale=0.25)


def _flags_case(model: Model) -> Case:
    """The request of the counterexample has another flag than those before it."""
    case = paged([(20, 90), *[(9, 40)] * model.within("request", 1, 4)], per_request_causal=True, scale=0.25)
    *before, last = case.requests
    other = msgspec.structs.replace(last, causal=not last.causal)
    return msgspec.structs.replace(case, requests=(*before, other))


THEOREMS = (
    Theorem(
        "rules.sinks-off", "Where the host compiles sink tokens out, the window shows them anyway.", _off,
        f"{RULES}.has_sink_tokens", "max(layer.window) >= 0", "min(layer.window) >= 0", _sinks_case,
    ),
    Theorem(
        "rules.distance", "The distance that the host passes for an edge hides the keys that the edge hides; -1 hides none.",
            _distances,
        "attn_optimized.launch.units.distance", "edge < 0", "edge <= 0", _window_case,
    ),
    Theorem(
        "rules.causal", "With a causal flag for each request, a program goes by the flag of its own request.", _causal,
        KERNEL, "tl.load(causal_ptr + request)", "tl.load(causal_ptr)", _flags_case,
    ),
)  # fmt: skip

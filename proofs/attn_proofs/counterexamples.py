"""Counterexamples as cases: the solver's numbers become a batch, on which the mutated kernel is run by the interpreter."""

import tempfile
from pathlib import Path
from typing import Any

from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.patches.mutant import Mutant
from attn_fuzz.run.processes.executor import Executor
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Verdict
from attn_proofs.theorem import Model
from attn_proofs.values import memory

BLOCK_SIZE = 16
SECONDS = 60.0


def run(case: Case, mutant: Mutant | None) -> Verdict:
    """The verdict on a case of the source as it ships, or with a mutant's change."""
    sanitize = registry.load(case.target).can_be_sanitized("cpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        Executor(case.target, "cpu", SECONDS, Path(folder, "in-flight.json"), mutant=mutant, sanitize=sanitize) as executor,
    ):
        return executor.run(case)


def paged(requests: list[tuple[int, int]], *, causal: bool = True, ranges: Any = (), **fields: Any) -> Case:
    """A case over a paged cache, of (query_len, seq_len) for each request. Each request has blocks of its own. `cache` has
    further fields of the cache."""
    block_size = fields.pop("block_size", BLOCK_SIZE)
    layout = fields.pop("layout", Layout.BLOCKS_FIRST_NHD)
    padding = fields.pop("padding", 0)
    made, used = [], 0
    for query_len, seq_len in requests:
        count = -(-(seq_len // fields.get("key_unit", 1)) // block_size)
        # later blocks first: a kernel that takes a key's number for its block reads another one
        blocks = tuple(range(used + count - 1, used - 1, -1))
        made.append(Request(query_len, seq_len, blocks, causal, tuple(ranges)))
        used += count
    cache = Cache(layout=layout, block_size=block_size, num_blocks=used + 1, padding=padding, **fields.pop("cache", {}))
    values = fields.pop("values", Values("random"))
    return Case(**{"target": "triton", "requests": tuple(made), "cache": cache, "values": values} | fields)


def dense(lengths: list[int], **fields: Any) -> Case:
    """A case of an encoder, whose keys and values lie in rows beside its queries."""
    requests = tuple(Request(length, length) for length in lengths)
    made = {
        "target": "triton",
        "requests": requests,
        "cache": None,
        "values": Values("random"),
        "attn_type": AttentionType.ENCODER,
    }
    return Case(**made | fields)


def of_scene(model: Model) -> Case:
    """The case of a counterexample in a scene of `attend_tile`: one request, whose queries are one tile."""
    fields: dict[str, Any] = {"window": (model("window_left"), model("window_right")), "scale": 0.25}
    ranges = []
    if model("num_ranges") > 0:
        held = memory("bidirectional_ranges_ptr")
        ranges = [(model(held(2 * k)), model(held(2 * k + 1))) for k in range(model("num_ranges"))]
        fields["ranges_clamped"] = model.holds("ranges_clamped")
    if model("sink_tokens") > 0:
        fields["sink_tokens"] = model("sink_tokens")
    if model("chunked_local") > 0:
        fields["chunked_local"] = model("chunked_local")
    fields["lse"] = True  # a key that is counted twice changes no output where all keys are
    return paged([(model("query_len"), model("seq_len"))], causal=model.holds("causal"), ranges=ranges, **fields)

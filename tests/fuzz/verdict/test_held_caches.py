"""A recording holds caches of functions and ops to its shadow: right steps have no fault, an engine's mistakes are named."""

import attn_fuzz
import attn_reference
import pytest
import torch
from attn_contract import Batch, KVCacheView, Layer, Layout
from attn_fuzz.shadow import FaultKind

BLOCK, WIDTH = 16, 32


class Engine:
    """Two layers and their caches, and requests in rows. A step writes each layer's keys, and attends."""

    def __init__(self, recording, **options) -> None:
        self.recording = recording
        self.layer = Layer(**{"num_heads": 2, "num_kv_heads": 1, "head_size": WIDTH, "scale": 0.2, **options})
        sizes = {"num_blocks": 20, "block_size": BLOCK, "num_kv_heads": 1, "head_size": WIDTH}
        dtype = self.layer.kv_cache_dtype or torch.float32
        view = KVCacheView.dense(self.layer.layout, **sizes, itemsize=dtype.itemsize, head_size_v=self.layer.head_size_v)
        self.caches = [view.tensor(torch.zeros(view.end, dtype=dtype)) for _ in range(2)]
        self.lengths: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}

    def name_rows(self, requests: list[str]) -> None:
        self.recording.requests = requests

    def step(self, counts: dict[str, int], *, slots=None, lengths=None, tables=None) -> None:
        context = {request: self.lengths.get(request, 0) for request in counts}
        self.lengths |= {request: context[request] + count for request, count in counts.items()}
        table = [(tables or {}).get(request, self.tables[request]) for request in counts]
        own = [
            self.tables[request][p // BLOCK] * BLOCK + p % BLOCK
            for request, count in counts.items()
            for p in range(context[request], context[request] + count)
        ]
        starts = [0, *torch.tensor([*counts.values()]).cumsum(0).tolist()]
        batch = Batch(
            query_start_loc=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor(lengths or [self.lengths[request] for request in counts], dtype=torch.int32),
            max_query_len=max(counts.values()),
            max_seq_len=100,
            num_actual_tokens=len(own),
            causal=True,
            block_table=torch.tensor([row + [0] * (4 - len(row)) for row in table], dtype=torch.int32),
        )
        self.name_rows([*counts])
        for cache in self.caches:
            mapping = torch.tensor(own if slots is None else slots)
            if self.layer.layout.has_latent_value:
                size = self.layer.head_size_v
                rows = torch.randn(len(own), WIDTH)
                attn_reference.write_latent_cache(rows[:, :size], rows[:, size:], cache, self.layer, mapping)
            else:
                keys, values = torch.randn(2, len(own), 1, WIDTH)
                attn_reference.write_kv_cache(keys, values, cache, self.layer, mapping)
            attn_reference.paged_attention(torch.randn(len(own), 2, WIDTH), cache, self.layer, batch)


@pytest.fixture
def engine(tmp_path):
    with attn_fuzz.recording(tmp_path, most=1, shadow=attn_fuzz.Shadow()) as recording:
        yield started(recording, layout=Layout.BLOCKS_FIRST_NHD)


def started(recording, **options) -> Engine:
    engine = Engine(recording, **options)
    engine.tables = {"a": [3, 1, 7], "b": [2, 5, 6]}
    engine.step({"a": 20, "b": 17})
    engine.step({"a": 1, "b": 9})
    return engine


SCALED = {"kv_cache_dtype": torch.float8_e4m3fn, "k_scale": torch.tensor([0.5]), "v_scale": torch.tensor([2.0])}


@pytest.mark.parametrize(
    "options",
    [
        {"layout": Layout.KV_FIRST_HND},
        {"layout": Layout.X_PACKED, "window": (5, 0)},
        {"layout": Layout.SHUFFLED, **SCALED},
        {"layout": Layout.CONTENT_PACKED_SCALED, "kv_cache_dtype": torch.int8},
        {"layout": Layout.LATENT, "head_size_v": 24},
    ],
    ids=lambda options: str(options["layout"]),
)
def test_right_steps_have_no_fault(options, tmp_path):
    """Prompts, chunks, decodes, a prefix in shared blocks, a request that ends, a block that is used again, rejected drafts."""
    shadow = attn_fuzz.Shadow()
    with attn_fuzz.recording(tmp_path, most=1, shadow=shadow) as recording:
        engine = started(recording, **options)
        engine.tables["c"], engine.lengths["c"] = [3, 9], 16
        engine.step({"b": 1, "c": 3})
        shadow.free("a")
        engine.tables["d"] = [1, 7]
        engine.step({"d": 18, "c": 4})
        engine.lengths["c"] -= 2
        shadow.roll_back("c", engine.lengths["c"])
        engine.step({"c": 1, "d": 1})
    assert (shadow.wrong, shadow.not_seen, shadow.reads) == (0, {}, 20), shadow.faults


def writes_elsewhere(engine):
    engine.step({"a": 1, "b": 1}, slots=[18 * BLOCK, 5 * BLOCK + 10])


def other_table(engine):
    engine.step({"a": 1, "b": 1}, tables={"a": engine.tables["b"]})


def stale_lengths(engine):
    engine.step({"a": 2, "b": 1}, lengths=[22, 27])


def copied_over(engine):
    engine.caches[0][1] = engine.caches[0][2]
    engine.step({"a": 1, "b": 1})


def freed_too_early(engine):
    engine.tables["c"] = [3]
    engine.step({"c": 4})
    engine.step({"a": 1})


@pytest.mark.parametrize(
    ("mistake", "kind", "request_", "position"),
    [
        (writes_elsewhere, FaultKind.WRONG_SLOT, "a", 21),
        (other_table, FaultKind.OTHER_REQUEST, "a", 0),
        (stale_lengths, FaultKind.STALE_BLOCK, "a", 20),  # no scheduler tells another length than the step's
        (copied_over, FaultKind.OTHER_REQUEST, "a", 16),
        (freed_too_early, FaultKind.OTHER_REQUEST, "a", 0),
    ],
)
def test_a_mistake_of_an_engine_is_named(mistake, kind, request_, position, engine):
    mistake(engine)
    first = engine.recording.shadow.faults[0]
    assert (first.kind, first.request, first.position, first.layer) == (kind, request_, position, "cache 0"), str(first)


def test_steps_that_cannot_be_held_are_counted(engine):
    """A step without names, and a request whose keys were written before the recording."""
    engine.recording.requests = ()
    engine.tables["late"], engine.lengths["late"] = [12], 5
    engine.step({"late": 1})
    assert engine.recording.shadow.not_seen == {"a request whose first keys were written before anybody watched": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "name_rows", lambda self, rows: None)
        engine.recording.requests = ()
        engine.step({"late": 1})
    assert engine.recording.shadow.not_seen["a step whose requests were not set"] == 2

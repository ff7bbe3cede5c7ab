"""Steps as vLLM's model runner makes them, without vLLM: right blocks have no fault, and mistakes of a scheduler are named."""

import functools
from types import SimpleNamespace

import pytest
import torch
from attn_contract import Layer, Layout
from attn_fuzz.shadow import FaultKind, reader_of
from attn_vllm_recording.blocks import Blocks

BLOCK = 4
LAYER = Layer(num_heads=1, num_kv_heads=1, head_size=8, scale=1.0, layout=Layout.BLOCKS_FIRST_NHD)


class Engine:
    """Requests in rows, with blocks of 4 slots in two groups of layers, one of them with a window of 6 keys."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.blocks.rows = lambda: list(self.lengths)
        self.lengths: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.free = list(range(1, 40))
        self.caches = {name: torch.zeros(40, 2, BLOCK, 1, 8) for name in ("layer.0", "layer.1")}

    def step(
        self, counts: dict[str, int], *, new=(), finished=(), resumed=(), drafts=None, ahead=None, lost=(), **mistakes
    ) -> None:
        """Compute `counts` tokens of requests.

        Args:
            drafts: the number of draft tokens among a request's.
            ahead: for a scheduler that runs ahead, how many rejected drafts it takes for accepted; None: it does not.
            lost: numbers of new rows that are not stored.
            mistakes: changes of what attention is given.
        """
        for request in finished:
            table = self.tables.pop(request)
            self.free = [one for one in table if not any(one in other for other in self.tables.values())] + self.free
            del self.lengths[request]
        for one in new:
            self.lengths[one.req_id], self.tables[one.req_id] = one.num_computed_tokens, list(one.block_ids)
        cached = [request for request in counts if request not in [one.req_id for one in new]]
        self.blocks.begin(
            SimpleNamespace(
                finished_req_ids=set(finished),
                scheduled_spec_decode_tokens={request: [0] * count for request, count in (drafts or {}).items()},
                scheduled_new_reqs=list(new),
                scheduled_cached_reqs=SimpleNamespace(
                    req_ids=cached,
                    resumed_req_ids=set(resumed),
                    num_computed_tokens=[self.lengths[one] + (ahead or {}).get(one, 0) for one in cached],
                ),
            ),
            is_async=ahead is not None,
        )
        starts, slots = [0], []
        for request in self.lengths:
            count, context = counts.get(request, 0), self.lengths[request]
            table = self.tables[request]
            while len(table) * BLOCK < context + count:
                table.append(self.free.pop(0))
            slots += [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(context, context + count)]
            starts.append(starts[-1] + count)
            self.lengths[request] += count
        for name, window in (("layer.0", None), ("layer.1", 6)):
            metadata = self.metadata(starts, slots, window, **mistakes)
            for number, slot in enumerate(metadata.slot_mapping.tolist()[:-1]):
                if number not in lost:
                    self.caches[name][slot // BLOCK, :, slot % BLOCK] = torch.randn(2, 1, 8)
            reader = functools.partial(reader_of, self.caches[name], LAYER)
            for _ in range(2):  # layers of a group have the same metadata
                self.blocks.hold(name, metadata, BLOCK, window=window, reader=reader)

    def metadata(self, starts, slots, window, *, tables=None, slot_mapping=None, seq_lens=None) -> SimpleNamespace:
        rows = [list((tables or {}).get(request, table)) for request, table in self.tables.items()]
        if window is not None:  # blocks that have slid out are block 0
            rows = [[0 if (place + 1) * BLOCK <= n - window - 8 else block for place, block in enumerate(row)]
                    for row, n in zip(rows, self.lengths.values(), strict=True)]  # fmt: skip
        width = max(map(len, rows))
        return SimpleNamespace(
            query_start_loc=torch.tensor([*starts, starts[-1]]).int(),  # a row of padding
            seq_lens=torch.tensor([*(seq_lens or self.lengths.values()), 0]).int(),
            block_table=torch.tensor([*(row + [0] * (width - len(row)) for row in rows), [0] * width]).int(),
            slot_mapping=torch.tensor([*(slot_mapping or slots), -1]),
        )


def new(request, tokens, *, computed=0, blocks=(), adapter=None):
    lora = None if adapter is None else SimpleNamespace(lora_int_id=adapter)
    return SimpleNamespace(
        req_id=request,
        prompt_token_ids=tokens,
        num_computed_tokens=computed,
        block_ids=blocks,
        lora_request=lora,
        mm_features=[],
    )


def started() -> Engine:
    engine = Engine()
    engine.step({"a": 7, "b": 5}, new=[new("a", [*range(7)]), new("b", [*range(50, 60)])])
    engine.step({"a": 1, "b": 5})
    assert engine.blocks.shadow.faults == []
    return engine


def test_right_blocks_have_no_fault():
    """Chunks, decodes beyond a window, a shared prefix, a request that is preempted, one that ends, and rejected drafts."""
    engine = started()
    for _ in range(12):
        engine.step({"a": 1, "b": 2})
    engine.step({"a": 1, "c": 3}, new=[new("c", [*range(4), 30, 31, 32], computed=4, blocks=engine.tables["a"][:1])])
    engine.lengths["b"] -= 2
    engine.step({"b": 3, "c": 1})
    engine.tables["b"], engine.lengths["b"] = [], 0
    engine.step({"b": 6, "c": 1}, resumed=["b"])
    engine.step({"b": 6, "d": 2}, new=[new("d", [1, 2])], finished=["a"])
    engine.step({"b": 1, "c": 1, "d": 1})
    shadow = engine.blocks.shadow
    assert (shadow.wrong, shadow.not_seen) == (0, {}), shadow.faults
    assert shadow.reads > 70


def test_a_warm_up_is_not_held():
    engine = Engine()
    engine.blocks.rows = tuple
    engine.lengths, engine.tables = {"a": 0}, {"a": []}
    engine.step({"a": 4})
    assert engine.blocks.shadow.reads == 0


@pytest.mark.parametrize("ahead", [None, {"a": 2}], ids=["known", "ahead"])
def test_rejected_drafts_have_no_fault(ahead):
    engine = started()
    engine.step({"a": 4, "b": 1}, drafts={"a": 3})
    engine.lengths["a"] -= 2
    engine.step({"a": 4, "b": 1}, drafts={"a": 3}, ahead=ahead)
    engine.step({"a": 1, "b": 1}, ahead=ahead and {})
    assert engine.blocks.shadow.wrong == 0, engine.blocks.shadow.faults


def test_mla_has_decodes_and_prefills_apart():
    """Its metadata has no field of the lengths of prefills, and block tables of both."""
    engine = started()
    engine.lengths["c"], engine.tables["c"] = 0, [38, 39]
    engine.blocks.begin(
        SimpleNamespace(
            finished_req_ids=set(),
            scheduled_spec_decode_tokens={},
            scheduled_new_reqs=[new("c", [1, 2, 3, 4, 5])],
            scheduled_cached_reqs=SimpleNamespace(req_ids=["a"], resumed_req_ids=set(), num_computed_tokens=[8]),
        ),
        is_async=False,
    )
    engine.blocks.rows = lambda: ["a", "c"]
    table = engine.tables["a"]
    metadata = SimpleNamespace(
        query_start_loc=torch.tensor([0, 1, 6]),
        slot_mapping=torch.tensor([37 * BLOCK, *range(38 * BLOCK, 38 * BLOCK + 5)]),
        num_decodes=1,
        decode=SimpleNamespace(seq_lens=torch.tensor([9]), block_table=torch.tensor([[*table, 37]])),
        prefill=SimpleNamespace(
            query_start_loc=torch.tensor([0, 5]), chunked_context=None, block_table=torch.tensor([[38, 37, 0]])
        ),
    )
    engine.blocks.hold("layer.0", metadata, BLOCK)
    assert [(one.kind, one.request, one.position) for one in engine.blocks.shadow.faults] == [(FaultKind.OTHER_REQUEST, "c", 4)]


def wrong_lengths_of_drafts(engine):
    engine.step({"a": 4, "b": 1}, drafts={"a": 3})
    engine.lengths["a"] -= 2
    engine.step({"a": 1, "b": 1}, seq_lens=[13, 12])


def too_many_drafts_forgotten(engine):
    engine.step({"a": 3, "b": 1}, drafts={"a": 2})
    engine.lengths["a"] -= 3
    engine.step({"a": 2, "b": 1}, ahead={"a": 3})


def bytes_of_another_writer(engine):
    engine.caches["layer.0"][engine.tables["b"][1], 0, 2] += 1
    engine.step({"a": 1, "b": 1})


def a_row_is_not_stored(engine):
    """The engine's copy of a block goes to another block: the row that lies there is another request's."""
    cache = engine.caches["layer.0"]
    cache[engine.tables["a"][1]] = cache[engine.tables["b"][0]]
    engine.step({"a": 1, "b": 1})


def shares_by_mistake(engine):
    engine.tables["b"][0] = engine.tables["a"][0]
    engine.step({"a": 1, "b": 1})


def other_row(engine):
    engine.step({"a": 1, "b": 1}, tables={"a": engine.tables["b"]})


def stale_lengths(engine):
    engine.step({"a": 2, "b": 1}, seq_lens=[9, 11])


def writes_elsewhere(engine):
    engine.step({"a": 1}, slot_mapping=[39 * BLOCK])


def another_adapter(engine):
    shared = engine.tables["a"][:1]
    engine.step({"c": 3}, new=[new("c", [*range(4), 9, 9, 9], computed=4, blocks=shared, adapter=1)])


def frees_too_early(engine):
    engine.free = [engine.tables["a"][0], *engine.free]
    engine.step({"c": 4}, new=[new("c", [1, 2, 3, 4])])
    engine.step({"a": 1})


@pytest.mark.parametrize(
    ("mistake", "kind", "request_", "position"),
    [
        (shares_by_mistake, FaultKind.OTHER_REQUEST, "b", 0),
        (other_row, FaultKind.OTHER_REQUEST, "a", 0),
        (stale_lengths, FaultKind.WRONG_LENGTH, "a", 9),
        (writes_elsewhere, FaultKind.WRONG_SLOT, "a", 8),
        (another_adapter, FaultKind.OTHER_REQUEST, "c", 0),
        (frees_too_early, FaultKind.OTHER_REQUEST, "a", 0),
        (wrong_lengths_of_drafts, FaultKind.WRONG_LENGTH, "a", 11),
        (too_many_drafts_forgotten, FaultKind.WRONG_LENGTH, "a", 10),
        (bytes_of_another_writer, FaultKind.ALTERED, "b", 6),
        (a_row_is_not_stored, FaultKind.OTHER_REQUEST, "a", 4),
    ],
)
def test_a_mistake_of_a_scheduler_is_named(mistake, kind, request_, position):
    engine = started()
    mistake(engine)
    first = engine.blocks.shadow.faults[0]
    assert (first.kind, first.request, first.position, first.layer) == (kind, request_, position, "layer.0"), str(first)

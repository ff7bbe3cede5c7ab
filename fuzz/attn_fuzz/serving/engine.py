"""A small serving engine. It shows backends what happens between steps: blocks that come and go, drafts, forks, preemption.

As in vLLM, layers of one attention type, block size and window form a group with block tables of its own, all groups take
blocks from one pool, and the allocation holds one layer of each group. A group with a window gives blocks back whose keys it
does not see any more: in its tables the null block, which nobody writes, stands for them. After every layer of every step the
output is compared with `serving.uncached`.
"""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, KVCacheView
from attn_fuzz.cases.poison import DTYPES, canary
from attn_fuzz.serving.models import LayerGroup, ModelLayer, ServedModel
from attn_fuzz.serving.uncached import MAX_MODEL_LEN, VOCABULARY, Attended, UncachedReference
from attn_optimized.backends import BACKENDS, AttentionImpl, CommonAttentionMetadata

CROSS = AttentionType.ENCODER_DECODER
NO_BLOCK, NULL_BLOCK = -1, 0


class Work(NamedTuple):
    """The work of a step for one request: a chunk of its tokens. Drafts follow if the chunk ends with the last token."""

    num_tokens: int
    num_drafts: int = 0
    num_accepted: int = 0


@dataclass(kw_only=True)
class ServedRequest:
    """A request that the engine serves. The caches hold its first `num_computed_tokens` tokens, in the blocks of `blocks`."""

    id: int
    tokens: list[int]
    encoder_tokens: list[int]
    num_computed_tokens: int = 0
    encoder_is_written: bool = False
    blocks: dict[LayerGroup, list[int]] = field(default_factory=lambda: defaultdict(list))

    def sequence(self, attn_type: AttentionType) -> list[int]:
        """The tokens whose keys layers of a type see: the request's own tokens, or the encoder's tokens."""
        return self.encoder_tokens if attn_type is CROSS else self.tokens


class Scheduled(NamedTuple):
    """A request in a step's batch."""

    request: ServedRequest
    query_len: int
    num_rejected: int

    @property
    def seq_len(self) -> int:
        return self.request.num_computed_tokens + self.query_len


class BlockPool:
    """Ids of blocks, and how many block tables hold each block. The block that was freed last is allocated first."""

    def __init__(self, num_blocks: int) -> None:
        self.ref_counts = [0] * num_blocks
        self.free = list(reversed(range(NULL_BLOCK + 1, num_blocks)))

    def allocate(self) -> int:
        block = self.free.pop()
        self.ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        self.ref_counts[block] += 1

    def release(self, block: int) -> bool:
        """Give up one reference to a block, and return whether the block is free now."""
        self.ref_counts[block] -= 1
        if self.ref_counts[block]:
            return False
        self.free.append(block)
        return True


class ServingEngine:
    """Requests, their blocks, and a model whose every layer is compared with the reference in every step.

    Args:
        model: the model to serve.
        num_blocks: size of the pool. A request that gets no block is preempted.
        device: of the caches.
    """

    def __init__(self, model: ServedModel, *, num_blocks: int, device: str = "cpu") -> None:
        self.model = model
        self.device = device
        self.pool = BlockPool(num_blocks)
        self.requests: dict[int, ServedRequest] = {}
        self.reference = UncachedReference(model, device)
        self._new_id = itertools.count()
        self._rng = random.Random(0)
        self._generator = torch.Generator().manual_seed(1)
        self._caches: dict[str, torch.Tensor] = {}
        self._impls: dict[str, AttentionImpl[Any]] = {}
        self.groups = tuple(dict.fromkeys(part.group for part in model.layers))
        self._pages = self._allocate(num_blocks)

    @property
    def has_cross_attention(self) -> bool:
        return any(part.layer.attn_type is CROSS for part in self.model.layers)

    def add_request(self, prompt_len: int, encoder_len: int) -> int:
        """Add a request with random tokens. encoder_len is used only for a model with cross-attention."""
        encoder_tokens = self._tokens(encoder_len if self.has_cross_attention else 0)
        return self._add(ServedRequest(id=next(self._new_id), tokens=self._tokens(prompt_len), encoder_tokens=encoder_tokens))

    def step(self, work: Mapping[int, Work]) -> None:
        """Run a batch of requests through all layers, in the given order. Then reject drafts and sample tokens.

        Raises:
            WrongOutputError: a layer's output is wrong.
        """
        batch = [scheduled for id, chunk in work.items() if (scheduled := self._schedule(id, chunk))]
        if not batch:
            return
        metadata = {group: self.metadata(group, batch) for group in self.groups}
        for part in self.model.layers:
            self._run(part, batch, metadata[part.group])
        for request, query_len, num_rejected in batch:
            request.encoder_is_written = True
            request.num_computed_tokens += query_len
            self.reject(request, num_rejected)
            if request.num_computed_tokens == len(request.tokens):
                request.tokens += self._tokens(1)
            self._slide(request)
        self.check_blocks()

    def reject(self, request: ServedRequest, num_rejected: int) -> None:
        """Take back the last drafts. Their keys stay in the slots until other tokens are written there."""
        request.num_computed_tokens -= num_rejected
        del request.tokens[len(request.tokens) - num_rejected :]

    def fork(self, id: int, num_shared_tokens: int, num_new_tokens: int) -> int:
        """Add a request that begins with another request's computed tokens, in the same blocks: a beam, or a common prefix."""
        parent = self.requests[id]
        num_shared = min(num_shared_tokens, parent.num_computed_tokens)
        if any(group.unseen_blocks(num_shared) < blocks.count(NULL_BLOCK) for group, blocks in parent.blocks.items()):
            num_shared = 0  # keys that its next query sees are gone
        shared: dict[LayerGroup, list[int]] = defaultdict(list)
        for group, blocks in parent.blocks.items():
            shared[group] = blocks[: len(blocks) if group.attn_type is CROSS else group.num_blocks(num_shared)]
        for block in itertools.chain(*shared.values()):
            self._share(block)
        child = ServedRequest(
            id=next(self._new_id),
            tokens=parent.tokens[:num_shared] + self._tokens(num_new_tokens),
            encoder_tokens=parent.encoder_tokens,
            num_computed_tokens=num_shared,
            encoder_is_written=parent.encoder_is_written,
            blocks=shared,
        )
        return self._add(child)

    def preempt(self, id: int) -> None:
        """Take all blocks from a request. Its next steps compute its tokens again."""
        request = self.requests[id]
        for blocks in request.blocks.values():
            self._release(blocks)
            blocks.clear()
        request.num_computed_tokens, request.encoder_is_written = 0, False
        self.check_blocks()

    def finish(self, id: int) -> None:
        self.preempt(id)
        del self.requests[id]

    def check_blocks(self) -> None:
        """Check that the pool counts the blocks of all requests, and that no block serves two groups. Every action ends so.

        Raises:
            AssertionError: the count of a block is wrong, or both groups hold a block.
        """
        held = {group: Counter(block for r in self.requests.values() for block in r.blocks[group]) for group in self.groups}
        counts = sum(held.values(), Counter())
        del counts[NULL_BLOCK]
        num_blocks = len(self.pool.ref_counts)
        assert self.pool.ref_counts == [counts[block] for block in range(num_blocks)]
        assert sorted(self.pool.free) == [block for block in range(1, num_blocks) if not counts[block]]
        for one, other in itertools.combinations(held, 2):
            shared = held[one].keys() & held[other].keys() - {NULL_BLOCK}
            assert not shared, f"blocks {shared} hold tokens of {one} and of {other}"

    def _allocate(self, num_blocks: int) -> torch.Tensor:
        """Make the raw allocation, the view of each layer and the backends' layers. Return the pages [NB, 2, bytes]."""
        dtype, views = DTYPES[self.model.dtype], {}
        for part in self.model.layers:
            layer = part.layer
            assert layer.layout is not None, f"{part.name} has no cache"
            views[part.name] = KVCacheView.dense(
                layer.layout,
                num_blocks=num_blocks,
                block_size=part.block_size,
                num_kv_heads=layer.num_kv_heads,
                head_size=layer.head_size,
                itemsize=(layer.kv_cache_dtype or dtype).itemsize,
            )
            impl = BACKENDS[part.backend].impl(
                layer,
                dtype=dtype,
                block_size=part.block_size,
                allocation_layout=part.allocation_layout,
                aiter=self.model.aiter,
            )
            assert isinstance(impl, AttentionImpl), f"{part.name}: {part.backend} is a backend of latent attention"
            self._impls[part.name] = impl
        first, *others = self.model.layers
        num_bytes = {view.end * view.itemsize for view in views.values()}
        assert len(num_bytes) == 1, f"the views of one allocation end at {num_bytes} bytes"
        raw = torch.full((views[first.name].end,), self.model.free_slots, dtype=dtype, device=self.device)
        for part in (first, *others):
            self._caches[part.name] = views[part.name].tensor(raw.view(part.layer.kv_cache_dtype or dtype))
        is_planes = (first.allocation_layout or views[first.name].layout).dims[0] == "kv"
        return raw.view(2, num_blocks, -1).transpose(0, 1) if is_planes else raw.view(num_blocks, 2, -1)

    def metadata(self, group: LayerGroup, batch: Sequence[Scheduled]) -> CommonAttentionMetadata:
        """The metadata of a step, which all layers of a group share."""
        query_start_loc = self._int32([0, *itertools.accumulate(scheduled.query_len for scheduled in batch)])
        tables = [scheduled.request.blocks[group] for scheduled in batch]
        width, size = max(map(len, tables)) + 1, group.block_size
        written = [self._written(scheduled, group.attn_type) for scheduled in batch]
        slots = [
            table[position // size] * size + position % size
            for table, positions in zip(tables, written, strict=True)
            for position in positions
        ]
        encoder_lens = [len(scheduled.request.encoder_tokens) for scheduled in batch]
        seq_lens = self._int32([scheduled.seq_len for scheduled in batch])
        return CommonAttentionMetadata(
            query_start_loc=query_start_loc,
            query_start_loc_cpu=query_start_loc.cpu(),
            seq_lens=seq_lens,
            seq_lens_cpu=seq_lens.cpu(),
            num_actual_tokens=sum(scheduled.query_len for scheduled in batch),
            max_query_len=max(scheduled.query_len for scheduled in batch),
            max_seq_len=max(scheduled.seq_len for scheduled in batch),
            block_table_tensor=self._int32([table + [NO_BLOCK] * (width - len(table)) for table in tables]),
            slot_mapping=torch.tensor(slots, dtype=torch.int64, device=self.device),
            causal=True,
            encoder_seq_lens=self._int32(encoder_lens),
            max_encoder_seq_len=max(encoder_lens),
        )

    def _schedule(self, id: int, work: Work) -> Scheduled | None:
        """Allocate the blocks that a request's chunk writes to. If there are too few, preempt the request and return None."""
        request = self.requests[id]
        waiting = len(request.tokens) - request.num_computed_tokens
        num_tokens = min(work.num_tokens, waiting)
        num_drafts = work.num_drafts if num_tokens == waiting else 0
        if not self._reserve(request, request.num_computed_tokens + num_tokens + num_drafts):
            self.preempt(id)
            return None
        request.tokens += self._tokens(num_drafts)
        return Scheduled(request, num_tokens + num_drafts, max(0, num_drafts - work.num_accepted))

    def _reserve(self, request: ServedRequest, seq_len: int) -> bool:
        """Allocate the blocks of a step, and copy shared blocks that the step writes to. Return whether there are enough."""
        shared: dict[LayerGroup, range | list[int]] = {}
        new: dict[LayerGroup, int] = {}
        for group in self.groups:
            own = request.blocks[group]
            if group.attn_type is CROSS:
                shared[group] = []
                new[group] = 0 if request.encoder_is_written else group.num_blocks(len(request.encoder_tokens))
            else:
                end = group.num_blocks(seq_len)
                written = range(request.num_computed_tokens // group.block_size, min(end, len(own)))
                shared[group] = [i for i in written if self.pool.ref_counts[own[i]] > 1]
                new[group] = max(0, end - len(own))
        if sum(map(len, shared.values())) + sum(new.values()) > len(self.pool.free) or seq_len > MAX_MODEL_LEN:
            return False
        for group in self.groups:
            own = request.blocks[group]
            for i in shared[group]:
                copy = self.pool.allocate()
                self._pages[copy] = self._pages[own[i]]
                self.pool.release(own[i])
                own[i] = copy
            own += [self.pool.allocate() for _ in range(new[group])]
        return True

    def _slide(self, request: ServedRequest) -> None:
        """Give back the blocks whose keys no later query of a request sees."""
        for group, blocks in request.blocks.items():
            unseen = group.unseen_blocks(request.num_computed_tokens)
            self._release(blocks[:unseen])
            blocks[:unseen] = [NULL_BLOCK] * unseen

    def _run(self, part: ModelLayer, batch: Sequence[Scheduled], common: CommonAttentionMetadata) -> None:
        """Run one layer as the backend does, first the cache update and then attention, and check the output."""
        attn_type, impl, kv_cache = part.layer.attn_type, self._impls[part.name], self._caches[part.name]
        shape = (common.num_actual_tokens, part.layer.num_heads, part.layer.head_size)
        query = torch.randn(shape, generator=self._generator).to(device=self.device, dtype=DTYPES[self.model.dtype])
        rotated = query.clone()
        written = [(scheduled.request, self._written(scheduled, attn_type)) for scheduled in batch]
        tokens = [request.sequence(attn_type)[position] for request, positions in written for position in positions]
        positions = [position for _, positions in written for position in positions]
        key, value = self.reference.keys_and_values(part, tokens, positions)
        slot_mapping = common.slot_mapping
        assert slot_mapping is not None
        if part.rope:
            at = torch.tensor(positions, device=self.device)
            impl.do_rope_and_kv_cache_update(
                rotated, key, value, at, self.reference.cos_sin_cache, kv_cache, slot_mapping, is_neox=True
            )
        else:
            if not tokens:  # cross-attention writes only in the first step
                key = value = None
            impl.do_kv_cache_update(key, value, kv_cache, slot_mapping)
        output = canary(shape, query.dtype, self.device)
        metadata = impl.backend.builder(attn_type).build(common)
        impl.forward(rotated, key, value, kv_cache, metadata, output=output)
        attended = [
            Attended(s.request.id, s.request.sequence(attn_type)[: None if attn_type is CROSS else s.seq_len], s.query_len)
            for s in batch
        ]
        self.reference.check(part, attended, query, output)

    def _written(self, scheduled: Scheduled, attn_type: AttentionType) -> range:
        """Positions whose keys and values a step writes: those of new tokens, or in the first step those of the encoder."""
        request = scheduled.request
        if attn_type is CROSS:
            return range(0 if request.encoder_is_written else len(request.encoder_tokens))
        return range(request.num_computed_tokens, scheduled.seq_len)

    def _share(self, block: int) -> None:
        if block != NULL_BLOCK:
            self.pool.share(block)

    def _release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if block != NULL_BLOCK and self.pool.release(block):
                self._pages[block] = self.model.free_slots

    def _add(self, request: ServedRequest) -> int:
        self.requests[request.id] = request
        self.check_blocks()
        return request.id

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCABULARY) for _ in range(count)]

    def _int32(self, numbers: Sequence[int] | Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

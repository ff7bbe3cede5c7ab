"""Steps of paged attention, checked by a shadow: the slots that new keys are written into, and those that are read."""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import attn_reference
import torch
from attn_contract import ContractError, Layer
from attn_fuzz.shadow.contents import Contents, contents_of
from attn_fuzz.shadow.shadow import Shadow

Reader = Callable[[torch.Tensor], Contents]
"""Reads the contents of slots [n] int64 of a cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PagedStep:
    """The metadata of one layer in a step, row by row.

    Args:
        requests: their names. Further rows, such as padding, are not checked.
        query_start_loc, seq_lens, block_table: as in Batch.
        block_size: slots of a block.
        slot_mapping: [S], the slots of the new keys; None: the block table has them.
        contexts: the fewest and the most tokens that a request has before this step, if they are known otherwise than from
            `seq_lens`.
        shared: the number of positions in blocks of other requests, of a request that is new in the layer; None: all
            positions before this step.
        reader: reads the keys and values in slots; None: only the slots are checked.
    """

    requests: Sequence[Hashable]
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    block_size: int
    slot_mapping: torch.Tensor | None = None
    contexts: Mapping[Any, tuple[int, int]] = field(default_factory=dict)
    shared: Mapping[Any, int] | None = None
    reader: Reader | None = None

    def hold(self, shadow: Shadow, layer: Hashable) -> None:
        """Report the step's writes to a shadow, and then check its reads.

        Args:
            layer: the name of the layer that owns the cache. Call `Shadow.narrow` before if it has a window or chunks.
        """
        written = None if self.slot_mapping is None else self.slot_mapping.cpu()
        starts, lengths = self.query_start_loc.tolist(), self.seq_lens.tolist()
        rows = zip(self.requests, itertools.pairwise(starts), lengths, self.block_table.cpu().long(), strict=False)
        writes, reads = [], []
        for request, (begin, end), length, blocks in rows:
            context = self._context(request, length - (end - begin))
            if begin == end or context < 0:
                continue
            first = shadow.first_seen(layer, context)
            new, seen = range(context, context + end - begin), range(first, length)
            if not shadow.length(layer, request) and not self._adopt(shadow, layer, request, blocks, range(first, context)):
                shadow.pass_over("a request whose first keys were written before anybody watched")
                continue
            writes.append((request, new, self._slots(blocks, new) if written is None else written[begin:end]))
            reads.append((request, seen, self._slots(blocks, seen)))
        for tell, calls in ((shadow.write, writes), (shadow.read, reads)):
            for (request, positions, slots), keys in zip(calls, self._contents([each[2] for each in calls]), strict=True):
                tell(layer, request, positions, slots=slots, keys=keys)

    def _context(self, request: Hashable, told: int) -> int:
        least, most = self.contexts.get(request, (told, told))
        return told if least <= told <= most else most

    def _adopt(self, shadow: Shadow, layer: Hashable, request: Hashable, blocks: torch.Tensor, before: range) -> bool:
        """Adopt the positions in blocks of others. False if these are unknown and the blocks were never written."""
        shared = range(before.start, before.stop if self.shared is None else min(before.stop, self.shared.get(request, 0)))
        slots = self._slots(blocks, shared)
        if self.shared is None and len(shared) and not shadow.has_written(layer, slots):
            return False
        shadow.adopt(layer, request, shared, slots)
        return True

    def _slots(self, blocks: torch.Tensor, positions: range) -> torch.Tensor:
        """[n] int64; -1 past the end of the block table."""
        places = torch.arange(positions.start, max(positions.start, positions.stop))
        numbers = torch.nn.functional.pad(blocks, (0, 1), value=-1)[(places // self.block_size).clamp(max=len(blocks))]
        return torch.where(numbers < 0, -1, numbers * self.block_size + places % self.block_size)

    def _contents(self, slots: Sequence[torch.Tensor]) -> list[Contents | None]:
        """The contents of each request's slots. None where slots lead out of the cache, which the shadow reports."""
        if self.reader is None or not slots:
            return [None] * len(slots)
        try:
            whole = self.reader(torch.cat(list(slots)))
        except ContractError:
            return [None] if len(slots) == 1 else [self._contents([one])[0] for one in slots]
        ends = itertools.accumulate(map(len, slots), initial=0)
        return [whole[begin:end] for begin, end in itertools.pairwise(ends)]


def reader_of(kv_cache: torch.Tensor, layer: Layer) -> Reader:
    """A reader of a cache of the contract. It returns the numbers that attention takes, after scales.

    Args:
        kv_cache: its shape is that of `layer.layout`.
        layer: the source of the layout, kv_cache_dtype and scales.
    """
    size = layer.view_of(kv_cache).block_size

    def read(slots: torch.Tensor) -> Contents:
        blocks, places = (slots // size).unique(return_inverse=True)
        table = blocks.to(device=kv_cache.device, dtype=torch.int32)
        rows = (places * size + slots % size).to(kv_cache.device)
        gathered = attn_reference.gather_kv_cache(kv_cache, layer, table, len(blocks) * size, torch.float32)
        return contents_of(*(part[rows] for part in gathered))

    return read

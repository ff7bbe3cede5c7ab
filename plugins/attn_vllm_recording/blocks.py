"""The blocks that vLLM's scheduler hands to attention, held to a shadow cache: slots alone, and not the bytes that lie in them.

A step's metadata says for each row where its new keys are written (`slot_mapping`) and where all its keys are read
(`block_table`, `seq_lens`); the model runner says which request the row is, and the scheduler's output which requests are new,
with their tokens, and which have ended. Layers of one group have the same metadata: the first one that is called is held. This
module imports nothing of vLLM.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from attn_fuzz.shadow import Shadow

MOST_BYTES: Final = 1 << 30
"""The most bytes of a process's shadow, some 20 million tokens of one group. Steps beyond are not held to it."""


@dataclass
class Blocks:
    """The shadow of a process.

    Attributes:
        rows: gives the requests of the step that runs, in the order of its rows. None between steps, as in warm-ups.
        computed: how many tokens of each request of the step the scheduler has computed before. None where drafts are
            verified: it does not know yet how many were rejected, and the metadata's lengths are taken for true.
        shared: for each new request, how many tokens' keys lie in blocks that it shares.
    """

    shadow: Shadow = field(default_factory=Shadow)
    rows: Callable[[], Sequence[str]] = tuple
    computed: dict[str, int] | None = None
    shared: dict[str, int] = field(default_factory=dict)
    _groups: dict[Any, set[str]] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)
    _verifies: bool = False

    def begin(self, scheduled: Any) -> None:
        """Begin a step.

        Args:
            scheduled: vLLM's SchedulerOutput.
        """
        self.shadow.next_step()
        self._held.clear()
        for request in scheduled.finished_req_ids:
            self._forget(request)
        for new in scheduled.scheduled_new_reqs:
            self._forget(new.req_id)
            self.shared[new.req_id] = new.num_computed_tokens
            if new.prompt_token_ids is not None:
                self.shadow.tell(new.req_id, _identities(new))
        cached = scheduled.scheduled_cached_reqs
        self._verifies |= bool(scheduled.scheduled_spec_decode_tokens)
        known = {**self.shared, **dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))}
        self.computed = None if self._verifies else known
        for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request in cached.resumed_req_ids:
                for seen in self._groups.values():
                    seen.discard(request)
                self.shadow.roll_back(request, 0)
                self.shared[request] = computed

    def hold(self, layer: str, metadata: Any, block_size: int, *, window: int | None = None) -> None:
        """Hold a layer's step to the shadow.

        Args:
            layer: its name, or that of the layer whose cache it shares.
            metadata: of a backend, with `slot_mapping`, and the Batch's other fields.
            window: how many keys a query of the layer sees, itself among them.

        Raises:
            AttributeError: the metadata has no such fields.
        """
        batch = getattr(metadata, "batch", metadata)
        requests = self.rows()
        if not requests or id(metadata) in self._held:
            return
        if self.shadow.nbytes > MOST_BYTES:
            self.rows = tuple
            self.shadow.pass_over(f"steps after the shadow had {MOST_BYTES} bytes")
            return
        self._held.add(id(metadata))
        seen = self._groups.setdefault(layer, set())
        self.shadow.narrow(layer, window=window)
        starts, lengths = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
        written, table = metadata.slot_mapping.cpu(), batch.block_table.cpu().long()
        rows = zip(requests, itertools.pairwise(starts), lengths, table, strict=False)
        reads, computed = [], self.computed or {}
        for request, (begin, end), length, blocks in rows:
            context = computed[request] if request in computed else length - (end - begin)
            if begin == end or context < 0:
                continue
            first = 0 if window is None else max(0, context - window + 1)
            positions = torch.arange(first, length)
            slots = blocks[positions // block_size] * block_size + positions % block_size
            if request not in seen:
                seen.add(request)
                shared = positions < min(context, self.shared.get(request, 0))
                self.shadow.adopt(layer, request, positions[shared], slots[shared])
            self.shadow.write(layer, request, range(context, context + end - begin), slots=written[begin:end])
            reads.append((request, positions, slots))
        for request, positions, slots in reads:
            self.shadow.read(layer, request, positions, slots=slots)

    def _forget(self, request: str) -> None:
        self.shadow.free(request)
        self.shared.pop(request, None)
        for seen in self._groups.values():
            seen.discard(request)


def _identities(new: Any) -> list[int]:
    """A number for each token of a prompt: its id, or, in an image or the like, a hash of its content; and the adapter's."""
    adapter = 0 if new.lora_request is None else hash(new.lora_request.lora_int_id)
    tokens = [hash((token, adapter)) if adapter else token for token in new.prompt_token_ids]
    for feature in new.mm_features or ():
        at = feature.mm_position
        for place in range(at.offset, min(at.offset + at.length, len(tokens))):
            tokens[place] = hash((feature.identifier, place - at.offset, adapter))
    return tokens

"""The blocks that vLLM's scheduler gives to attention, compared with a shadow cache: slots, and the keys and values in them.

A step's metadata says for each row where its new keys are written (`slot_mapping`) and where all its keys are read
(`block_table`, `seq_lens`); the model runner says which request the row is, and the scheduler's output which requests are new,
with their tokens, and which have ended. Layers of one group have the same metadata: the first one that is called is held, with
the bytes of its cache. This module imports nothing of vLLM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import torch
from attn_fuzz.shadow import PagedStep, Reader, Shadow

MAX_BYTES: Final = 1 << 30
"""The most bytes of a process's shadow, some 20 million tokens of one group. Steps beyond are not compared."""


@dataclass
class Blocks:
    """The shadow of a process.

    Attributes:
        rows: gives the requests of the step that runs, in the order of its rows. None between steps, as in warm-ups.
        contexts: how many tokens of each request of the step were computed before, the fewest and the most: a scheduler that
            runs ahead does not know yet how many drafts of the last step were rejected.
        shared: for each new request, how many tokens' keys lie in blocks that it shares.
    """

    shadow: Shadow = field(default_factory=Shadow)
    rows: Callable[[], Sequence[str]] = tuple
    contexts: dict[str, tuple[int, int]] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)
    _drafts: dict[str, int] = field(default_factory=dict)

    def begin(self, scheduled: Any, *, is_async: bool) -> None:
        """Begin a step.

        Args:
            scheduled: vLLM's SchedulerOutput.
            is_async: True if it was made before the last step's drafts were verified, and takes them all for accepted.
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
        known = {**self.shared, **dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))}
        unknown = self._drafts if is_async else {}
        self.contexts = {request: (most - unknown.get(request, 0), most) for request, most in known.items()}
        self._drafts = {request: len(drafts) for request, drafts in scheduled.scheduled_spec_decode_tokens.items()}
        for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request in cached.resumed_req_ids:
                self.shadow.roll_back(request, 0)
                self.shared[request] = computed

    def hold(
        self,
        layer: str,
        metadata: Any,
        block_size: int,
        *,
        window: int | None = None,
        query_start_loc: torch.Tensor | None = None,
        reader: Callable[[], Reader | None] = lambda: None,
    ) -> None:
        """Hold a layer's step to the shadow.

        Args:
            layer: its name, or that of the layer whose cache it shares.
            metadata: of a backend, with `slot_mapping`, and the Batch's other fields, or those of MLA.
            window: the number of keys that a query of the layer sees, its own included.
            query_start_loc: of metadata that have none.
            reader: makes the reader of the layer's cache; see PagedStep. It is called for a layer that is held.

        Raises:
            AttributeError: the metadata has no such fields.
        """
        requests = self.rows()
        if not requests or id(metadata) in self._held:
            return
        if self.shadow.nbytes > MAX_BYTES:
            self.rows = tuple
            self.shadow.pass_over(f"steps after the shadow had {MAX_BYTES} bytes")
            return
        self._held.add(id(metadata))
        batch = _batch(metadata)
        step = PagedStep(
            requests=requests,
            query_start_loc=batch.query_start_loc if query_start_loc is None else query_start_loc,
            seq_lens=batch.seq_lens,
            block_table=batch.block_table,
            block_size=block_size,
            slot_mapping=metadata.slot_mapping,
            contexts=self.contexts,
            shared=self.shared,
            reader=reader(),
        )
        self.shadow.narrow(layer, window=window)
        step.hold(self.shadow, layer)

    def _forget(self, request: str) -> None:
        self.shadow.free(request)
        self.shared.pop(request, None)


def _batch(metadata: Any) -> Any:
    """The step's `query_start_loc`, `seq_lens` and `block_table`; MLA has those of its decodes, which come first, apart."""
    if hasattr(metadata, "block_table") or not hasattr(metadata, "prefill"):
        return getattr(metadata, "batch", metadata)
    decodes, prefills = metadata.decode, metadata.prefill
    lengths, tables = [], []
    if decodes is not None:
        lengths.append(decodes.seq_lens[: metadata.num_decodes])
        tables.append(decodes.block_table[: metadata.num_decodes])
    if prefills is not None:
        context = 0 if prefills.chunked_context is None else prefills.chunked_context.context_lens
        lengths.append(prefills.query_start_loc.diff() + context)
        tables.append(prefills.block_table)
    return SimpleNamespace(query_start_loc=metadata.query_start_loc, seq_lens=torch.cat(lengths), block_table=torch.cat(tables))


def _identities(new: Any) -> list[int]:
    """A number for each token of a prompt: its id, or, in an image or the like, a hash of its content; and the adapter's."""
    adapter = 0 if new.lora_request is None else hash(new.lora_request.lora_int_id)
    tokens = [hash((token, adapter)) if adapter else token for token in new.prompt_token_ids]
    for feature in new.mm_features or ():
        at = feature.mm_position
        for place in range(at.offset, min(at.offset + at.length, len(tokens))):
            tokens[place] = hash((feature.identifier, place - at.offset, adapter))
    return tokens

"""Compares the caches of functions and ops with a shadow. A cache is identified by its address: a call names no layer."""

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import attn_reference
import torch
from attn_contract import AttentionType, Batch, Layer
from attn_fuzz.shadow import PagedStep, Shadow, reader_of

WRITES = ("write_kv_cache", "write_latent_cache", "rope_and_write_kv_cache")
READS = ("paged_attention", "cascade_attention")


@contextmanager
def held_caches(shadow: Shadow, requests: Callable[[], Sequence[Hashable]]) -> Iterator[None]:
    """Compare the caches of calls inside the `with` with a shadow, after each call.

    Args:
        requests: gives the names of the requests of the step that runs; without names, its calls are not held.
    """
    caches = _Caches(shadow, requests)
    with ExitStack() as patches:
        for module in filter(None, (attn_reference, sys.modules.get("attn_optimized"))):
            for names, note in ((WRITES, caches.note_write), (READS, caches.hold)):
                for name in names:
                    if hasattr(module, name):
                        patches.enter_context(mock.patch.object(module, name, _noted(getattr(module, name), note)))
        yield


def _noted(function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        note(**{name: arguments[name] for name in inspect.signature(note).parameters})
        return result

    return noted


class _Caches:
    def __init__(self, shadow: Shadow, requests: Callable[[], Sequence[Hashable]]) -> None:
        self.shadow, self.requests = shadow, requests
        self.names: dict[Hashable, str] = {}
        self.written: dict[str, torch.Tensor] = {}

    def name(self, kv_cache: torch.Tensor) -> str:
        place = (kv_cache.data_ptr(), kv_cache.stride())
        return self.names.setdefault(place, f"cache {len(self.names)}")

    def note_write(self, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        self.written[self.name(kv_cache)] = slot_mapping

    def hold(self, kv_cache: torch.Tensor, layer: Layer, batch: Batch) -> None:
        """Hold a step, whose keys were written by the cache's last write."""
        name, requests = self.name(kv_cache), self.requests()
        slots = self.written.pop(name, None)
        if reason := self._reason(requests, layer):
            self.shadow.pass_over(reason)
            return
        assert batch.block_table is not None
        left = layer.window[0]
        self.shadow.narrow(name, window=None if left < 0 else left + 1, chunk=layer.chunked_local)
        step = PagedStep(
            requests=requests,
            query_start_loc=batch.query_start_loc,
            seq_lens=batch.seq_lens,
            block_table=batch.block_table,
            block_size=layer.view_of(kv_cache).block_size,
            slot_mapping=slots,
            reader=reader_of(kv_cache, layer),
        )
        step.hold(self.shadow, name)

    def _reason(self, requests: Sequence[Hashable], layer: Layer) -> str | None:
        """The reason why a call's cache is not compared; None if it is."""
        if not requests:
            return "a step whose requests were not set"
        if layer.attn_type is not AttentionType.DECODER:
            return "keys of cross-attention"
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return "it was captured in a CUDA graph, and replays of a graph are not seen"
        return None

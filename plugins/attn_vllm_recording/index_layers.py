"""A call of vLLM's index layer on ROCm (`SparseAttnIndexer.forward_hip`), judged stage by stage, each by its own inputs.

    written     all bytes of the pages of new index keys, as `attn_reference.write_index_cache` writes them. Page 0 is
                among them: a slot of -1 writes nothing.
    logits      within the bound of `attn_fuzz.verdict.indexer`, of the keys that the cache holds
    selection   exactly, by the logits that the layer has computed

In every call, judged or not, the shadow checks the index cache, as it does the caches of other layers.

A row of q is judged as a request of one query. The number of its keys and its block table come from vLLM's metadata. Rows are
chosen at equal distances, from another first one in each call. Judged tensors are copied to the CPU. vLLM is imported when a
call is read.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest import mock

import torch
from attn_contract import ContractError, Indexer, IndexLayout, ScaleFormat
from attn_contract.layouts import BYTES_OF_SCALE
from attn_fuzz.shadow import Contents, contents_of
from attn_fuzz.verdict.indexer import index_oracle, wrong_logits, wrong_selection
from attn_reference import write_index_cache

from attn_vllm_recording.blocks import Blocks
from attn_vllm_recording.errors import NotJudgedError
from attn_vllm_recording.excerpt import requests_of_rows

MAX_ROWS: Final = 32
MAX_KEYS: Final = 1 << 19
"""The most keys of all rows: the judge reads them one row after the other, in float64."""
MAX_PAGES: Final = 64


class Row(NamedTuple):
    """A row of q: the number of its keys, their pages, and the place of its first logit among those of its launch."""

    row: int
    seen: int
    blocks: torch.Tensor
    launch: int
    at: tuple[int, int]


class IndexCall:
    """A call to judge. The object is made before the call.

    Args:
        layer: vLLM's SparseAttnIndexer.
        q, k, weights: arguments of its forward_hip.
        metadata: vLLM's DeepseekV32IndexerMetadata of the step.
        turn: the number of calls that were judged before.

    Raises:
        NotJudgedError: with the reason.
    """

    def __init__(self, layer: Any, q: Any, k: torch.Tensor | None, weights: torch.Tensor, metadata: Any, turn: int) -> None:
        from vllm.v1.attention.ops import rocm_aiter_mla_sparse

        _refuse(layer, metadata)
        self.kernels = rocm_aiter_mla_sparse
        self.cache = layer.k_cache.kv_cache
        self.indexer = _indexer(layer, q.shape[1], self.cache.shape[1], rocm_aiter_mla_sparse.FP8_DTYPE)
        self.rows = _rows(metadata, self.cache, turn)
        rows = [each.row for each in self.rows]
        self.q, self.weights = q[rows].cpu(), weights[rows].cpu()
        self.launches: list[dict[int, torch.Tensor]] = []
        self.written = None
        if k is not None and not layer.skip_k_cache_insert:
            self.written = _Written(k, self.cache, self.indexer, metadata.slot_mapping)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the logits of the rows while the layer runs: they lie in memory that later launches share."""
        with ExitStack() as patches:
            for name in ("rocm_fp8_mqa_logits", "rocm_fp8_paged_mqa_logits"):
                patches.enter_context(mock.patch.object(self.kernels, name, self._kept(getattr(self.kernels, name))))
            yield

    def _kept(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def kept(*arguments: Any, **named: Any) -> torch.Tensor:
            logits = function(*arguments, **named)
            own = [each for each in self.rows if each.launch == len(self.launches)]
            self.launches.append({each.row: _logits_of(each, logits) for each in own})
            return logits

        return kept

    def wrong(self, buffer: torch.Tensor) -> str | None:
        """The fault of a call after its run, in words; None if it is right. `buffer` has the units that its rows select."""
        wrong = [] if self.written is None else [self.written.wrong()]
        used, batch = requests_of_rows([each.seen for each in self.rows], [each.blocks for each in self.rows])
        pages = self.cache[used.to(self.cache.device)].cpu()
        logits = torch.full((1, len(self.rows), batch.max_seq_len), torch.nan)
        for index, each in enumerate(self.rows):
            logits[0, index, : each.seen] = self.launches[each.launch][each.row]
        found = wrong_logits(index_oracle(self.q, self.weights, pages, self.indexer, batch), logits, self.indexer, batch)
        selected = buffer[[each.row for each in self.rows], : self.indexer.top_k].cpu()[None]
        wrong += [found and found.message, wrong_selection(selected, logits, self.indexer, batch)]
        told = "; ".join(filter(None, wrong))
        return f"{told} (rows are {', '.join(str(each.row) for each in self.rows)} of the step)" if told else None


class _Written:
    """The pages that a step writes index keys to, before the write."""

    def __init__(self, k: torch.Tensor, cache: torch.Tensor, indexer: Indexer, slot_mapping: torch.Tensor) -> None:
        slots, size = slot_mapping.cpu(), cache.shape[1]
        self.cache, self.indexer = cache, indexer
        if len(slots) and not -1 <= int(slots.min()) <= int(slots.max()) < len(cache) * size:
            raise NotJudgedError("a slot mapping leads out of the index cache")
        self.blocks = sorted({0, *(slots[slots >= 0] // size).unique()[: MAX_PAGES - 1].tolist()})
        rows = torch.isin(slots // size, torch.tensor(self.blocks)).nonzero()[:, 0]
        self.k, slots = k[rows.to(k.device)].cpu(), slots[rows]
        self.slots = torch.searchsorted(torch.tensor(self.blocks), slots // size) * size + slots % size
        self.before = cache[self.blocks].cpu()

    def wrong(self) -> str | None:
        """The fault of the pages after the write, in words; None if they are right."""
        right, got = self.before.clone(), self.cache[self.blocks].cpu()
        write_index_cache(self.k, right, self.indexer, self.slots)
        size = right.shape[1]
        at = _bytes_of(self.indexer, right, torch.arange(right.shape[0] * size))
        differ = (right.flatten()[at] != got.flatten()[at]).sum(1)
        if not len(wrong := differ.nonzero()[:, 0]):
            return None
        first = int(wrong[0])
        place = self.blocks[first // size] * size + first % size
        expected = "its own key" if (self.slots == first).any() else "what it held before"
        return f"index key in slot {place}: {int(differ[first])} bytes are not {expected}; {len(wrong)} slots are wrong"


def hold_index_cache(blocks: Blocks, layer: Any, steps: dict[str, Any]) -> None:
    """Check a layer's index cache by the shadow, after the keys of the step are written."""
    from vllm.v1.attention.ops.rocm_aiter_mla_sparse import FP8_DTYPE

    if layer.compress_ratio != 1 or layer.dcp_world_size > 1 or layer.use_pcp:
        return
    name, cache = layer.k_cache.prefix, layer.k_cache.kv_cache
    starts = next(each.query_start_loc for each in steps.values() if hasattr(each, "query_start_loc"))
    reader = functools.partial(_read, cache, _indexer(layer, 1, cache.shape[1], FP8_DTYPE))
    blocks.hold(name, steps[name], cache.shape[1], query_start_loc=starts, reader=lambda: reader)


def _read(cache: torch.Tensor, indexer: Indexer, slots: torch.Tensor) -> Contents:
    """The keys in slots, after their scales."""
    size = cache.shape[1]
    if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < len(cache) * size:
        raise ContractError("slots", f"{int(slots.min())} to {int(slots.max())}", f"those of {len(cache)} blocks of {size}")
    used, places = (slots // size).unique(return_inverse=True)
    pages = cache[used.to(cache.device)]
    at = _bytes_of(indexer, pages, places * size + slots % size).to(cache.device)
    assert indexer.cache_dtype is not None
    codes, scales = pages.flatten()[at].split((indexer.head_size, BYTES_OF_SCALE), dim=1)
    return contents_of(codes.contiguous().view(indexer.cache_dtype).float() * scales.contiguous().view(torch.float32))


def _bytes_of(indexer: Indexer, pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[n, D + 4]: the places of slots' bytes in pages, first those of keys and then those of their scales."""
    view, block, slot = indexer.view_of(pages), slots // pages.shape[1], slots % pages.shape[1]
    keys = view.element(block[:, None], slot[:, None], torch.arange(indexer.head_size))
    return torch.cat((keys, view.scale(block, slot)[:, None] + torch.arange(BYTES_OF_SCALE)), 1)


def _refuse(layer: Any, metadata: Any) -> None:
    if layer.compress_ratio != 1:
        raise NotJudgedError("an index layer whose keys are of several tokens")
    if layer.candidate_blocks is not None:
        raise NotJudgedError("an index layer that selects among candidates of another layer")
    if layer.dcp_world_size > 1 or layer.use_pcp:
        raise NotJudgedError("context parallelism: a process sees a part of the keys")
    if metadata.decode is not None and (
        metadata.decode.requires_padding or metadata.decode.seq_lens.numel() != metadata.num_decode_tokens
    ):
        raise NotJudgedError("an index layer's decodes of several lengths, which are padded")


def _indexer(layer: Any, num_heads: int, block_size: int, dtype: torch.dtype) -> Indexer:
    return Indexer(
        num_heads=num_heads,
        head_size=layer.head_dim,
        top_k=layer.topk_tokens,
        layout=IndexLayout.FLAT if block_size == 1 else IndexLayout.TILED,
        cache_dtype=dtype,
        scale_format=ScaleFormat.UE8M0 if layer.scale_fmt == "ue8m0" else ScaleFormat.FLOAT32,
        largest=224.0 if dtype == torch.float8_e4m3fnuz else None,
    )


def _rows(metadata: Any, cache: torch.Tensor, turn: int) -> list[Row]:
    """The rows to judge, of those that see a key."""
    found = list(itertools.islice(_chosen(metadata, cache.shape[1], turn), MAX_ROWS))
    total = list(itertools.accumulate(each.seen for each in found))
    found = [each for each, keys in zip(found, total, strict=True) if keys <= MAX_KEYS]
    if not found:
        raise NotJudgedError(f"an index layer's step without rows that see keys, or with more than {MAX_KEYS}")
    blocks = torch.cat([each.blocks for each in found])
    if not 0 <= int(blocks.min()) <= int(blocks.max()) < len(cache):
        raise NotJudgedError("a block table leads out of the index cache")
    return found


def _chosen(metadata: Any, size: int, turn: int) -> Iterator[Row]:
    """Rows of prefills, a launch for each chunk, and then of decodes, which are one launch."""
    launches = list(_launches(metadata))
    step = -(-sum(len(seen) for _, seen, *_ in launches) // MAX_ROWS)
    for launch, (first, seen, starts, tables) in enumerate(launches):
        for index in range(turn % max(step, 1), len(seen), max(step, 1)):
            if (n := int(seen[index])) > 0:
                blocks = tables(index)[: -(-n // size)].cpu()
                yield Row(first + index, n, blocks, launch, (index, int(starts[index])))


def _launches(metadata: Any) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, Callable[[int], torch.Tensor]]]:
    """For each launch: its first row of q, and the number of keys, the place of logits and the block table of its rows."""
    for chunk in metadata.prefill.chunks if metadata.prefill is not None else ():
        starts, seen = chunk.cu_seqlen_ks.cpu(), (chunk.cu_seqlen_ke - chunk.cu_seqlen_ks).cpu()
        request, tables = chunk.token_to_seq.cpu(), chunk.block_table
        yield chunk.token_start, seen, starts, lambda index, of=(request, tables, starts): of[1][of[0][of[2][index]]]
    if metadata.decode is not None:
        seen, tables = metadata.decode.seq_lens.flatten().cpu(), metadata.decode.block_table
        drafts = len(seen) // max(len(metadata.decode.decode_lens), 1)
        yield 0, seen, torch.zeros_like(seen), lambda index: tables[index // drafts]


def _logits_of(row: Row, logits: torch.Tensor) -> torch.Tensor:
    index, start = row.at
    return logits[index, start : start + row.seen].float().cpu()

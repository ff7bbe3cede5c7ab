"""A call of vLLM's attention to selected tokens on ROCm (`ROCMAiterMLASparseImpl.forward_mqa`), judged in two stages.

    slots    the kernel gets as many for a row as the row sees keys, at most k, each once. By the block table, each is that of
             a token that the index layer selected and the row sees. From a wider selection any may be taken.
    output   within the bound of attention over these slots, even if others should be selected

A row of q is judged as a request of one query, whose keys are copied from its slots into pages of one slot. Rows are chosen
at equal distances, from another first one in each call. q is the tensor that the kernel gets, after quantization.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import torch
from attn_contract import Layer, Layout
from attn_fuzz import Call, Recording
from attn_fuzz.verdict.live import UNKNOWN_KERNEL

from attn_vllm_recording.errors import NotJudgedError
from attn_vllm_recording.excerpt import MAX_WORK, requests_of_rows

MAX_ROWS: Final = 32
_IMPL: Final = "vllm.v1.attention.backends.mla.rocm_aiter_mla_sparse.ROCMAiterMLASparseImpl"


def attends_to_selected(impl: Any) -> bool:
    """True if an implementation is the one that is judged here. A subclass may compute something else."""
    return f"{type(impl).__module__}.{type(impl).__qualname__}" == _IMPL


class SparseCall:
    """A call to judge. The object is made before the call, and keeps copies of tensors that the call may overwrite.

    Args:
        impl: vLLM's ROCMAiterMLASparseImpl.
        layer, kv_cache, metadata: arguments of its forward_mqa.
        num_rows: the number of rows of q.
        turn: the number of calls that were judged before.

    Raises:
        NotJudgedError: with the reason.
    """

    def __init__(self, impl: Any, layer: Any, kv_cache: torch.Tensor, metadata: Any, num_rows: int, turn: int) -> None:
        if impl.dcp_world_size > 1 or impl.pcp_world_size > 1:
            raise NotJudgedError("context parallelism: a process sees a part of the keys")
        self.impl, self.layer, self.cache, self.metadata = impl, layer, kv_cache, metadata
        self.rows, self.seen, self.tables = _rows(metadata, num_rows, _most_rows(impl, kv_cache, metadata), turn)
        self.selected = impl.topk_indices_buffer[self.rows.to(kv_cache.device)].cpu()
        self.q = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the rows of q that the kernel gets, while the call runs."""
        with ExitStack() as patches:
            for name in ("_forward_mla", "_forward_mla_aiter"):
                patches.enter_context(mock.patch.object(self.impl, name, self._kept(getattr(self.impl, name))))
            yield

    def _kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from vllm.v1.attention.backends.mla.rocm_aiter_mla import AiterMLAHelper

        def kept(layer: Any, q: torch.Tensor, *arguments: Any) -> Any:
            own = AiterMLAHelper.get_mla_unpadded_o(self.impl.num_heads, q)
            self.q = own[self.rows.to(q.device)].cpu()
            return function(layer, q, *arguments)

        return kept

    def given(self) -> list[torch.Tensor]:
        """The slots that the kernel got for each row."""
        ends = self.metadata.paged_kv_indptr.cpu()
        slots = self.metadata.paged_kv_indices
        return [slots[int(ends[row]) : int(ends[row + 1])].cpu().long() for row in self.rows.tolist()]

    def wrong_slots(self, given: list[torch.Tensor]) -> str | None:
        """The fault of the slots, in words; None if they are right."""
        size, most = self.metadata.block_size, self.metadata.topk_tokens
        stride = self.cache.stride(0) // self.cache.shape[-1]
        for row, seen, table, selected, slots in zip(
            self.rows.tolist(), self.seen.tolist(), self.tables, self.selected, given, strict=True
        ):
            own = selected[(selected >= 0) & (selected < seen)].long()
            right = table[own // size] * stride + own % size
            if len(slots) != min(seen, most):
                return f"row {row} attends to {len(slots)} slots; it sees {seen} keys, of which {most} may be selected"
            if len(other := slots[~torch.isin(slots, right)]):
                return f"row {row} attends to slot {int(other[0])}, where no selected key of its request lies"
            if len(slots.unique()) < len(slots):
                return f"row {row} attends to a slot twice"
        return None

    def call(self, given: list[torch.Tensor]) -> Call:
        """Attention of each row to its slots."""
        impl, size = self.impl, self.cache.shape[-1]
        used, batch = requests_of_rows([len(slots) for slots in given], given)
        flat = self.cache.as_strided((int(used.max()) + 1, size), (size, 1))
        scales = {}
        pages = flat[used.to(flat.device)].cpu()[:, None]
        if self.q.element_size() == 1:
            pages = pages.view(self.q.dtype)
            q_scale, k_scale = (scale.detach().cpu() for scale in (self.layer._q_scale, self.layer._k_scale))
            scales = {"kv_cache_dtype": self.q.dtype, "q_scale": q_scale, "k_scale": k_scale}
        asked = Layer(
            num_heads=impl.num_heads,
            num_kv_heads=1,
            head_size=size,
            head_size_v=impl.kv_lora_rank,
            scale=impl.scale,
            layout=Layout.LATENT,
            sinks=None if impl.sinks is None else impl.sinks.detach().cpu(),
            **scales,
        )
        return Call(q=self.q, layer=asked, batch=batch, kv_cache=pages)

    def judge(self, record: Recording, output: torch.Tensor) -> None:
        """Judge the outputs of the call."""
        function, given = f"ROCM_AITER_MLA_SPARSE {self.layer.layer_name}", self.given()
        if (wrong := self.wrong_slots(given)) is not None:
            record.note(wrong, function=function)
            return
        out = output[self.rows.to(output.device)].detach().cpu()
        # beside sinks, a rounded output is multiplied by the share that they leave
        parts = 1 if self.impl.sinks is None else 2
        is_float8 = self.q.element_size() == 1
        rounding = dataclasses.replace(UNKNOWN_KERNEL, splits=128, merged_parts=parts, float8_weights=is_float8)
        record.judge(self.call(given), out, function=function, rounding=rounding)


def _most_rows(impl: Any, kv_cache: torch.Tensor, metadata: Any) -> int:
    return min(MAX_ROWS, max(1, MAX_WORK // (metadata.topk_tokens * impl.num_heads * kv_cache.shape[-1])))


def _rows(metadata: Any, num_rows: int, most: int, turn: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows to judge, of those that see a key, with their numbers of keys and their block tables."""
    starts, lengths = metadata.query_start_loc.cpu().long(), metadata.seq_lens.cpu().long()
    rows = torch.arange(min(num_rows, int(starts[-1])))
    request = torch.searchsorted(starts, rows, right=True) - 1
    seen = lengths[request] - (starts[request + 1] - rows) + 1
    rows = rows[seen > 0]
    step = max(1, -(-len(rows) // most))
    rows = rows[turn % step :: step]
    if not len(rows):
        raise NotJudgedError("a step without rows that see keys")
    return rows, seen[rows], metadata.block_table.cpu().long()[request[rows]]

"""Calls of an op that are like an earlier one: after one look-up its launches run on their tensors.

The caller of a function has made its Layer and Batch; an op has to make both, to check the call, and to find its launches. That
took the host twice as long as the function. So a call that went this whole way is noted by its signature, which has neither a
tensor nor an address. The note has the launches, and says which argument each of their tensors is. A later call of the same
signature runs by the note if its tensors are what they nearly always are (`_Noted.takes`). Any other call goes the whole way,
which refuses what is wrong.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from attn_contract import Batch, Layer
from attn_contract.arguments import INT32_MAX
from attn_contract.memory import memory_of
from attn_contract.ops import Arrange, Given, Required
from attn_contract.signatures import tensor_signature

from attn_optimized.attention import paged_attention_calls, plan_of, varlen_attention_calls
from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.indexer import index_logits_call, select_call, write_index_cache_call
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kv_cache import rope_and_write_kv_cache_call, write_kv_cache_call
from attn_optimized.latent_cache import write_latent_cache_call
from attn_optimized.launch.attention import stand_ins
from attn_optimized.launch.plan import AttentionPlan
from attn_optimized.launch.workload import rounded
from attn_optimized.signature_cache import SignatureCache

_ALIGNMENT = 16
_INTEGERS = (torch.int32, torch.int64, torch.bool)
_SCRATCH = ("acc_ptr", "row_max_ptr", "row_sum_ptr")
"""Tensors that one kernel writes for the next one: each call has memory of its own for them."""


class Read(NamedTuple):
    """A call: its signature, and its tensors."""

    signature: Hashable
    tensors: list[torch.Tensor | None]


class _Places(NamedTuple):
    """The places of a launch's tensors among those of a call, and the types of those that are views of another type."""

    places: list[int]
    types: list[tuple[int, torch.dtype]]


class _Noted(NamedTuple):
    """The calls of one signature.

    Attributes:
        device: of all tensors.
        launches: in order.
        scratch: shapes of the memory between them.
        aligned: places of tensors that begin at multiples of _ALIGNMENT. The addresses of vectors and integers decide nothing.
        written: places of written tensors.
        extents: of each tensor, the bytes from the first to the last one.
    """

    device: torch.device
    launches: list[tuple[Launch, _Places]]
    scratch: list[torch.Size]
    aligned: list[int]
    written: list[int]
    extents: list[int]

    def takes(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """True if tensors are on the device, need no gradient and are aligned, and written ones share no memory with others."""
        device, has_gradients, starts = self.device, torch.is_grad_enabled(), []
        for tensor in tensors:
            if tensor is None:
                starts.append(0)
            elif tensor.device != device or (has_gradients and tensor.requires_grad) or tensor.is_neg():
                return False
            else:
                starts.append(tensor.data_ptr())
        for place in self.aligned:
            if starts[place] % _ALIGNMENT:
                return False
        for written in self.written:
            start = starts[written]
            end = start + self.extents[written]
            for place, other in enumerate(starts):
                if other < end and start < other + self.extents[place] and place != written:
                    return False
        return True

    def run(self, tensors: Sequence[torch.Tensor | None]) -> None:
        """Launch on tensors that it takes."""
        scratch = [torch.empty(shape, dtype=torch.float32, device=self.device) for shape in self.scratch]
        candidates = (None, *stand_ins(self.device), *tensors, *scratch)
        for launch, (places, types) in self.launches:
            taken = [candidates[place] for place in places]
            for place, dtype in types:
                if (tensor := taken[place]) is not None:
                    taken[place] = tensor.view(dtype)
            launch.run(taken, self.device)


_NOTED: SignatureCache[_Noted | None] = SignatureCache()


class Repeats:
    """The calls of an op, and those that were noted.

    Args:
        arrange: makes of the op's arguments those of the function.
    """

    def __init__(self, op: str, arguments: Required, arrange: Arrange) -> None:
        self._op, self._arguments, self._arrange = op, arguments, arrange

    def read(self, required: Sequence[Any], options: Given) -> Read:
        """The signature and the tensors of a call."""
        arguments = self._arguments
        tensors, values = [required[place] for place in arguments.tensors], [required[place] for place in arguments.values]
        if arguments.max_seq_len is not None:
            max_seq_len = required[arguments.max_seq_len]
            values.append(rounded(max_seq_len) if 0 <= max_seq_len <= INT32_MAX else -1)
        for value in options.values():
            if isinstance(value, torch.Tensor):
                tensors.append(value)
            else:
                values.append(tuple(value) if isinstance(value, list) else value)  # a schema has no tuples
        device = None if tensors[0] is None else tensors[0].device
        return Read((self._op, device, *options, *values, *map(tensor_signature, tensors)), tensors)

    def made(self, call: Read) -> bool:
        """Make a call like an earlier one. False: it is like none, and nothing was done."""
        noted = _NOTED.get(call.signature)
        if noted is None or not noted.takes(call.tensors):
            return False
        noted.run(call.tensors)
        return True

    def note(self, call: Read, required: Sequence[Any], options: Given) -> None:
        """Note a call that was made in the whole way."""
        if call.signature not in _NOTED:
            _NOTED[call.signature] = self._noted(call, required, options)

    def _noted(self, call: Read, required: Sequence[Any], options: Given) -> _Noted | None:
        """None: not each tensor of its launches is an argument, from its beginning."""
        on_meta = [_on_meta(value) for value in required]
        options_on_meta = {name: _on_meta(value) for name, value in options.items()}
        device = next(tensor.device for tensor in call.tensors if tensor is not None)
        candidates = [None, *stand_ins(torch.device("meta")), *self.read(on_meta, options_on_meta).tensors]
        launches, num_arguments = [], len(candidates)
        arguments, named = self._arrange(on_meta, options_on_meta)
        for kernel_call in _CALLS[self._op](*arguments, device=device, **named):
            places = _places(kernel_call, candidates)
            if places is None:
                return None
            launches.append((kernel_call.launch, places))
        names = [self._arguments.names[place] for place in self._arguments.tensors]
        names += [name for name, value in options.items() if isinstance(value, torch.Tensor)]
        tensors = candidates[num_arguments - len(names) : num_arguments]
        return _Noted(
            device,
            launches,
            scratch=[tensor.shape for tensor in candidates[num_arguments:] if tensor is not None],
            aligned=[place for place, tensor in enumerate(tensors) if _decides_by_address(tensor)],
            written=[
                place for place, name in enumerate(names) if name in self._arguments.written and tensors[place] is not None
            ],
            extents=[0 if tensor is None else memory_of(tensor)[1] for tensor in tensors],
        )


def _decides_by_address(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.dim() > 1 and tensor.dtype not in _INTEGERS


def _on_meta(value: Any) -> Any:
    """The value, or for a tensor one of its form on meta."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _places(call: KernelCall, candidates: list[torch.Tensor | None]) -> _Places | None:
    """The places of a launch's tensors among `candidates`, which scratch memory joins. None: a tensor is not among them."""
    places, types = [], []
    for name in call.launch.tensor_names:
        tensor = call.tensors[name]
        place = next((i for i, other in enumerate(candidates) if _begins(tensor, other)), None)
        if place is None and name in _SCRATCH:
            place = len(candidates)
            candidates.append(tensor)
        if place is None:
            return None
        other = candidates[place]
        if tensor is not None and other is not None and tensor.dtype != other.dtype:
            types.append((len(places), tensor.dtype))
        places.append(place)
    return _Places(places, types)


def _begins(tensor: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """True if a tensor is a view of another one of the same element size, from its first element on."""
    if tensor is None or other is None:
        return tensor is other
    # torch has no other name for the memory of a tensor on meta
    is_same = tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
    return is_same and tensor.storage_offset() == 0 and tensor.itemsize == other.itemsize


def _plan(q: torch.Tensor, layer: Layer, batch: Batch, device: torch.device, batch_invariant: bool) -> AttentionPlan:
    gpu = {"architecture": architecture_of(device, torch.float32), "compute_units": compute_units_of(device)}
    return plan_of(q, layer, batch, batch_invariant=batch_invariant, **gpu)


def _paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    device: torch.device,
    batch_invariant: bool = False,
    **outputs: Any,
) -> Iterable[KernelCall]:
    plan = _plan(q, layer, batch, device, batch_invariant)
    return paged_attention_calls(q, kv_cache, layer, batch, plan, **outputs)


def _varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    device: torch.device,
    batch_invariant: bool = False,
    **outputs: Any,
) -> Iterable[KernelCall]:
    plan = _plan(q, layer, batch, device, batch_invariant)
    return varlen_attention_calls(q, k, v, layer, batch, plan, **outputs)


def _one(call: Callable[..., KernelCall], **renamed: str) -> Callable[..., Iterable[KernelCall]]:
    """The launches of an op that has one.

    Args:
        renamed: the function's names of arguments that `call` has another name for.
    """

    def calls(*arguments: Any, device: torch.device, **named: Any) -> Iterable[KernelCall]:
        named = {renamed.get(name, name): value for name, value in named.items()}
        return [call(*arguments, architecture=architecture_of(device, torch.float32), **named)]

    return calls


_CALLS: dict[str, Callable[..., Iterable[KernelCall]]] = {
    "paged_attention": _paged_attention,
    "varlen_attention": _varlen_attention,
    "write_kv_cache": _one(write_kv_cache_call),
    "rope_and_write_kv_cache": _one(rope_and_write_kv_cache_call),
    "write_latent_cache": _one(write_latent_cache_call),
    "write_index_cache": _one(write_index_cache_call),
    "index_logits": _one(index_logits_call, out="logits"),
    "select": _one(select_call, out="selected"),
}
"""The launches of a call on meta for a device, by the names of ops. The other ops describe no layer."""

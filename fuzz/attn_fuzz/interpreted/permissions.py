"""What one call may touch, element by element of every tensor of a step: what the sanitizer holds a kernel's addresses against.

    attention   reads rows of q (and of k and v) that a request owns, slots [0, seq_len) of its blocks in its own layer's view,
                their scales, the entries of the block table that lead there, and all of the other inputs;
                writes the owned rows of `out` and `lse`
    a write     reads the rows of k and v that have a slot, slot_mapping, scales, and the angles of its positions;
                writes the slots that slot_mapping names, and the rotated dims of q

A key that a mask hides may be read: it is there. What a program reads and writes of requests must be theirs whose rows of q it
has read before.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from attn_contract import KVCacheView
from attn_fuzz.cases import allocations
from attn_fuzz.cases.tensors import Step, Write

READ, WRITE = 1 << 30, 1 << 29
# one bit per request; those that share a bit are not told apart
REQUEST_BITS = 29


@dataclass
class Region:
    """A tensor of a call, and what may be done with each element of its storage.

    Attributes:
        name: as a message has it.
        tensor: what the target was given, in whose indices a message speaks.
        rights: [elements of the storage] int32: READ, WRITE, and a bit for each request that an element belongs to.
        reads, writes: the rule in words; empty: nothing.
        owned: whether its elements belong to requests.
        place: names an element of the storage, if the tensor's own index does not say enough.
    """

    name: str
    tensor: torch.Tensor
    rights: np.ndarray
    reads: str = ""
    writes: str = ""
    owned: bool = False
    place: Callable[[int], str] | None = None

    @property
    def address(self) -> int:
        return self.tensor.untyped_storage().data_ptr()

    def spans(self, addresses: np.ndarray) -> np.ndarray:
        """Which addresses lie in its storage."""
        offset = addresses - np.uint64(self.address)
        return offset < np.uint64(self.tensor.untyped_storage().nbytes())

    def contains(self, address: int) -> bool:
        """Whether an address is one of the tensor's own elements."""
        return self._index((address - self.address) // self.tensor.element_size())[1] == 0

    def describe(self, element: int) -> str:
        """The element by its index in the tensor, or by how far outside of it."""
        if self.place is not None and 0 <= element < len(self.rights):
            return f"{self.name}, {self.place(element)}"
        rest = element - self.tensor.storage_offset()
        last = sum((size - 1) * stride for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True))
        if rest < 0:
            return f"{self.name}, {-rest} elements before its first"
        if rest > last:
            return f"{self.name}, {rest - last} elements past its last"
        index, rest = self._index(element)
        text = f"{self.name}[{', '.join(map(str, index))}]"
        return f"{rest} elements past {text}" if rest else text

    def _index(self, element: int) -> tuple[tuple[int, ...], int]:
        """The last index of the tensor that is not past an element of the storage, and how far that is past it."""
        rest, index = element - int(self.tensor.storage_offset()), dict[int, int]()
        for dim in sorted(range(self.tensor.dim()), key=self.tensor.stride, reverse=True):
            index[dim] = max(0, min(rest // max(1, self.tensor.stride(dim)), self.tensor.shape[dim] - 1))
            rest -= index[dim] * self.tensor.stride(dim)
        return tuple(index[dim] for dim in range(self.tensor.dim())), rest


def region(name: str, tensor: torch.Tensor, rights: torch.Tensor | int, **rule: Any) -> Region:
    """A Region with rights of the tensor's shape, or that broadcast to it; what else is in its storage has none."""
    storage = tensor.untyped_storage()
    whole = torch.zeros(storage.nbytes() // tensor.element_size(), dtype=torch.int32)
    whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())[...] = rights
    return Region(name, tensor, whole.numpy(), **rule)


def of_attention(step: Step) -> list[Region]:
    """The memory that `Target.attention` may touch: of each byte, who may read it and who may write it."""
    batch, layer = step.batch, step.layer
    bits = [1 << r % REQUEST_BITS for r in range(batch.num_requests)]
    owner = torch.zeros(len(step.q), dtype=torch.int32)
    for bit, (start, end) in zip(bits, itertools.pairwise(batch.query_start_loc.tolist()), strict=True):
        owner[start:end] = bit
    read, written = (torch.where(owner != 0, owner | right, 0) for right in (READ, WRITE))
    reads: dict[str, Any] = {"reads": "rows that a request owns", "owned": True}
    writes: dict[str, Any] = {"writes": "rows that a request owns", "owned": True}
    regions = [
        region("q", step.q, read.view(-1, 1, 1), **reads),
        region("out", step.out, written.view(-1, *[1] * (step.out.dim() - 1)), **writes),
    ]
    if step.lse is not None:
        regions.append(region("lse", step.lse, written, **writes))
    if step.raw is None and step.k is not None and step.v is not None:
        read = torch.nn.functional.pad(read, (0, len(step.k) - len(read)))
        regions += [region(name, tensor, read.view(-1, 1, 1), **reads) for name, tensor in (("k", step.k), ("v", step.v))]
    elif step.k is not None:
        regions += _rows_with_slots(step.writes[0])
    if step.raw is not None and step.view is not None and batch.block_table is not None:
        regions += _read_cache(step, step.view, bits)
    everything = {**batch.tensors, **layer.tensors}
    taken = {"block_table", "k_scale_cache", "v_scale_cache"}
    return regions + [_all_of(name, tensor) for name, tensor in everything.items() if name not in taken]


def of_write(write: Write, step: Step) -> list[Region]:
    """What `Target.write_kv_cache` or `Target.rope_and_write_kv_cache` may touch."""
    assert step.raw is not None
    slots = write.slot_mapping[write.slot_mapping >= 0]
    rule = {"writes": "slots that slot_mapping names"}
    cache = torch.zeros(len(step.raw), dtype=torch.int32)
    cache[_elements(write.view, slots)] = WRITE
    regions = [
        region("kv_cache", step.raw, cache, place=_place_in(write.view), **rule),
        *_rows_with_slots(write),
        _all_of("slot_mapping", write.slot_mapping),
    ]
    for name, tensor in write.layer.tensors.items():
        if name in ("k_scale_cache", "v_scale_cache"):
            rights = torch.zeros(tensor.shape, dtype=torch.int32)
            rights.flatten(0, 1)[slots] = WRITE
            regions.append(region(name, tensor, rights, **rule))
        else:
            regions.append(_all_of(name, tensor))
    if write.rotation is not None:
        positions, angles = write.rotation.positions, write.rotation.cos_sin_cache
        rights = torch.zeros(step.q.shape, dtype=torch.int32)
        rights[: len(positions)] = READ
        rights[: len(positions), :, : angles.shape[1]] |= WRITE
        regions.append(region("q", step.q, rights, reads="rows that have a position", writes="their rotated dims"))
        regions.append(_all_of("positions", positions))
        of_angles = torch.zeros(len(angles), dtype=torch.int32)
        of_angles[positions] = READ
        regions.append(region("cos_sin_cache", angles, of_angles.view(-1, 1), reads="rows of its positions"))
    return regions


def _all_of(name: str, tensor: torch.Tensor) -> Region:
    return region(name, tensor, READ, reads="its elements")


def _rows_with_slots(write: Write) -> Iterator[Region]:
    """This step's k and v, of which a row whose slot is -1 holds nothing."""
    for name, tensor in {"k": write.k, "v": write.v}.items():
        rights = torch.zeros(len(tensor), dtype=torch.int32)
        rights[: len(write.slot_mapping)] = torch.where(write.slot_mapping >= 0, READ, 0)
        yield region(name, tensor, rights.view(-1, 1, 1), reads="rows that have a slot")


def _read_cache(step: Step, view: KVCacheView, bits: list[int]) -> Iterator[Region]:
    assert step.raw is not None
    assert step.batch.block_table is not None
    rule: dict[str, Any] = {"reads": "slots that hold a key of a request", "owned": True}
    block_size = view.block_size
    cache = torch.zeros(len(step.raw), dtype=torch.int32)
    slot_rights = torch.zeros(view.num_slots, dtype=torch.int32)
    table = torch.zeros(step.batch.block_table.shape, dtype=torch.int32)
    for r, seq_len in enumerate(step.batch.seq_lens.tolist()):
        blocks = step.batch.block_table[r, : -(-seq_len // block_size)].long()
        slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:seq_len]
        cache[_elements(view, slots)] |= READ | bits[r]
        slot_rights[slots] |= READ | bits[r]
        table[r, : len(blocks)] = READ
    yield region("kv_cache", step.raw, cache, place=_place_in(view), **rule)
    yield region("block_table", step.batch.block_table, table, reads="entries of blocks that hold a key")
    for name in ("k_scale_cache", "v_scale_cache"):
        if (scales := getattr(step.layer, name)) is not None:
            yield region(name, scales, slot_rights.view(view.num_blocks, block_size, 1), **rule)


def _elements(view: KVCacheView, slots: torch.Tensor) -> torch.Tensor:
    """[2, HK, row_size, slots] int64: everything that the slots hold, a scale in the row included."""
    block, slot = slots // view.block_size, slots % view.block_size
    head = torch.arange(view.num_kv_heads).view(-1, 1, 1)
    dim = torch.arange(view.row_size).view(-1, 1)
    return torch.stack([view.element(kv, block, slot, head, dim) for kv in (0, 1)])


def _place_in(view: KVCacheView) -> Callable[[int], str]:
    return lambda element: allocations.place_of(view, element)

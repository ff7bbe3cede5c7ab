"""Derives what one call may read and write, for each element of every tensor of a step. The sanitizer enforces it.

    attention   reads rows of q (and of k and v) that a request owns; slots of the request's keys, in the view of its own layer;
                the scales of these slots; the entries of the block table that lead to these blocks; and all
                elements of the other inputs.
                writes the rows of `out` and `lse` that a request owns.
    a write     reads the rows of k and v that have a slot; slot_mapping; the scales; and the angles of its positions.
                writes the slots that slot_mapping names, and the rotated dims of q.

Attention may read a key that a mask hides, because the key exists. A program that has read queries of some requests may read
keys, and write rows, of these requests only.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from attn_contract import KVCacheView
from attn_contract.layouts import K, V
from attn_contract.memory import extent
from attn_fuzz.cases import allocations
from attn_fuzz.cases.tensors import Step, Write

READ, WRITE = 1 << 30, 1 << 29
# request r has bit r % REQUEST_BITS; the sanitizer cannot tell apart requests that share a bit
REQUEST_BITS = 29


@dataclass
class Region:
    """A tensor of a call, and the rights to each element of its storage.

    Attributes:
        name: the tensor's name in messages.
        tensor: the tensor that the target was given. Messages name an element by its indices in this tensor.
        rights: [elements of the storage] int32: READ, WRITE, and the bit of each request to which the element belongs.
        reads, writes: which elements may be read, and which may be written, in words. Empty if no element may.
        owned: True if elements belong to requests.
        place: names an element of the storage; None if the indices in the tensor say enough.
        written: [elements of the storage, bytes of an element] bool, of memory that the call has allocated; else None.
    """

    name: str
    tensor: torch.Tensor
    rights: np.ndarray
    reads: str = ""
    writes: str = ""
    owned: bool = False
    place: Callable[[int], str] | None = None
    written: torch.Tensor | None = None

    @property
    def address(self) -> int:
        return self.tensor.untyped_storage().data_ptr()

    def spans(self, addresses: np.ndarray) -> np.ndarray:
        """[addresses] bool: whether an address lies in the tensor's storage."""
        offset = addresses - np.uint64(self.address)
        return offset < np.uint64(self.tensor.untyped_storage().nbytes())

    def contains(self, address: int) -> bool:
        """True if an address is the address of an element of the tensor, not only of its storage."""
        return self._index((address - self.address) // self.tensor.element_size())[1] == 0

    def describe(self, element: int) -> str:
        """The name of an element of the storage: its indices in the tensor, or its distance from the tensor."""
        if self.place is not None and 0 <= element < len(self.rights):
            return f"{self.name}, {self.place(element)}"
        rest = element - self.tensor.storage_offset()
        last = extent(self.tensor.shape, self.tensor.stride()) - 1
        if rest < 0:
            return f"{self.name}, {-rest} elements before its first"
        if rest > last:
            return f"{self.name}, {rest - last} elements past its last"
        index, rest = self._index(element)
        text = f"{self.name}[{', '.join(map(str, index))}]"
        return f"{rest} elements past {text}" if rest else text

    def _index(self, element: int) -> tuple[tuple[int, ...], int]:
        """The indices of the tensor's last element that is not past `element` of the storage, and the distance of the two."""
        rest, index = element - int(self.tensor.storage_offset()), dict[int, int]()
        for dim in sorted(range(self.tensor.dim()), key=self.tensor.stride, reverse=True):
            index[dim] = max(0, min(rest // max(1, self.tensor.stride(dim)), self.tensor.shape[dim] - 1))
            rest -= index[dim] * self.tensor.stride(dim)
        return tuple(index[dim] for dim in range(self.tensor.dim())), rest


def region(name: str, tensor: torch.Tensor, rights: torch.Tensor | int, **rule: Any) -> Region:
    """A Region whose rights broadcast to the tensor's shape. Elements of the storage outside of the tensor have no rights."""
    storage = tensor.untyped_storage()
    whole = torch.zeros(storage.nbytes() // tensor.element_size(), dtype=torch.int32)
    whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())[...] = rights
    return Region(name, tensor, whole.numpy(), **rule)


def of_attention(step: Step) -> list[Region]:
    """The memory that `Target.attention` may touch: which elements may be read, which written, and which requests own them."""
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
    """The memory that `Target.write_kv_cache` or `Target.rope_and_write_kv_cache` may touch."""
    assert step.raw is not None
    slots = write.slot_mapping[write.slot_mapping >= 0]
    rule = {"writes": "slots that slot_mapping names"}
    cache = torch.zeros(len(step.raw), dtype=torch.int32)
    for kv in (K, V):
        cache[_elements(write.view, kv, slots)] = WRITE
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
    """The regions of k and v that a write reads. A row whose slot is -1 may not be read."""
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
    slot_rights, beside_rights = torch.zeros(2, view.num_slots, dtype=torch.int32)
    table = torch.zeros(step.batch.block_table.shape, dtype=torch.int32)
    for r, num_keys in enumerate(step.layer.num_keys(step.batch.seq_lens).tolist()):
        blocks = step.batch.block_table[r, : -(-num_keys // block_size)].long()
        slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:num_keys]
        slot_rights[slots] |= READ | bits[r]
        beside_rights[_beside(view, blocks, num_keys)] |= READ | bits[r]
        table[r, : len(blocks)] = READ
    held, beside = slot_rights.nonzero().flatten(), beside_rights.nonzero().flatten()
    for kv in (K, V):
        cache[_elements(view, kv, held)] = slot_rights[held]
    if len(beside):
        cache[_elements(view, V, beside)] |= beside_rights[beside]
    yield region("kv_cache", step.raw, cache, place=_place_in(view), **rule)
    yield region("block_table", step.batch.block_table, table, reads="entries of blocks that hold a key")
    for name in ("k_scale_cache", "v_scale_cache"):
        if (scales := getattr(step.layer, name)) is not None:
            yield region(name, scales, slot_rights.view(view.num_blocks, block_size, 1), **rule)


def _beside(view: KVCacheView, blocks: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Slots after a request's keys whose values share 16 bytes of a dim with those of keys: only in x-packed layouts."""
    if not view.layout.is_x_packed:
        return blocks[:0]
    key = torch.arange(num_keys, -(-num_keys // view.x) * view.x)
    return blocks[key // view.block_size] * view.block_size + key % view.block_size


def _elements(view: KVCacheView, kv: int, slots: torch.Tensor) -> torch.Tensor:
    """[HK, row, slots] int64: the elements of the cache's storage that K or V of the slots take, scales in a row included."""
    block, slot = slots // view.block_size, slots % view.block_size
    head = torch.arange(view.num_kv_heads).view(-1, 1, 1)
    return view.element(kv, block, slot, head, torch.arange(view.row_sizes[kv]).view(-1, 1))


def _place_in(view: KVCacheView) -> Callable[[int], str]:
    return lambda element: allocations.place_of(view, element)

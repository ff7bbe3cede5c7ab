"""The whole input of one check as plain data: it prints, diffs, shrinks and mails.

A case holds numbers and a seed, never tensors; `attn_fuzz.tensors` makes those. Field defaults are the simplest choice, so a
small case is also a short file.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from attn_contract import AttentionType, Layout
from msgspec import Meta

SCHEMA = "attn-parity.case/1"
MAX_ELEMENTS = 1 << 26
MAX_BYTES = 1 << 24

Count = Annotated[int, Meta(ge=0, le=1 << 20)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Edge = Annotated[int, Meta(ge=-1, le=1 << 20)]
Dtype = Literal["float32", "float16", "bfloat16"]
ValueKind = Literal["exact", "one_hot", "signature", "random", "extreme"]
SinkKind = Literal["off", "zero", "near", "above", "below"]


class CaseError(ValueError):
    """A case file that cannot be read, or a case whose fields contradict each other."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request of the batch.

    `blocks` is the request's row of the block table as far as it is used (empty where there is no cache). Blocks that two
    requests share hold a common prefix.
    """

    query_len: Count
    seq_len: Count
    blocks: tuple[Count, ...] = ()
    causal: bool = False


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The raw allocation that holds K and V, and who else looks at it.

    Attributes:
        layout: order of dimensions of the view that the layer under test is given.
        planes: physically a K plane and then a V plane, instead of K and V side by side in each block. Any layout can view
            either, by its strides (vLLM #43945).
        padding: unused elements after each block.
        writer: another layout through which this step's K and V are written; both views address the same elements.
        neighbour: the layout of a second layer, which owns the blocks that no request does; both have one footprint.
    """

    layout: Layout
    block_size: Size
    num_blocks: Size
    planes: bool = False
    padding: Count = 0
    writer: Layout | None = None
    neighbour: Layout | None = None


class Values(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tensors are filled; the kinds are explained in `attn_fuzz.tensors`."""

    kind: ValueKind = "exact"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0


class Case(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, tag_field="schema", tag=SCHEMA
):
    """One step of one layer: write this step's K and V, then attend.

    Attributes:
        target: name of what is checked; `replay --target` overrides it.
        group_size: query heads per KV head.
        window: (left, right), -1 unlimited.
        narrow_sinks: sinks are of the layer's dtype instead of float32.
        per_request_causal: pass `causal` as a tensor; otherwise all requests agree.
        unowned_rows: rows of q after the last request that still count in num_actual_tokens.
        rows_past: rows of q after num_actual_tokens.
        kv_rows_past: rows of k and v after the last slot.
        unwritten: query rows whose slot is -1 although their K and V are in the cache (written before).
        writes: whether this step writes at all (cross-attention does so once).
        recycled: keys that no query sees hold NaN, as blocks outside every window do once they are given to others.
        table_padding: extra columns of the block table; they and all other unused entries hold garbage.
        slack: added to max_query_len and max_seq_len, which are upper bounds.
        fused_qkv: q, k and v are slices of one tensor.
        flat_out: out is [T, H*D].
        return_lse: ask for the LSE too.
    """

    target: str
    attn_type: AttentionType = AttentionType.DECODER
    dtype: Dtype = "float32"
    num_kv_heads: Size = 1
    group_size: Size = 1
    head_size: Size = 16
    scale: float = 1.0
    window: tuple[Edge, Edge] = (-1, -1)
    sinks: SinkKind | None = None
    narrow_sinks: bool = False
    per_request_causal: bool = False
    requests: tuple[Request, ...] = ()
    cache: Cache | None = None
    unowned_rows: Count = 0
    rows_past: Count = 0
    kv_rows_past: Count = 0
    unwritten: tuple[Count, ...] = ()
    writes: bool = True
    recycled: bool = False
    table_padding: Count = 0
    slack: Count = 0
    fused_qkv: bool = False
    flat_out: bool = False
    return_lse: bool = False
    values: Values = Values()

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def query_start_loc(self) -> list[int]:
        starts = [0]
        for request in self.requests:
            starts.append(starts[-1] + request.query_len)
        return starts

    @property
    def num_actual_tokens(self) -> int:
        return self.query_start_loc[-1] + self.unowned_rows

    @property
    def num_rows(self) -> int:
        return self.num_actual_tokens + self.rows_past


def check(case: Case) -> None:
    """Raise CaseError where fields contradict each other, so that what is left is a valid call of the contract."""
    if (case.cache is not None) != case.attn_type.reads_cache:
        raise CaseError(f"cache: {case.attn_type} {'needs one' if case.attn_type.reads_cache else 'has none'}")
    if case.scale and not 1e-6 <= abs(case.scale) <= 1e6:
        raise CaseError(f"scale: got {case.scale}, expected 0, or a magnitude between 1e-6 and 1e6")
    if case.attn_type is AttentionType.ENCODER_DECODER and case.window != (-1, -1):
        raise CaseError("window: cross-attention has none")
    flags = {request.causal for request in case.requests}
    if case.attn_type is not AttentionType.DECODER and (True in flags or case.per_request_causal):
        raise CaseError(f"requests.causal: {case.attn_type} is never causal")
    if len(flags) > 1 and not case.per_request_causal:
        raise CaseError("requests.causal: they differ, so per_request_causal must be true")
    rows = case.query_start_loc[-1]
    if any(row >= rows for row in case.unwritten):
        raise CaseError(f"unwritten: a row past the last query row ({rows - 1})")
    if case.cache is None:
        _check_dense(case)
    else:
        _check_blocks(case, case.cache)
    if _num_elements(case) > MAX_ELEMENTS:
        raise CaseError(f"case: its tensors would hold more than {MAX_ELEMENTS} elements")


def _check_dense(case: Case) -> None:
    for r, request in enumerate(case.requests):
        if request.seq_len != request.query_len:
            raise CaseError(f"requests[{r}].seq_len: without a cache it equals query_len ({request.query_len})")
        if request.blocks:
            raise CaseError(f"requests[{r}].blocks: without a cache there are none")
    if not case.writes or case.unwritten or case.recycled:
        raise CaseError("writes, unwritten, recycled: they speak of a cache and there is none")


def _check_blocks(case: Case, cache: Cache) -> None:
    for r, request in enumerate(case.requests):
        used = -(-request.seq_len // cache.block_size)
        if len(request.blocks) != used:
            raise CaseError(f"requests[{r}].blocks: got {len(request.blocks)}, expected {used} for {request.seq_len} keys")
        if any(block >= cache.num_blocks for block in request.blocks):
            raise CaseError(f"requests[{r}].blocks: a block past the cache's last ({cache.num_blocks - 1})")
        if len(set(request.blocks)) != len(request.blocks):
            raise CaseError(f"requests[{r}].blocks: a block twice in one request")
    slots = [slot for slot in written_slots(case) if slot >= 0]
    if len(set(slots)) != len(slots):
        raise CaseError("requests.blocks: two requests would write one slot")


def written_slots(case: Case) -> list[int]:
    """slot_mapping of the step: one slot per written row of k and v, -1 where nothing is written."""
    cache = case.cache
    if cache is None or not case.writes:
        return []
    slots: list[int] = []
    for request in case.requests:
        self_attention = case.attn_type is AttentionType.DECODER
        first = request.seq_len - request.query_len if self_attention else 0
        for position in range(first, request.seq_len):
            slots.append(slot_of(request, cache, position) if position >= 0 else -1)
    if case.attn_type is AttentionType.DECODER:
        for row in case.unwritten:
            slots[row] = -1
        slots += [-1] * case.unowned_rows
    return slots


def slot_of(request: Request, cache: Cache, position: int) -> int:
    return request.blocks[position // cache.block_size] * cache.block_size + position % cache.block_size


def _num_elements(case: Case) -> int:
    head = case.head_size * case.num_kv_heads
    in_cache = 0
    if case.cache is not None:
        in_cache = case.cache.num_blocks * (2 * case.cache.block_size * head + case.cache.padding)
    table = len(case.requests) * (max((len(r.blocks) for r in case.requests), default=0) + case.table_padding)
    scores = case.num_heads * sum(request.query_len * request.seq_len for request in case.requests)
    rows = case.num_rows + case.kv_rows_past + 1  # even without rows there are guards
    table = len(case.requests) * case.table_padding
    return table + in_cache + rows * case.group_size * head + sum(r.seq_len for r in case.requests) * head + scores + table


_decoder = msgspec.json.Decoder(Case)


def dumps(case: Case) -> str:
    return msgspec.json.format(msgspec.json.encode(case), indent=1).decode()


def loads(text: str | bytes) -> Case:
    """Read a case.

    Raises:
        CaseError: not JSON, another schema, an unknown field or value, or fields that contradict each other.
    """
    try:
        head = msgspec.json.decode(text)
        found = head.get("schema") if isinstance(head, dict) else None
        if found != SCHEMA:
            raise CaseError(f"schema: got {found!r}, expected {SCHEMA!r}")
        case = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CaseError(str(error)) from None
    check(case)
    return case


def load(path: Path) -> Case:
    """Read a case file; CaseError names the file."""
    try:
        if path.exists() and not path.is_file():
            raise CaseError("not a file")
        if path.stat().st_size > MAX_BYTES:
            raise CaseError(f"larger than {MAX_BYTES} bytes: not a case")
        return loads(path.read_bytes())
    except OSError as error:
        raise CaseError(f"{path}: {error.strerror}") from None
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None

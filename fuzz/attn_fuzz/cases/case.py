"""The whole input of one check as plain data: it prints, diffs, shrinks and mails.

A case holds numbers and a seed, never tensors; `attn_fuzz.cases.tensors` makes those. Field defaults are the simplest choice,
so a small case is also a short file.
"""

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from attn_contract import RULES, AttentionType, Layout, PhysicalOrder
from attn_fuzz.errors import InputError
from msgspec import Meta

SCHEMA = "attn-parity.case/2"
# of all tensors together: half a gigabyte of float32, and a few copies
MAX_ELEMENTS = 1 << 27
MAX_BYTES = 1 << 24
GUARD = 64  # rows before and after outputs: about a kernel's tile of queries
MAX_REQUESTS = 1 << 12
MAX_RANGES = 1 << 8
MESSAGE = 200

Count = Annotated[int, Meta(ge=0, le=1 << 20)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Edge = Annotated[int, Meta(ge=-1, le=1 << 20)]
Position = Annotated[int, Meta(ge=-(1 << 20), le=1 << 20)]
Dtype = Literal["float32", "float16", "bfloat16"]
Float8 = Literal["fp8_e4m3fn", "fp8_e4m3fnuz"]
Quantized = Literal["fp8_e4m3fn", "fp8_e4m3fnuz", "int8"]
ScaleKind = Literal["tensor", "head", "token"]
ValueKind = Literal["exact", "one_hot", "signature", "random", "extreme", "captured"]
SinkKind = Literal["off", "zero", "near", "above", "below"]
BiasKind = Literal["tree", "random"]
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


class CaseError(InputError):
    """A case file that cannot be read, or a case whose fields contradict each other."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request of the batch.

    `blocks` is the request's row of the block table as far as it is used (empty where there is no cache). Blocks that two
    requests share hold a common prefix. `bidirectional_ranges` are inclusive positions (first, last) that see each other both
    ways.
    """

    query_len: Count
    seq_len: Count
    blocks: tuple[Count, ...] = ()
    causal: bool = False
    bidirectional_ranges: Annotated[tuple[tuple[Position, Position], ...], Meta(max_length=MAX_RANGES)] = ()

    @property
    def context_len(self) -> int:
        """The position of the first query; negative where there are fewer keys than queries."""
        return self.seq_len - self.query_len


class Cache(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The raw allocation that holds K and V, and who else looks at it.

    Attributes:
        layout: order of dimensions of the view that the layer under test is given.
        planes: physically a K plane and then a V plane, instead of K and V side by side in each block. Any layout but the
            content-packed ones can view either, by its strides (vLLM #43945).
        padding: unused elements after each block.
        order, num_layers, layer: where rows hold K and V side by side: what the allocation is made of, from the outside in,
            how many layers share it, and which of them is under test.
        dtype: of a quantized cache; None: the layer's.
        scales: of a quantized cache; None exactly where there are none, or each row holds its own.
        writer: another layout through which this step's K and V are written; both views address the same elements.
        neighbour: the layout of a second layer, which owns the blocks that no request does; both have one footprint.
    """

    layout: Layout
    block_size: Size
    num_blocks: Size
    planes: bool = False
    padding: Count = 0
    order: PhysicalOrder = PhysicalOrder.LBHNC
    num_layers: Annotated[int, Meta(ge=1, le=64)] = 1
    layer: Count = 0
    dtype: Quantized | None = None
    scales: ScaleKind | None = None
    writer: Layout | None = None
    neighbour: Layout | None = None

    @property
    def holds_content_rows(self) -> bool:
        """Whether K and V lie side by side in each row, so that the allocation has a physical order."""
        return any(layout is not None and "content" in layout.dims for layout in (self.layout, self.writer))

    @property
    def scales_tokens(self) -> bool:
        """Whether each token and head has a scale of its own."""
        return self.scales == "token" or self.layout.has_inline_scales


class Rope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The step rotates q in place and writes rotated keys.

    Attributes:
        rotary_dim: even; dims past it pass through.
        neox: whether dims i and i + rotary_dim / 2 are a pair, instead of 2i and 2i + 1.
        narrow_cache: cos_sin_cache is of the layer's dtype instead of float32.
        all_rows: positions are given for all rows of q, as a captured graph pads them; there are then fewer slots.
    """

    rotary_dim: Size
    neox: bool = True
    narrow_cache: bool = False
    all_rows: bool = False


class Values(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tensors are filled; the kinds are explained in `attn_fuzz.cases.contents`, a captured call's in `captures`.

    Attributes:
        seed: of what is drawn.
        file, sha256: of a captured call: the file with its tensors, by a plain name beside the case (in memory, by its path),
            and that file's hash. The case's own sinks, alibi_slopes, qq_bias and scales then say that there are some.
    """

    kind: ValueKind = "exact"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    file: str | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None


class Case(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, tag_field="schema", tag=SCHEMA
):
    """One step of one layer: write this step's K and V, then attend.

    A rule of `attn_contract.rules` is an attribute of the rule's name. A rule of tensors is a flag or the kind of its values.

    Attributes:
        target: name of what is checked; `replay --target` overrides it.
        group_size: query heads per KV head.
        window: (left, right), -1 unlimited.
        sink_tokens, chunked_local, ranges_clamped, logits_soft_cap: as in `attn_contract.Layer`.
        alibi_slopes: there are slopes, drawn from the seed.
        qq_bias: a tree of drafts, whose tokens see their ancestors only, or random numbers.
        narrow_sinks: sinks are of the layer's dtype instead of float32.
        per_request_causal: pass `causal` as a tensor; otherwise all requests agree.
        unowned_rows: rows of q after the last request that still count in num_actual_tokens.
        rows_past: rows of q after num_actual_tokens.
        kv_rows_past: rows of k and v after the last slot.
        unwritten: query rows whose slot is -1 although their K and V are in the cache (written before).
        writes: whether this step writes at all (cross-attention does so once).
        recycled: keys that no query sees hold NaN, as blocks outside every window do once they are given to others.
        finite_slots: slots that hold no key, and those of `recycled`, hold a finite number, as earlier requests leave them,
            instead of NaN.
        table_padding: extra columns of the block table; they and all other unused entries hold garbage.
        slack: added to max_query_len and max_seq_len, which are upper bounds.
        fused_qkv: q, k and v are slices of one tensor.
        rope: the step's write rotates q and k.
        output_dtype: out is of that type, with an output_scale.
        flat_out: out is [T, H*D].
        lse: ask for the LSE too.
    """

    target: Annotated[str, Meta(max_length=MESSAGE)]
    attn_type: AttentionType = AttentionType.DECODER
    dtype: Dtype = "float32"
    num_kv_heads: Size = 1
    group_size: Size = 1
    head_size: Size = 16
    scale: float = 1.0
    window: tuple[Edge, Edge] = (-1, -1)
    sink_tokens: Count = 0
    chunked_local: Size | None = None
    ranges_clamped: bool = False
    logits_soft_cap: float | None = None
    alibi_slopes: bool = False
    qq_bias: BiasKind | None = None
    sinks: SinkKind | None = None
    narrow_sinks: bool = False
    per_request_causal: bool = False
    requests: Annotated[tuple[Request, ...], Meta(max_length=MAX_REQUESTS)] = ()
    cache: Cache | None = None
    unowned_rows: Count = 0
    rows_past: Count = 0
    kv_rows_past: Count = 0
    unwritten: tuple[Count, ...] = ()
    writes: bool = True
    recycled: bool = False
    finite_slots: bool = False
    table_padding: Count = 0
    slack: Count = 0
    fused_qkv: bool = False
    rope: Rope | None = None
    output_dtype: Float8 | None = None
    flat_out: bool = False
    lse: bool = False
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

    @property
    def max_query_len(self) -> int:
        return max((request.query_len for request in self.requests), default=0) + self.slack

    @property
    def bidirectional_ranges(self) -> bool:
        return any(request.bidirectional_ranges for request in self.requests)

    @property
    def non_causal(self) -> bool:
        """Whether some request of a decoder is not causal."""
        decoder = self.attn_type is AttentionType.DECODER
        return decoder and (self.per_request_causal or not any(request.causal for request in self.requests))

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that the step asks for, with what the case says of each."""
        found = {name: getattr(self, name, rule.off) for name, rule in RULES.items()}
        return {name: value for name, value in found.items() if value and RULES[name].is_asked(value)}

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return 1 if self.cache is not None and self.cache.dtype else ITEMSIZE[self.dtype]


def check(case: Case) -> None:
    """Raise CaseError where fields contradict each other, so that what is left is a valid call of the contract."""
    if num_elements(case) > MAX_ELEMENTS:  # first: what follows goes through the rows one by one
        raise CaseError(f"case: its tensors would hold more than {MAX_ELEMENTS} elements")
    if (case.cache is not None) != case.attn_type.reads_cache:
        raise CaseError(f"cache: {case.attn_type} {'needs one' if case.attn_type.reads_cache else 'has none'}")
    if case.scale and not 1e-6 <= abs(case.scale) <= 1e6:
        raise CaseError(f"scale: got {case.scale}, expected 0, or a magnitude between 1e-6 and 1e6")
    if case.logits_soft_cap is not None and not 1e-3 <= case.logits_soft_cap <= 1e6:
        raise CaseError(f"logits_soft_cap: got {case.logits_soft_cap}, expected null, or a number between 1e-3 and 1e6")
    _check_rules(case)
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
        _check_allocation(case, case.cache)
        _check_blocks(case, case.cache)
    if case.rope is not None:
        _check_rope(case, case.rope)
    _check_values(case)


def _check_rules(case: Case) -> None:
    for name in case.rules:
        if case.attn_type not in RULES[name].attn_types:
            raise CaseError(f"{name}: {case.attn_type} has none: {RULES[name].why_not}")


def _check_dense(case: Case) -> None:
    for r, request in enumerate(case.requests):
        if request.seq_len != request.query_len:
            raise CaseError(f"requests[{r}].seq_len: without a cache it equals query_len ({request.query_len})")
        if request.blocks:
            raise CaseError(f"requests[{r}].blocks: without a cache there are none")
    if not case.writes or case.unwritten or case.recycled or case.finite_slots:
        raise CaseError("writes, unwritten, recycled, finite_slots: they speak of a cache and there is none")


def _check_allocation(case: Case, cache: Cache) -> None:
    """Layouts, dtype and scales of the cache, and the views that look at it."""
    head_unit, block_unit = cache.layout.units(case.itemsize)
    if case.head_size % head_unit or cache.block_size % block_unit or (cache.layout.has_inline_scales and cache.padding % 4):
        sizes = f"a head_size that is a multiple of {head_unit} and a block_size that is a multiple of {block_unit}"
        rest = ", and a padding that is a multiple of 4" if cache.layout.has_inline_scales else ""
        raise CaseError(f"cache.layout: {cache.layout} needs {sizes}{rest}")
    if cache.layout.has_inline_scales and cache.dtype is None:
        raise CaseError(f"cache.dtype: {cache.layout} holds scales, so it is quantized")
    if (cache.scales is not None) != (cache.dtype is not None and not cache.layout.has_inline_scales):
        raise CaseError("cache.scales: null exactly where the cache is not quantized, or each row holds its own")
    if cache.dtype == "int8" and cache.scales in ("tensor", "head"):
        raise CaseError("cache.scales: int8 has a scale for each token")
    if not cache.holds_content_rows and (cache.order, cache.num_layers) != (PhysicalOrder.LBHNC, 1):
        raise CaseError("cache.order, cache.num_layers: only content-packed allocations have them")
    if cache.layer >= cache.num_layers:
        raise CaseError(f"cache.layer: got {cache.layer}, expected less than num_layers ({cache.num_layers})")
    if cache.holds_content_rows and cache.planes:
        raise CaseError("cache.planes: rows that hold K and V are in no plane")
    if cache.writer is not None and cache.writer not in writers(case, cache):
        raise CaseError(f"cache.writer: {cache.writer} cannot address the elements of {cache.layout}")
    if cache.neighbour is not None and cache.neighbour not in neighbours(case, cache):
        raise CaseError(f"cache.neighbour: {cache.neighbour} cannot have the footprint of {cache.layout} here")


ROWS = (Layout.BLOCKS_FIRST_NHD, Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND)
X_PACKED = (Layout.X_PACKED, Layout.SHUFFLED)


def writers(case: Case, cache: Cache) -> tuple[Layout, ...]:
    """Layouts whose views can address the same elements (`attn_contract.same_elements`)."""
    if cache.layout in X_PACKED:
        return X_PACKED if cache.block_size == 16 // case.itemsize else (cache.layout,)
    if cache.layout.has_inline_scales:
        return (cache.layout,)
    return ROWS if cache.planes else (*ROWS, Layout.CONTENT_PACKED)


def neighbours(case: Case, cache: Cache) -> tuple[Layout, ...]:
    """Layouts whose views can have the same footprint (`attn_contract.same_footprint`)."""
    if cache.layout.has_inline_scales:
        return (cache.layout,)
    head_unit, block_unit = Layout.X_PACKED.units(case.itemsize)
    fits = case.head_size % head_unit == 0 and cache.block_size % block_unit == 0 and not scatters_heads(case, cache)
    return (*ROWS, *(X_PACKED if fits else ()), *(() if cache.planes else (Layout.CONTENT_PACKED,)))


def scatters_heads(case: Case, cache: Cache) -> bool:
    """Whether other blocks or layers lie between the heads of one block."""
    between = {PhysicalOrder.LHBNC: cache.num_blocks > 1 or cache.padding > 0, PhysicalOrder.BHLNC: cache.num_layers > 1}
    return cache.holds_content_rows and case.num_kv_heads > 1 and between.get(cache.order, False)


def _check_rope(case: Case, rope: Rope) -> None:
    if not case.writes:
        raise CaseError("rope: only steps that write have it")
    if rope.rotary_dim % 2 or rope.rotary_dim > case.head_size:
        raise CaseError(f"rope.rotary_dim: got {rope.rotary_dim}, expected an even number, at most head_size")


def _check_values(case: Case) -> None:
    captured = case.values.kind == "captured"
    if (captured, captured) != (case.values.file is not None, case.values.sha256 is not None):
        raise CaseError("values.file, values.sha256: a captured case has both, and no other one has")
    if captured and case.cache is not None and (case.writes or case.recycled or case.cache.neighbour is not None):
        raise CaseError("writes, recycled, cache.neighbour: off in a captured case, whose cache holds what it held")


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


def slots_of_keys(case: Case, cache: Cache) -> list[int]:
    """The slots that hold a key of some request, in order."""
    return sorted({slot_of(request, cache, position) for request in case.requests for position in range(request.seq_len)})


def slot_of(request: Request, cache: Cache, position: int) -> int:
    return request.blocks[position // cache.block_size] * cache.block_size + position % cache.block_size


def num_elements(case: Case) -> int:
    """Of the tensors of a case, about; scores are not among them, which only an oracle holds."""
    head = case.head_size * case.num_kv_heads
    in_cache = 0
    if case.cache is not None:
        row = 2 * (case.head_size + 4) * case.num_kv_heads  # with inline scales, or so many of its own
        block = case.cache.num_layers * (case.cache.block_size * row + case.num_kv_heads * case.cache.padding)
        in_cache = (case.cache.num_blocks + 2) * block  # with guards of a block each; heads and layers may each be padded
    ranges = max((len(request.bidirectional_ranges) for request in case.requests), default=0)
    table = len(case.requests) * (max((len(r.blocks) for r in case.requests), default=0) + case.table_padding + 2 * ranges)
    rows = case.num_rows + case.kv_rows_past + 2 * GUARD
    tree = (case.max_query_len + 1) ** 2 if case.qq_bias else 0
    angles = sum(request.seq_len for request in case.requests) * case.rope.rotary_dim if case.rope else 0
    dense = rows * case.group_size * head + sum(r.seq_len for r in case.requests) * head
    return table + in_cache + dense + tree + angles


_decoder = msgspec.json.Decoder(Case)


def dumps(case: Case) -> str:
    if case.values.file is not None:
        case = _with_file(case, Path(case.values.file).name)
    return msgspec.json.format(msgspec.json.encode(case), indent=1).decode()


def _with_file(case: Case, file: str) -> Case:
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, file=file))


def loads(text: str | bytes) -> Case:
    """Read a case.

    Raises:
        CaseError: not JSON, another schema, an unknown field or value, fields that contradict each other, or a file that does
            not lie beside the case.
    """
    try:
        head = msgspec.json.decode(text)
        found = head.get("schema") if isinstance(head, dict) else None
        if found != SCHEMA:
            raise CaseError(f"schema: got {repr(found)[:MESSAGE]}, expected {SCHEMA!r}")
        case = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # it quotes the file: names of fields may be long, and may control terminals
        said = str(error)[:MESSAGE]
        raise CaseError("".join(character if character.isprintable() else "?" for character in said)) from None
    check(case)
    file = case.values.file
    if file is not None and not (file.endswith(".safetensors") and file.isprintable() and not set(file) & {"/", "\\"}):
        raise CaseError(f"values.file: got {file!r}, expected the plain name of a .safetensors file beside the case")
    return case


def save(path: Path, case: Case) -> None:
    """Write a case file all at once: on a full disk, the file is as it was before, or not there."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(dumps(case) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None  # of a full disk it names no file


def load(path: Path) -> Case:
    """Read a case file, its tensors beside it if it has any; CaseError names the file."""
    try:
        if path.exists() and not path.is_file():
            raise CaseError("not a file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise CaseError(f"larger than {MAX_BYTES} bytes: not a case")
        case = loads(text)
        return case if case.values.file is None else _with_file(case, str(path.resolve().parent / case.values.file))
    except OSError as error:
        raise CaseError(f"{path}: {error.strerror}") from None
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None

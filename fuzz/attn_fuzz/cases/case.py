"""A case: the whole input of one check as plain data, which can be printed, compared, made smaller and sent by mail.

A case holds numbers and a seed, never tensors. `attn_fuzz.cases.tensors` makes the tensors of a case. Field defaults are the
simplest choice, so a small case is also a short file.
"""

import random
from typing import Annotated, Any, Literal, get_args

from attn_contract import RULES, AttentionType, Batch, Layer, Layout, PhysicalOrder
from attn_contract.latent_format import LatentFormat
from attn_contract.rules import held_rules
from attn_fuzz import extras
from attn_fuzz.errors import InputError
from attn_fuzz.inputs import MAX_QUOTE

try:
    import msgspec
    from msgspec import Meta
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(extras.missing("msgspec"), name=error.name) from None

SCHEMA = "attn-parity.case/2"
# elements of all tensors of a case: half a gigabyte of float32, of which a check makes a few copies
MAX_ELEMENTS = 1 << 27
GUARD = 64  # rows before and after outputs: about a kernel's tile of queries
MAX_REQUESTS = 1 << 12
MAX_RANGES = 1 << 8

Count = Annotated[int, Meta(ge=0, le=1 << 20)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Edge = Annotated[int, Meta(ge=-1, le=1 << 20)]
Position = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
Dtype = Literal["float32", "float16", "bfloat16"]
Float8 = Literal["fp8_e4m3fn", "fp8_e4m3fnuz"]
Quantized = Literal["fp8_e4m3fn", "fp8_e4m3fnuz", "int8"]
ScaleKind = Literal["tensor", "head", "token"]
QueryScaleKind = Literal["tensor", "head"]
ValueKind = Literal["exact", "one_hot", "signature", "random", "extreme", "below", "captured"]
SinkKind = Literal["off", "zero", "near", "above", "below", "some"]
BiasKind = Literal["tree", "random", "hiding"]
SelectionKind = Literal["some", "top", "holes", "all", "ahead"]
ProgramOrder = Literal["in order", "reversed", "shuffled"]
PROGRAM_ORDERS: tuple[ProgramOrder, ...] = get_args(ProgramOrder)
CONTENTS, MODE, ILLEGAL = "contents", "mode", "illegal"
MAX_EARLIER = 3
CHOICES = 1009
"""The number of combinations of forms that seeds of values choose from."""
_HELD_RULES = {**held_rules(Layer), **held_rules(Batch)}
CHANGES = (
    *("same", "output strides", "output dtype", "lse", "lse strides", "q strides", "k strides", "v strides"),
    *(
        "cache strides",
        "table strides",
        "dtype",
        "cache dtype",
        "layout",
        "rows",
        "heads",
        "kv_heads",
        "head_size",
        "scale",
        "scales",
        "causal",
        "per_request_causal",
    ),
    *("alignment", "k alignment", "v alignment", "output alignment", "cache alignment"),
    *("requests", "max_query_len", "max_seq_len", "num_actual_tokens", CONTENTS, MODE, ILLEGAL),
    *_HELD_RULES,
    *(f"no {name}" for name, rule in _HELD_RULES.items() if not rule.is_tensor and rule.type is not bool),
)
"""Changes that an earlier call may have: `attn_fuzz.cases.earlier` explains each name."""
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


class CaseError(InputError):
    """A case file cannot be read, or the fields of a case contradict each other."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request of the batch.

    `blocks` is the used part of the request's row of the block table, and empty without a cache. Blocks that two requests
    share hold a common prefix. `bidirectional_ranges` are pairs of positions (first, last), both inclusive. The tokens of a
    range see each other both ways.
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
    """The raw allocation that holds K and V, and the other views of the same memory.

    Attributes:
        layout: order of dimensions of the view that the layer under test is given.
        planes: the allocation is a K plane and then a V plane, instead of K and V side by side in each block. All layouts
            except the content-packed ones can view either form, by their strides (vLLM #43945).
        padding: unused elements after each block.
        slot_padding: unused elements after each row of a latent cache: a multiple of 4 if rows hold float32 scales, and none
            if the scales of a page lie after its rows. Or after each row of K and of V, in layouts that have them apart.
        order, num_layers, layer: only for layouts whose rows hold K and V side by side. `order` is the order of dimensions in
            memory, `num_layers` layers share the allocation, and `layer` is the index of the layer under test.
        dtype: the dtype of a quantized cache; None: the cache has the layer's dtype.
        scales: kind of a quantized cache's scales. None if the cache is not quantized, or if its rows hold their own scales.
        writer: another layout through which this step's K and V are written. Both views address the same elements.
        neighbour: layout of a second layer, which owns all blocks that no request owns. Both layouts have the same footprint.
    """

    layout: Layout
    block_size: Size
    num_blocks: Size
    planes: bool = False
    padding: Count = 0
    slot_padding: Count = 0
    order: PhysicalOrder = PhysicalOrder.LBHNC
    num_layers: Annotated[int, Meta(ge=1, le=64)] = 1
    layer: Count = 0
    dtype: Quantized | None = None
    scales: ScaleKind | None = None
    writer: Layout | None = None
    neighbour: Layout | None = None

    @property
    def holds_content_rows(self) -> bool:
        """True if K and V lie side by side in each row, so that the allocation has a physical order."""
        return any(layout is not None and "content" in layout.dims for layout in (self.layout, self.writer))

    @property
    def scales_tokens(self) -> bool:
        """True if each token and head has a scale of its own."""
        return self.scales == "token" or self.layout.has_inline_scales


class Rope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The step rotates q in place and writes rotated keys.

    Attributes:
        rotary_dim: even number of dims that are rotated; the other dims stay as they are.
        neox: True if dims i and i + rotary_dim / 2 are a pair, instead of 2i and 2i + 1.
        narrow_cache: cos_sin_cache is of the layer's dtype instead of float32.
        all_rows: positions are given for all rows of q, as in a captured graph with padding. There are then fewer slots than
            positions.
    """

    rotary_dim: Size
    neox: bool = True
    narrow_cache: bool = False
    all_rows: bool = False


class Values(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contents of tensors. `attn_fuzz.cases.contents` explains the kinds, and `captures` the kind "captured".

    Attributes:
        seed: the seed of all numbers that are drawn.
        file, sha256: only of a captured call: the file that holds its tensors, and the hash of this file. A case file gives the
            plain name of a file in its folder; in memory, `file` is a path. The case's fields sinks, alibi_slopes, qq_bias and
            scales then say only that the file holds such tensors.
    """

    kind: ValueKind = "exact"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    file: str | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None

    def choice(self, what: str, count: int) -> int:
        """Choose one of `count` forms of `what` by the seed. Seed 0 gives 0, the simplest. Seeds that are CHOICES apart
        agree."""
        chosen = self.seed % CHOICES
        return random.Random(f"{what} {chosen}").randrange(count) if chosen else 0


class Case(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, tag_field="schema", tag=SCHEMA
):
    """One step of one layer: write this step's K and V, then attend.

    A rule of `attn_contract.rules` is the attribute with the rule's name. If the rule's value is a tensor, the attribute is a
    flag or the kind of the tensor's numbers.

    Attributes:
        target: name of the target to check; `replay --target` overrides it.
        group_size: query heads per KV head.
        head_size: the width of q and K, and of V unless there is a head_size_v.
        head_size_v: the width of V and of the output, as in `attn_contract.Layer`. Latent caches have it, and caches of layout
            CONTENT_PACKED may have it.
        window: (left, right), -1 unlimited.
        sink_tokens, chunked_local, ranges_clamped, logits_soft_cap: as in `attn_contract.Layer`.
        q_scale: q is of the cache's float8 type, with one scale or one for each KV head; k, v and the output are of `dtype`.
        alibi_slopes: the layer has slopes, drawn from the seed.
        selection_unit, key_unit: as in `attn_contract.Layer`. Where tokens share a key, the row of k and v of the last of them
            is the key that the step writes, and the rows of the others have slot -1.
        selected: units that each query selects. "some": a few of those that it sees, in any order, and no unit after them.
            "top": as many for each query as a row has entries, or all that it sees, as an indexer selects the best. "holes": as
            "some", with entries of no unit anywhere. "all": all of those. "ahead": as "holes", but of all units of the
            request, of which causality may hide some.
        selected_width: only of a captured call with a selection: how many entries a row of it has.
        empty_selections: some rows select nothing, though they see keys.
        selected_per_head: each KV head has a selection of its own.
        signed_slopes: slopes are negative, 0 and positive by turns, instead of positive.
        qq_bias: "tree": drafts form a tree, and a token sees only its ancestors. "random": random numbers. "hiding": random
            numbers, and -inf anywhere, so that a query may not even see its own key.
        narrow_sinks: sinks are of the layer's dtype instead of float32.
        per_request_causal: `causal` is passed as a tensor. If false, all requests have the same flag.
        unowned_rows: rows of q after the last request that still count in num_actual_tokens.
        rows_past: rows of q after num_actual_tokens.
        kv_rows_past: rows of k and v after the last slot.
        unwritten: query rows whose slot is -1, because an earlier step has written their K and V.
        writes: True if this step writes K and V. Cross-attention writes only in its first step.
        recycled: keys that no query sees hold NaN. An engine gives blocks outside every window to other requests.
        ordinary_writes: the second layer writes ordinary numbers, instead of also NaN, infinities and the numbers where a
            dtype's range ends.
        saturated: some elements of k and v are infinite. A quantized cache holds its largest number instead.
        finite_slots: slots that hold no key, and slots whose key is `recycled`, hold finite numbers instead of NaN, as earlier
            requests leave them.
        table_padding: extra columns of the block table. All unused entries of the table hold garbage.
        slack: added to max_query_len and max_seq_len, which are upper bounds.
        fused_qkv: q, k and v are slices of one tensor.
        unlike_strides: v has larger strides than k unless both are slices of one tensor, and v_scale_cache has its dimensions
            in another order in memory than k_scale_cache. By the seed, padding makes the heads of q, k, v and out whole numbers
            of a vector. For a latent cache, kv_c has larger strides than k_pe. In all tensors
            a dimension of one element has an unusual stride (`attn_fuzz.cases.idle_strides`). A cache of
            bytes that no other layer sees begins one byte later.
        rope: the step's write rotates q and k.
        output_dtype: dtype of a quantized out, which has an output_scale. None: the layer's dtype.
        flat_out: out is [T, H*D].
        dense_out: out is contiguous, instead of lying in rows that are longer than its own.
        lse: the call asks for the LSE too.
        earlier: calls of the target that come before the case's own call, in their order. Each is the case's own call with one
            change, a name of CHANGES. The outputs of earlier calls are not judged. If there are any, changed writes come before
            the case's writes, too (`attn_fuzz.cases.earlier_writes`).
        program_order: the order in which Triton's interpreter runs the programs of each launch. It has no effect on a GPU.
            "in order": by their index. "shuffled": each launch in an order of its own, drawn from the values' seed.
    """

    target: Annotated[str, Meta(max_length=MAX_QUOTE)]
    attn_type: AttentionType = AttentionType.DECODER
    dtype: Dtype = "float32"
    num_kv_heads: Size = 1
    group_size: Size = 1
    head_size: Size = 16
    head_size_v: Size | None = None
    scale: float = 1.0
    window: tuple[Edge, Edge] = (-1, -1)
    sink_tokens: Count = 0
    chunked_local: Size | None = None
    ranges_clamped: bool = False
    selection_unit: Size | None = None
    key_unit: Annotated[int, Meta(ge=2, le=1 << 20)] | None = None
    selected: SelectionKind = "some"
    selected_width: Count | None = None
    empty_selections: bool = False
    selected_per_head: bool = False
    logits_soft_cap: float | None = None
    q_scale: QueryScaleKind | None = None
    alibi_slopes: bool = False
    signed_slopes: bool = False
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
    ordinary_writes: bool = False
    saturated: bool = False
    recycled: bool = False
    finite_slots: bool = False
    table_padding: Count = 0
    slack: Count = 0
    fused_qkv: bool = False
    unlike_strides: bool = False
    rope: Rope | None = None
    output_dtype: Float8 | None = None
    flat_out: bool = False
    dense_out: bool = False
    lse: bool = False
    earlier: Annotated[tuple[str, ...], Meta(max_length=MAX_EARLIER)] = ()
    program_order: ProgramOrder = PROGRAM_ORDERS[0]  # the very string that is read from a file: msgspec leaves out no other
    values: Values = Values()

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def v_head_size(self) -> int:
        """The width of V and of the output."""
        return self.head_size_v or self.head_size

    @property
    def has_latent_cache(self) -> bool:
        """True if V is the beginning of K's row."""
        return self.cache is not None and self.cache.layout.has_latent_value

    @property
    def latent_format(self) -> LatentFormat | None:
        """The format of a latent cache with scales; None of any other cache."""
        return None if self.cache is None else self.cache.layout.latent_format

    @property
    def is_quantized(self) -> bool:
        return self.cache is not None and self.cache.dtype is not None

    @property
    def has_work(self) -> bool:
        """True if a kernel has something to compute: a request with queries and keys."""
        return any(request.query_len and self.num_keys(request) for request in self.requests)

    def num_keys(self, request: Request) -> int:
        """The keys of a request."""
        return request.seq_len // (self.key_unit or 1)

    def position(self, key: int) -> int:
        return (key + 1) * (self.key_unit or 1) - 1

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
        """True if the case has the rule non_causal: a decoder that passes flags per request, or has no causal request."""
        decoder = self.attn_type is AttentionType.DECODER
        return decoder and (self.per_request_causal or not any(request.causal for request in self.requests))

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that the step asks for, by name, with the case's value of each."""
        found = {name: getattr(self, name, rule.off) for name, rule in RULES.items()}
        return {name: value for name, value in found.items() if value and RULES[name].is_asked(value)}

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return 1 if self.cache is not None and self.cache.dtype else ITEMSIZE[self.dtype]


def written_slots(case: Case) -> list[int]:
    """slot_mapping of the step: a slot for each row of k and v, or -1 for a row that is not written."""
    cache = case.cache
    if cache is None or not case.writes:
        return []
    slots: list[int] = []
    for request in case.requests:
        self_attention = case.attn_type is AttentionType.DECODER
        first = request.seq_len - request.query_len if self_attention else 0
        for position in range(first, request.seq_len):
            key, rest = divmod(position + 1, case.key_unit or 1)
            slots.append(slot_of(request, cache, key - 1) if key > 0 and not rest else -1)
    if case.attn_type is AttentionType.DECODER:
        for row in case.unwritten:
            slots[row] = -1
        slots += [-1] * case.unowned_rows
    return slots


def slot_bits(request: Request, cache: Cache, first: int, end: int) -> dict[int, int]:
    """The slots of a request's keys [first, end), as one int for each block: bit i is the block's slot i.

    Bits cost little where a small file asks for many slots.
    """
    found = {}
    for i in range(first // cache.block_size, -(-end // cache.block_size)):
        begins = i * cache.block_size
        low, high = max(first - begins, 0), min(end - begins, cache.block_size)
        found[request.blocks[i]] = (1 << high) - (1 << low)
    return found


def num_slots_of_keys(case: Case, cache: Cache) -> int:
    """The number of slots that hold a key of some request."""
    held: dict[int, int] = {}
    for request in case.requests:
        for block, bits in slot_bits(request, cache, 0, case.num_keys(request)).items():
            held[block] = held.get(block, 0) | bits
    return sum(bits.bit_count() for bits in held.values())


def slots_of_keys(case: Case, cache: Cache) -> list[int]:
    """The slots that hold a key of some request, in ascending order."""
    return sorted({slot_of(request, cache, key) for request in case.requests for key in range(case.num_keys(request))})


def slot_of(request: Request, cache: Cache, key: int) -> int:
    return request.blocks[key // cache.block_size] * cache.block_size + key % cache.block_size


def num_elements(case: Case) -> int:
    """About how many elements the tensors of a case have together. Scores do not count: only the oracle holds them."""
    head = max(case.head_size, case.v_head_size) * case.num_kv_heads
    in_cache = 0
    if case.cache is not None:
        row = (
            2 * (case.head_size + 4) * case.num_kv_heads
        )  # 4 more elements per row make room for scales, inline or in a tensor of their own
        slots = case.cache.block_size * (row + 2 * case.num_kv_heads * case.cache.slot_padding)
        block = case.cache.num_layers * (slots + case.num_kv_heads * case.cache.padding)
        in_cache = (
            case.cache.num_blocks + 2
        ) * block  # a guard of one block on either side; each head of each layer may be padded
    ranges = max((len(request.bidirectional_ranges) for request in case.requests), default=0)
    table = len(case.requests) * (max((len(r.blocks) for r in case.requests), default=0) + case.table_padding + 2 * ranges)
    rows = case.num_rows + case.kv_rows_past + 2 * GUARD
    tree = (case.max_query_len + 1) ** 2 if case.qq_bias else 0
    longest = max(map(case.num_keys, case.requests), default=0)
    width = case.selected_width or (longest // case.selection_unit if case.selection_unit else 0)
    selected = case.num_rows * case.num_kv_heads * width
    angles = sum(request.seq_len for request in case.requests) * case.rope.rotary_dim if case.rope else 0
    dense = rows * case.group_size * head + sum(map(case.num_keys, case.requests)) * head
    return table + in_cache + dense + tree + selected + angles

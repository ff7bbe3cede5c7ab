"""What an exhaustive run enumerates, as data.

A scope is a tuple of parts. A part fixes the number of requests of a call, their lengths, the block sizes and the choices. A
choice is one thing that a call can have or not, such as a window; its settings are the values beside "off". A part enumerates

    each layer: all choices off; one choice at each of its settings; and, if the part has pairs, two choices at each pair of
        their settings
    of each layer, each block size
    of these, each batch of requests: all query lengths, all key lengths, and what the causality and the ranges of the layer
        leave to a request
    of each batch, each block table, up to the symmetries (`attn_fuzz.exhaustive.symmetry`)

Lengths are small on purpose. A rule of visibility compares two positions, so its edges appear among five keys. Other lengths
are those around the ends of tiles, where a kernel begins another tile or splits the keys.

Some settings are of latent caches alone. On a target of other caches they are undefined or left out, and the other way round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from attn_contract import AttentionType, Layout, PhysicalOrder
from attn_fuzz.cases.case import Float8, Rope, SinkKind

Causality = Literal["causal", "non-causal", "per request"]
"""Of a decoder: `causal` is True, False, or a tensor. With a tensor, each request is enumerated with both flags."""
Ranges = Literal["edges", "all"]
"""The bidirectional ranges of a request: one of a few at its edges, or each of those that touch one of its keys."""


@dataclass(frozen=True)
class Setting:
    """One value of a choice.

    Args:
        words: for people.
        fields, cache: the fields of Case and of Cache that it sets.
        causality, ranges: what it says of the requests; None: nothing.
    """

    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    causality: Causality | None = None
    ranges: Ranges | None = None

    @property
    def names(self) -> frozenset[str]:
        """What it sets. Two settings that set the same do not meet in one layer."""
        requests = [name for name in ("causality", "ranges") if getattr(self, name)]
        return frozenset([*self.fields, *(f"cache.{name}" for name in self.cache), *requests])


@dataclass(frozen=True)
class Choice:
    """One thing that a call can have, with its values beside "off"."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a scope; see the module's docstring.

    Args:
        what: for people.
        num_requests: of each call.
        query_lens, seq_lens, block_sizes: all combinations are enumerated. A target that does not serve a block size gets the
            next larger one that it serves.
        choices: of layers.
        pairs: whether layers have two choices at once, too.
        packed: whether calls of one request are run together (`attn_fuzz.exhaustive.packing`). If not, each call is a launch of
            its own.
    """

    what: str
    num_requests: int
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    block_sizes: tuple[int, ...]
    choices: tuple[Choice, ...]
    pairs: bool = False
    packed: bool = False


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A named set of calls, which a run goes through without sampling."""

    name: str
    what: str
    parts: tuple[Part, ...]


def _values(name: str, *values: Any) -> Choice:
    """A choice that is one field of Case, at each of some values."""
    return Choice(name, tuple(Setting(f"{name} {value}", {name: value}) for value in values))


def _windows(*windows: tuple[int, int]) -> Choice:
    return _values("window", *windows)


CAUSALITY = Choice(
    "causality", (Setting("non-causal", causality="non-causal"), Setting("causal per request", causality="per request"))
)
WINDOW = _windows((0, -1), (2, -1), (4, -1), (-1, 0), (-1, 1), (1, 1))
ALL_WINDOWS = _windows(*((left, right) for left in range(-1, 6) for right in range(-1, 4) if (left, right) != (-1, -1)))
SINK_TOKENS = _values("sink_tokens", 1, 2)
ALL_SINK_TOKENS = _values("sink_tokens", 1, 2, 3, 5)
CHUNK = _values("chunked_local", 1, 2)
ALL_CHUNKS = _values("chunked_local", 1, 2, 3, 4, 5)
SOFT_CAP = _values("logits_soft_cap", 0.25)
ALL_SOFT_CAPS = _values("logits_soft_cap", 1e-3, 0.25, 50.0, 1e6)
SLOPES = Choice(
    "alibi_slopes",
    (
        Setting("alibi_slopes", {"alibi_slopes": True}),
        Setting("signed alibi_slopes", {"alibi_slopes": True, "signed_slopes": True, "num_kv_heads": 3}),
    ),
)
# the sinks of neighbouring heads are unlike: a little and far above all logits, on and off. A latent cache has 12 heads for two
SINKS, ALL_SINKS = (
    Choice(
        "sinks",
        tuple(
            Setting(f"sinks {kind} of {heads} heads", {"sinks": kind, "group_size": heads})
            for heads in (2, 12)
            for kind in kinds
        ),
    )
    for kinds in (("near", "above", "below", "some"), get_args(SinkKind))
)
QQ_BIAS = _values("qq_bias", "tree", "random", "hiding")
RANGES = Choice("bidirectional_ranges", (Setting("ranges at edges", ranges="edges"),))
ALL_RANGES = Choice("bidirectional_ranges", (Setting("all ranges", ranges="all"),))
CLAMPED = Choice(
    "ranges_clamped",
    tuple(
        Setting(f"ranges clamped by window {window}", {"ranges_clamped": True, "window": window}, ranges="edges")
        for window in ((0, -1), (1, -1))
    ),
)
LSE = _values("lse", True)
HEADS = Choice(
    "heads",
    (
        Setting("2 query heads of 1 KV head", {"group_size": 2}),
        Setting("2 KV heads", {"num_kv_heads": 2}),
        Setting("3 query heads of each of 2 KV heads", {"num_kv_heads": 2, "group_size": 3}),
        # of latent caches, whose group is one or several tiles of rows: less than 16, and more than 64
        Setting("12 query heads of 1 KV head", {"group_size": 12}),
        Setting("71 query heads of 1 KV head", {"group_size": 71}),
    ),
)
SCALE = _values("scale", 0.0, -0.5)
DTYPE = _values("dtype", "float16", "bfloat16")
ATTN_TYPE = Choice(
    "attn_type",
    (
        Setting("cross-attention", {"attn_type": AttentionType.ENCODER_DECODER}),
        Setting("encoder", {"attn_type": AttentionType.ENCODER}),
        Setting("encoder-only", {"attn_type": AttentionType.ENCODER_ONLY}),
        Setting("encoder whose v has strides of its own", {"attn_type": AttentionType.ENCODER, "unlike_strides": True}),
        Setting("encoder whose v is narrower", {"attn_type": AttentionType.ENCODER, "head_size": 32, "head_size_v": 16}),
    ),
)
LAYOUT = Choice(
    "layout",
    tuple(
        Setting(str(layout), cache={"layout": layout})
        for layout in (Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND, Layout.CONTENT_PACKED)
    )
    + tuple(Setting(str(layout), cache={"layout": layout, "block_size": 4}) for layout in (Layout.X_PACKED, Layout.SHUFFLED))
    + (
        Setting("K and V planes", cache={"planes": True}),
        Setting("padded blocks", cache={"padding": 8}),
        Setting("padded rows of a latent cache", cache={"slot_padding": 4}),
        Setting("latent rows with 3 scales of 128 dims each", {"head_size": 386, "head_size_v": 384}),
        Setting("latent rows with 3 scales of 32 dims each", {"head_size": 96, "head_size_v": 96}),
        Setting("written in another layout", cache={"writer": Layout.KV_FIRST_HND}),
        Setting("planes, written in another layout", cache={"planes": True, "writer": Layout.BLOCKS_FIRST_HND}),
        Setting("a neighbour in another layout", cache={"neighbour": Layout.KV_FIRST_NHD}),
        Setting("int8 in CONTENT_PACKED_SCALED", cache={"layout": Layout.CONTENT_PACKED_SCALED, "dtype": "int8"}),
        Setting("packed rows whose v is narrower", {"head_size": 32, "head_size_v": 16}, {"layout": Layout.CONTENT_PACKED}),
    )
    + tuple(
        Setting(
            f"the second of 2 layers in {order}",
            {"num_kv_heads": 2},
            {"layout": Layout.CONTENT_PACKED, "order": order, "num_layers": 2, "layer": 1},
        )
        for order in PhysicalOrder
    ),
)
QUANTIZED = Choice(
    "quantized cache",
    tuple(
        Setting(f"{dtype}, a scale per {scales}", {"num_kv_heads": 2}, {"dtype": dtype, "scales": scales})
        for dtype, scales in (
            ("fp8_e4m3fn", "tensor"),
            ("fp8_e4m3fn", "head"),
            ("fp8_e4m3fnuz", "head"),
            ("fp8_e4m3fn", "token"),
            ("int8", "token"),
        )
    )
    + tuple(Setting(f"{dtype}, one scale", cache={"dtype": dtype, "scales": "tensor"}) for dtype in get_args(Float8))
    + (Setting("fp8_e4m3fnuz in latent rows with scales", cache={"dtype": "fp8_e4m3fnuz"}),)
    + tuple(
        Setting(f"int8, {words}", {"num_kv_heads": 2, **fields}, {"dtype": "int8", "scales": "token"})
        for words, fields in (
            ("scales of unlike strides", {"unlike_strides": True}),
            ("infinite keys and values", {"saturated": True}),
        )
    ),
)
OUTPUT = _values("output_dtype", "fp8_e4m3fn", "fp8_e4m3fnuz")
ROPE = _values("rope", Rope(rotary_dim=16), Rope(rotary_dim=8), Rope(rotary_dim=16, neox=False))
FORM = Choice(
    "form",
    (
        Setting("nothing written", {"writes": False}),
        Setting("fused qkv", {"fused_qkv": True}),
        Setting("flat out", {"flat_out": True}),
        Setting("dense out", {"dense_out": True}),
        # with a finite number in block 0, since a padded row that is written there is NaN
        Setting("padded rows", {"unowned_rows": 1, "rows_past": 1, "kv_rows_past": 1, "finite_slots": True}),
        Setting("padded table and loose bounds", {"table_padding": 1, "slack": 1}),
        Setting("NaN in keys that no query sees", {"recycled": True, "window": (1, -1)}),
        Setting("a first row of slot -1", {"unwritten": (0,)}),
        Setting("narrow sinks", {"dtype": "float16", "sinks": "near", "narrow_sinks": True, "group_size": 2}),
    ),
)

RULES_OF_MASKS = (CAUSALITY, WINDOW, SINK_TOKENS, CHUNK, RANGES, CLAMPED)
RULES_OF_LOGITS = (SOFT_CAP, SLOPES, SINKS, QQ_BIAS, LSE)
ALL_RULES = (
    *(CAUSALITY, ALL_WINDOWS, ALL_SINK_TOKENS, ALL_CHUNKS, ALL_RANGES, CLAMPED),
    *(ALL_SOFT_CAPS, SLOPES, ALL_SINKS, QQ_BIAS, LSE),
)
FORMATS = (HEADS, SCALE, DTYPE, ATTN_TYPE, LAYOUT, QUANTIZED, OUTPUT, ROPE, FORM)
OF_TWO_REQUESTS = (
    Choice("causality", CAUSALITY.settings[1:]),
    _windows((0, -1)),
    _values("sinks", "near"),
    _values("qq_bias", "random"),
    _values("attn_type", AttentionType.ENCODER_DECODER),
)

RULES = Scope(
    name="rules",
    what="each rule and each format alone, at its edges and inside; and two short requests",
    parts=(
        Part(
            what="one request, blocks of one key",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1,),
            choices=(*RULES_OF_MASKS, *RULES_OF_LOGITS, *FORMATS),
            packed=True,
        ),
        Part(
            what="one request alone in its launch",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 3),
            block_sizes=(2,),
            choices=(*RULES_OF_MASKS, *RULES_OF_LOGITS, *FORMATS),
        ),
        Part(
            what="two requests, blocks of one key",
            num_requests=2,
            query_lens=(0, 1, 2),
            seq_lens=(0, 1, 2),
            block_sizes=(1,),
            choices=OF_TWO_REQUESTS,
        ),
    ),
)


def _masks_at(tile: int) -> tuple[Choice, ...]:
    """Rules of masks with edges around the ends of tiles of so many keys."""
    edges = (tile - 1, tile, tile + 1)
    windows = _windows((0, -1), *((edge, -1) for edge in edges), (-1, 0), (-1, tile - 1), (-1, tile), (tile, tile))
    sink_tokens, chunks = _values("sink_tokens", 1, tile, tile + 1), _values("chunked_local", 1, *edges)
    return (CAUSALITY, windows, sink_tokens, chunks, RANGES, CLAMPED)


CI = Scope(
    name="ci",
    what="the scope rules, each pair of rules of masks and logits, and one request over several tiles of 64 keys",
    parts=(
        RULES.parts[0],
        Part(
            what="one request, pairs of rules",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(2,),
            choices=(*RULES_OF_MASKS, *RULES_OF_LOGITS),
            pairs=True,
            packed=True,
        ),
        *RULES.parts[1:],
        Part(
            what="one request over several tiles, alone in its launch",
            num_requests=1,
            query_lens=(1, 2, 65),
            seq_lens=(64, 65, 129, 321),
            block_sizes=(16,),
            choices=(*_masks_at(64), *RULES_OF_LOGITS, *FORMATS),
        ),
    ),
)

SMALL = Scope(
    name="small",
    what="every rule at every value among five keys, every pair of settings of rules and formats, two requests",
    parts=(
        Part(
            what="one request",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1, 2),
            choices=(*ALL_RULES, *FORMATS),
            pairs=True,
            packed=True,
        ),
        Part(
            what="one request alone in its launch",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1, 2),
            choices=(*ALL_RULES, *FORMATS),
        ),
        Part(
            what="two requests",
            num_requests=2,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(2,),
            choices=(*RULES_OF_MASKS, *RULES_OF_LOGITS, *FORMATS),
        ),
    ),
)


def _tiles(tile: int) -> Scope:
    """Lengths around the ends of tiles of so many keys, so that one call needs up to three tiles."""
    edges = (tile - 1, tile, tile + 1)
    return Scope(
        name=f"tiles-{tile}",
        what=f"lengths around the ends of tiles of {tile} keys",
        parts=(
            Part(
                what="one request over several tiles",
                num_requests=1,
                query_lens=(1, 2, tile + 1),
                seq_lens=(*edges, *(tile + edge for edge in edges)),
                block_sizes=(1, 16),
                choices=(
                    *_masks_at(tile),
                    *(SOFT_CAP, SLOPES, SINKS, QQ_BIAS, LSE, HEADS, DTYPE, ATTN_TYPE, QUANTIZED, OUTPUT, FORM),
                ),
                pairs=True,
                packed=True,
            ),
            Part(
                what="two requests over several tiles",
                num_requests=2,
                query_lens=(1, tile + 1),
                seq_lens=(tile, tile + 1),
                block_sizes=(tile,),
                choices=OF_TWO_REQUESTS,
            ),
        ),
    )


OF_EACH_PART: Final = ("target", "requests", "per_request_causal", "cache", "cache.num_blocks", "values")
"""Fields of Case and of Cache that no setting names, since a part or a choice of requests sets them."""
NOT_ENUMERATED: Final[Mapping[str, str]] = {
    "ordinary_writes": "it is of a neighbour's own numbers, which no output may depend on: a neighbour has the harder ones",
    "earlier": "a scope makes each call once, in any process: calls that change later ones are the fuzzer's",
    "program_order": "programs of interpreted kernels run together here, in no order",
}
"""Fields of Case and of Cache that no scope sets, and why."""
SCOPES: Final[Mapping[str, Scope]] = {scope.name: scope for scope in (RULES, CI, SMALL, _tiles(16), _tiles(64))}

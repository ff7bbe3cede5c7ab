"""What a target supports: the cases that are drawn for it, and those that it must refuse."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from attn_contract import RULES, AttentionType, Layout
from attn_contract.rules import label_of
from attn_fuzz.cases.case import Case, Dtype, Float8, Quantized, ScaleKind
from attn_fuzz.errors import InputError
from attn_fuzz.targets.engine import ANY_ENGINE, Engine
from attn_fuzz.text import one_line


class DeclarationError(InputError):
    """A declaration of a target raised an exception."""


def _nothing(case: Case) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class LatentSizes:
    """The sizes that are drawn for latent caches.

    Args:
        widths: pairs (Lkv, R): the width of V, and how much wider K is. Layouts with scales are drawn with those that
            they can have.
        group_sizes: query heads. A latent cache has one KV head.
        block_sizes: slots of a block.
    """

    widths: tuple[tuple[int, int], ...] = ((32, 16), (16, 8), (8, 0), (64, 32), (24, 8), (8, 32), (128, 16), (256, 0))
    group_sizes: tuple[int, ...] = (16, 1, 12, 71, 128)
    block_sizes: tuple[int, ...] = (16, 1, 64)


@dataclass(frozen=True, kw_only=True)
class Support:
    """The attention types, rules, dtypes, layouts and sizes that a target supports.

    The target must be right in everything that is declared here. It must refuse every other attention type, rule, quantized
    cache and quantized output, with a ValueError or a NotImplementedError before anything is written. Sizes, dtypes, layouts,
    `engine` and `unused_slots` only say what is drawn.

    Args:
        attn_types, dtypes: at least one of each.
        layouts: the layouts of the KV cache; at least one if one of the attention types reads it. Latent ones (LATENT and
            those of `attn_contract.layouts.LATENT_FORMATS`) are drawn only if `rules` names head_size_v. With this
            rule, CONTENT_PACKED is also drawn with K and V of two widths.
        rules: names of the rules of `attn_contract.rules` that the target has, such as "window", "sinks", "lse",
            "non_causal" and "rope". A rule that is not named must be refused.
        required_rules: rules that a layer must have to be served, such as "head_size_v" for kernels of K and V of two widths. A
            layer without one must be refused.
        causal: True if a DECODER may be causal.
        unquantized: False if every cache must be quantized, and a cache of the dtype of k and v must be refused.
        cache_dtypes, scales: of quantized caches; rows with inline scales are of layout CONTENT_PACKED_SCALED, or one of
            `LATENT_FORMATS`, instead.
        output_dtypes: the dtypes of `out` with an output_scale.
        engine: restrictions of the engine that calls the target, such as windows of one kind, no K and V planes or no request
            without a query (`attn_fuzz.targets.engine`). `VLLM` is what vLLM sends.
        exclude: returns why the target does not support a case, or None. It is for what no field can express, such as two
            rules that are not supported together. What it excludes is drawn and thrown away.
        unused_slots: the numbers in slots that no query sees. "NaN" finds a kernel that reads them. "mostly finite" is for a
            kernel that is known to read them with a weight of 0, because 0 * NaN is NaN: 3 of 4 cases hold a finite number.
            "finite" is for an engine whose cache never holds NaN.
        latent: sizes of latent caches, instead of head_sizes, group_sizes and block_sizes.
        refused_sizes: sizes one step beyond the served ones, which the target must refuse: by head_sizes, v_head_sizes (widths
            of V), group_sizes, block_sizes, and widths of latent caches.
        tile_sizes: sizes of the kernel's tiles. Lengths are drawn around their multiples.
        max_tokens, max_seq_len: the most query tokens of a batch and keys of a request, so that an example stays fast.
        long_seq_len: the keys of a request that is drawn now and then: it is alone in its step and has one query. None: no
            request has more than max_seq_len.
        many_requests: the requests of a step that is drawn now and then, of one query each or none. None: no
            step has more than 8.
        steps_per_layer: the number of cases in a row that share a layer. Raise it if a kernel is compiled for each layer, and
            compiling takes longer than running many cases.
        own_numbers: True if kernels take a layer's scale, number of KV heads and the numbers of its rules as arguments, and are
            not compiled for them. Then each of the cases that share a layer has its own.

    Raises:
        ValueError: a field that needs an entry has none, or a rule is unknown.
    """

    attn_types: tuple[AttentionType, ...]
    dtypes: tuple[str, ...]
    layouts: tuple[Layout, ...] = ()
    rules: tuple[str, ...] = ()
    required_rules: tuple[str, ...] = ()
    causal: bool = True
    unquantized: bool = True
    cache_dtypes: tuple[str, ...] = ()
    scales: tuple[ScaleKind, ...] = ()
    output_dtypes: tuple[str, ...] = ()
    head_sizes: tuple[int, ...] = (32, 16, 64, 80, 96, 128)
    group_sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 8, 16, 33)
    block_sizes: tuple[int, ...] = (16, 1, 4, 8, 32, 48, 80, 544)
    engine: Engine = ANY_ENGINE
    exclude: Callable[[Case], str | None] = _nothing
    unused_slots: Literal["NaN", "mostly finite", "finite"] = "NaN"
    latent: LatentSizes = LatentSizes()
    refused_sizes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict, hash=False)
    tile_sizes: tuple[int, ...] = (16, 32, 64)
    max_tokens: int = 256
    max_seq_len: int = 1024
    long_seq_len: int | None = None
    many_requests: int | None = None
    steps_per_layer: int = 1
    own_numbers: bool = False

    def __post_init__(self) -> None:
        needed = ["attn_types", "dtypes", "head_sizes", "group_sizes", "block_sizes", "tile_sizes"]
        needed += ["layouts"] if any(attn_type.reads_cache for attn_type in self.attn_types) else []
        needed += ["scales"] if self.cache_dtypes else []
        needed += [] if self.unquantized else ["cache_dtypes"]
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"Support.{name}: got none, expected at least one")
        if unknown := [name for name in self.refused_sizes if name not in _REFUSED_SIZES]:
            raise ValueError(f"Support.refused_sizes: got {unknown[0]!r}, expected names among {', '.join(_REFUSED_SIZES)}")
        if unknown := [name for name in self.rules if name not in RULES]:
            raise ValueError(f"Support.rules: got {unknown[0]!r}, expected names among {', '.join(RULES)}")
        if unserved := [name for name in self.required_rules if name not in self.rules]:
            raise ValueError(f"Support.required_rules: got {unserved[0]!r}, expected names of Support.rules")
        if "head_size_v" not in self.rules and (latent := [one.name for one in self.layouts if one.has_latent_value]):
            raise ValueError(f"Support.rules: got no head_size_v, expected it beside {latent[0]}, whose V is narrower than K")
        if AttentionType.DECODER in self.attn_types and not (self.causal or "non_causal" in self.rules):
            raise ValueError("Support: got DECODER with neither causal nor the rule non_causal, expected one of them")

    def not_drawn(self, case: Case) -> str | None:
        """The reason why a case is not run, in words: a dtype, a layout, a size or something else that is not drawn. None if it
        is run."""
        choices: dict[str, tuple[object, Collection[object]]] = {"dtype": (case.dtype, self.dtypes)}
        if case.has_latent_cache:
            choices["widths"] = ((case.v_head_size, case.head_size - case.v_head_size), self.latent.widths)
        else:
            choices["head_size"] = (case.head_size, self.head_sizes)
            choices["head_size_v"] = (case.v_head_size, self.head_sizes)
        sizes = self.latent if case.has_latent_cache else self
        choices["group_size"] = (case.group_size, sizes.group_sizes)
        if case.cache is not None:
            choices["block_size"] = (case.cache.block_size, sizes.block_sizes)
            choices["layout"] = (case.cache.layout, self.layouts)
            for name, view in (("writer", case.cache.writer), ("neighbour", case.cache.neighbour)):
                choices[name] = (view or case.cache.layout, self.layouts)
        for name, (value, allowed) in choices.items():
            if value not in allowed and not (name in _LIMITS_OF_SIZES and self._refused_size(case)):
                return f"{name} {value}, only {', '.join(map(str, allowed))}"
        if self.unused_slots == "finite" and case.cache is not None and not case.finite_slots:
            return "finite_slots False, only True"
        return self.engine.not_sent(case)

    def beyond(self, case: Case) -> str | None:
        """The first property of a case that the target does not support and must refuse, in words; None if there is none."""
        if case.attn_type not in self.attn_types:
            return f"{case.attn_type} attention"
        if not self.causal and any(request.causal for request in case.requests):
            return "causal attention"
        for name in case.rules:
            if name not in self.rules:
                return label_of(name)
        for name in self.required_rules:
            if name not in case.rules:
                return f"a layer without {label_of(name)}"
        if case.cache is not None and not (self.unquantized or case.is_quantized):
            return "a cache that is not quantized"
        cache_dtype, scales = (case.cache.dtype, case.cache.scales) if case.cache else (None, None)
        if cache_dtype is not None and cache_dtype not in self.cache_dtypes:
            return f"a cache of {cache_dtype}"
        # the scale of an only head is a scale of the tensor: `attn_contract.attention_config.scales_of`
        is_of_tensor = scales == "head" and case.num_kv_heads == 1 and "tensor" in self.scales
        if scales is not None and scales not in self.scales and not is_of_tensor:
            return f"a scale of the cache for each {scales}"
        if case.output_dtype is not None and case.output_dtype not in self.output_dtypes:
            return f"an output of {case.output_dtype}"
        if size := self._refused_size(case):
            return size
        try:
            return self.exclude(case)
        except Exception as error:
            raise DeclarationError(f"Support.exclude raises {type(error).__name__}: {one_line(str(error))}") from error

    def _refused_size(self, case: Case) -> str | None:
        """The first size of a case that is one of `refused_sizes`, in words."""
        for name, (words, size) in _REFUSED_SIZES.items():
            if (value := size(case)) is not None and value in self.refused_sizes.get(name, ()):
                return f"{words} {value}"
        return None

    def widened(self) -> "Support":
        """A Support that draws the same sizes, dtypes, layouts and forms, and every rule. Refusals are drawn from it."""
        refused = self.refused_sizes
        return dataclasses.replace(
            self,
            attn_types=self._all_types,
            layouts=self.layouts or EVERYTHING.layouts,
            rules=(*EVERYTHING.rules, *(name for name in self.rules if name not in EVERYTHING.rules)),
            required_rules=(),
            causal=True,
            unquantized=True,
            cache_dtypes=EVERYTHING.cache_dtypes,
            scales=EVERYTHING.scales,
            output_dtypes=EVERYTHING.output_dtypes,
            head_sizes=(*self.head_sizes, *refused.get("head_sizes", ())),
            block_sizes=(*self.block_sizes, *refused.get("block_sizes", ())),
            exclude=_nothing,
        )

    @property
    def _all_types(self) -> tuple[AttentionType, ...]:
        """All attention types that have one of the layouts: cross-attention has no latent cache."""
        if not self.layouts or not all(layout.has_latent_value for layout in self.layouts):
            return EVERYTHING.attn_types
        return tuple(one for one in EVERYTHING.attn_types if one is not AttentionType.ENCODER_DECODER)

    def widenings(self) -> tuple["Support", ...]:
        """Supports to draw refusals from: in half of the cases everything, otherwise one attention type, rule or format more,
        or cases that only `exclude` excludes."""
        types = [{"attn_types": (one,)} for one in self._all_types if one not in self.attn_types]
        rules = [{"rules": (*self.rules, one)} for one in EVERYTHING.rules if one not in self.rules]
        rules += [{"required_rules": tuple(rule for rule in self.required_rules if rule != one)} for one in self.required_rules]
        rules += [] if self.unquantized else [{"unquantized": True}]
        cache_dtypes = set(EVERYTHING.cache_dtypes) - set(self.cache_dtypes)
        formats = [{"cache_dtypes": (one,), "scales": EVERYTHING.scales} for one in sorted(cache_dtypes)]
        formats += [{"output_dtypes": (one,)} for one in EVERYTHING.output_dtypes if one not in self.output_dtypes]
        nothing = [] if self.exclude is _nothing else [{}] * 3
        sizes = [self._with_size(name, size) for name, refused in self.refused_sizes.items() for size in refused]
        layouts = self.layouts or EVERYTHING.layouts
        one_more = [
            dataclasses.replace(self, layouts=layouts, exclude=_nothing, **more)
            for more in (*types * 3, *rules, *formats, *nothing, *sizes * 3)
        ]
        return (self.widened(),) * max(1, len(one_more)) + tuple(one_more)

    def _with_size(self, name: str, size: Any) -> dict[str, Any]:
        """Fields of a Support that draws a refused size more often than any other."""
        of_latent = {"widths": "widths", "group_sizes": "group_sizes", "block_sizes": "block_sizes"}.get(name)
        fields: dict[str, Any] = {}
        if of_latent is not None:
            fields["latent"] = dataclasses.replace(self.latent, **{of_latent: (size,) * 4 + getattr(self.latent, of_latent)})
        if name != "widths":
            own = "head_sizes" if name == "v_head_sizes" else name
            fields[own] = (size,) * 4 + getattr(self, own)
        return fields


_REFUSED_SIZES: dict[str, tuple[str, Callable[[Case], object]]] = {
    "head_sizes": ("head size", lambda case: None if case.has_latent_cache else case.head_size),
    "v_head_sizes": ("a V of width", lambda case: None if case.has_latent_cache else case.v_head_size),
    "widths": ("latent widths", lambda case: (case.v_head_size, case.head_size - case.v_head_size)),
    "group_sizes": ("query heads for each KV head:", lambda case: case.group_size),
    "block_sizes": ("block size", lambda case: case.cache and case.cache.block_size),
}
"""The words for a message and the size of a case, by the keys of `Support.refused_sizes`."""
_LIMITS_OF_SIZES = ("head_size", "head_size_v", "widths", "group_size", "block_size")

EVERYTHING = Support(
    attn_types=tuple(AttentionType),
    dtypes=get_args(Dtype),
    layouts=tuple(layout for layout in Layout if not layout.has_latent_value),
    rules=tuple(name for name in RULES if hasattr(Case, name) and name != "head_size_v"),
    cache_dtypes=get_args(Quantized),
    scales=get_args(ScaleKind),
    output_dtypes=get_args(Float8),
    head_sizes=(32, 16, 64, 80, 96, 128, 20, 36, 256, 512),
)
"""A Support of everything that a case can have whose V is as wide as K."""
BESIDE_TWO_WIDTHS = (192, 33, 47, 320)
"""Head sizes that are drawn where K and V may have two: one of models, odd ones, after which V begins at an odd element, and
one that two dots take of which the first has 256 dims."""
WITH_LATENT = dataclasses.replace(
    EVERYTHING,
    layouts=tuple(Layout),
    rules=(*EVERYTHING.rules, "head_size_v"),
    head_sizes=(*EVERYTHING.head_sizes, *BESIDE_TWO_WIDTHS),
)
"""A Support of latent caches and of V of another width than K, too.

The strategies draw these only for a target that names them. tests/test_silence.py holds that all other targets refuse them.
"""

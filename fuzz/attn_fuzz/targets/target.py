"""A target: functions that write a cache and attend, with a declaration of what they support and where they round."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import msgspec
import torch
from attn_contract import RULES, AttentionType, Batch, Capabilities, Layer, Layout
from attn_contract.rules import label_of
from attn_fuzz.cases.case import Case, Dtype, Float8, Quantized, ScaleKind
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import InputError
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.engine import ANY_ENGINE, Engine
from attn_fuzz.text import one_line
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_fuzz.properties import Property


class DeclarationError(InputError):
    """A declaration of a target raised an exception."""


class AttentionFunction(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        layer: Layer,
        batch: Batch,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> object:
        """Write every row of `out` (and `lse`) that a request owns, and nothing else.

        `kv_cache` already holds this step's keys and values where the layer has a cache; k and v are this step's, or None
        when the step writes nothing.
        """
        ...


class WriteFunction(Protocol):
    def __call__(
        self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
    ) -> object:
        """Write row s of k and v to slot `slot_mapping[s]`, bit by bit or quantized as the layer says, and nothing else."""
        ...


class WriteLatentFunction(Protocol):
    def __call__(
        self, kv_c: torch.Tensor, k_pe: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
    ) -> object:
        """Write row s of kv_c and, behind it, of k_pe to slot `slot_mapping[s]` of a latent cache, and nothing else."""
        ...


class RopeFunction(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: Layer,
        slot_mapping: torch.Tensor,
        *,
        is_neox: bool,
    ) -> object:
        """Rotate the first rows of q in place, write rotated k and v as WriteFunction does, and nothing else."""
        ...


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

FUNCTIONS = ("attention", "write_kv_cache", "write_latent_cache", "rope_and_write_kv_cache")
"""The fields of Target that hold the functions to check."""


class Gpu(NamedTuple):
    """A GPU for which host code plans, which need not be in this machine.

    Attributes:
        architecture: such as "gfx942" or "sm90".
        compute_units: few enough that splitting keys over them does not make more programs than are quickly run here.
        parameters: fields of a plan that replace those of the architecture's table. The table gives a program so many keys that
            hardly any drawn request is split.
        batch_invariant: True if to plan as for batch-invariant calls.
    """

    architecture: str
    compute_units: int = 8
    parameters: Mapping[str, Any] = {"keys_per_split": 64}
    batch_invariant: bool = False


def _no_events(step: Step) -> Iterable[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Attention to check: functions to call, and what they declare.

    Args:
        name: as in the entry point.
        description: one line.
        attention: see AttentionFunction.
        write_kv_cache, write_latent_cache, rope_and_write_kv_cache: see WriteFunction, WriteLatentFunction and RopeFunction. If
            None, the reference writes the cache, and the write is not checked.
        support: returns what the target supports on a device type, "cpu" or "cuda".
        refuses: True if the target refuses cases beyond its support. If not, such cases are not drawn.
        rounding: returns where the target rounds on a device type.
        unavailable: returns why the target cannot run on a device type here, or None if it can.
        dense_keys: returns for each request of a case whether the target reads the keys and values of this step's tokens from k
            and v, as prefills do, instead of from the cache. A quantized cache rounds them, so the target is judged by what it
            reads. Its engine gives k and v in every step: `support` needs Engine(writes=(True,), unwritten=False,
            saturated=False), and not the rule rope, which rotates keys on their way into the cache. None: it reads the cache.
        events: returns names of the paths that the target takes for a step, such as "split". A run counts them.
        siblings: other functions that share with `attention` what is kept between calls, such as another mode of the same
            kernels. Earlier calls of a case may be theirs (`attn_fuzz.cases.earlier`).
        declares: returns the Capabilities by which it is selected on a device type. A call that they serve must not be refused
            with UnsupportedError, and a call that they refuse must be.
        checks_arguments: True if `attention` and its siblings refuse a tensor of another dtype, shape or device with a
            ValueError or a NotImplementedError, before they write anything. Earlier calls of a case are then such calls, too
            (`attn_fuzz.cases.wrong_arguments`). Functions with a parameter `validate` that is on by default must refuse wrong
            values, too (`attn_fuzz.cases.wrong_values`).
        forget: drops what is kept between calls in this process: launches, plans, layers. It is called before each case, so
            that a case depends on its own calls alone. If the target keeps something that is not dropped, a failure may not
            come again when its case is replayed.
        repeats: True if a call gives the same bits whatever was called before it.
        properties: relations between outputs that the target promises (`attn_fuzz.properties`). A case checks two of the
            properties that apply to it.
        oracle: True if the reference judges the outputs. Without an oracle only memory and properties are checked, and sizes
            may be too large for the reference.
        findings: known bugs of the target (`attn_fuzz.findings.finding`).
        modules: returns the modules of its Triton kernels, or modules that import the kernels by their names. `NAME@gfx942` is
            then the same target with its kernels compiled for this architecture, and emulated. None: there is no such target.
        modes: by name, its own modes, such as a format of its cache, and its own versions of modes that any target may have
            (`attn_fuzz.targets.modes`); or, as a text, why it has no such mode.
        planned: returns a context in which host code plans for a GPU that is not here. None: there is no `NAME@planned`,
            and host code plans for `NAME@gfx942` as it does for interpreted kernels.
        races: why two workgroups of its kernels may write one byte, or one read what another writes. `NAME@gfx942` then looks
            for no races; outputs that change with the order of workgroups fail all the same. None: they must not.
        compiled_for: returns `NAME@gfx942` for an architecture, of a target whose kernels are not Triton. None: the target's
            `modules` say what is compiled.
        architectures: those that its kernels are written for, if these are Gluon, which no interpreter runs. The target runs as
            only `NAME@gfx950`, which has the findings.
        compiles: True if it compiles kernels for a GPU that is emulated. Compiling takes longer than the rest of a case, so
            `python -m attn_lab mutate run` leaves the target out unless it is named.
        sanitizes: True if its kernels are written in Triton and access only what `attn_fuzz.interpreted.permissions` allows.
        exact: True if it computes the formula of attention and nothing beside it, such as a small number that is added to a
            divisor. One example in many is then compared in exact mode, too (`attn_fuzz.run.shard.EXACT_EVERY`).
    """

    name: str
    description: str
    attention: AttentionFunction
    write_kv_cache: WriteFunction | None = None
    write_latent_cache: WriteLatentFunction | None = None
    rope_and_write_kv_cache: RopeFunction | None = None
    support: Callable[[str], Support]
    rounding: Callable[[str], Rounding]
    refuses: bool = True
    unavailable: Callable[[str], str | None] = lambda device: None
    dense_keys: Callable[[Case], Iterable[bool]] | None = None
    events: Callable[[Step], Iterable[str]] = _no_events
    siblings: tuple[AttentionFunction, ...] = ()
    checks_arguments: bool = False
    declares: Callable[[str], Capabilities] | None = None
    forget: Callable[[], None] = lambda: None
    repeats: bool = False
    properties: "tuple[Property, ...]" = ()
    oracle: bool = True
    findings: tuple[Finding, ...] = ()
    modules: Callable[[], Iterable[ModuleType]] | None = None
    modes: "Mapping[str, Mode | str]" = dataclasses.field(default_factory=dict)
    planned: Callable[[Gpu], AbstractContextManager[object]] | None = None
    races: str | None = None
    compiled_for: "Callable[[str], Target] | None" = None
    compiles: bool = False
    architectures: tuple[str, ...] = ()
    sanitizes: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("attention", "support", "rounding", "unavailable", "events", "forget"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Target.{name}: got {getattr(self, name)!r}, expected a function")

    def beyond(self, case: Case, device: str) -> str | None:
        """See `Support.beyond`, for a device type. A rotation that the reference makes does not count."""
        if self.rope_and_write_kv_cache is None:
            case = msgspec.structs.replace(case, rope=None)
        return self.support(device).beyond(case)

    def not_drawn(self, case: Case, device: str) -> str | None:
        """See `Support.not_drawn`, for a device type. It is None for a captured call, which is run at any size.

        The sizes of a Support say what is drawn, not what the kernel can do.
        """
        return None if case.values.kind == "captured" else self.support(device).not_drawn(case)

    def wrapped(self, wrap: Callable[[str, Any], Any], **changes: Any) -> "Target":
        """A copy with changes, in which each function is `wrap(field, function)`, for the fields of FUNCTIONS.

        The copy has no siblings, because they would be called without `wrap`.
        """
        functions = {field: getattr(self, field) for field in FUNCTIONS}
        functions = {field: wrap(field, function) for field, function in functions.items() if function is not None}
        return dataclasses.replace(self, siblings=(), **functions, **changes)

    def findings_on(self, device: str) -> tuple[Finding, ...]:
        """The findings that can show on a device type, in the sources that are loaded. Without them a failure stays a
        failure."""
        return tuple(each for each in self.findings if (device != "cpu" or not each.needs_gpu) and each.is_in_sources())

    def can_be_sanitized(self, device: str) -> bool:
        """True if `attn_fuzz.interpreted.sanitizer` can check its kernels there, which it does as they are interpreted."""
        return self.sanitizes and device == "cpu"

    def can_be_followed(self, device: str) -> bool:
        """True if its calls can be followed in exact mode (`attn_fuzz.exact`), which is a mode of Triton's interpreter."""
        return device == "cpu" and not self.compiles and importlib.util.find_spec("triton") is not None

    def can_be_fenced(self, device: str) -> bool:
        """True if its interpreted kernels may touch only the memory of their arguments, unless they declare more."""
        return self.can_be_followed(device) and not self.sanitizes


Mode = Callable[[Target], Target]
"""Makes a new target from a target."""


def within(context_of: Callable[[tuple[Any, ...]], AbstractContextManager[object]]) -> Callable[[str, Any], Any]:
    """A `wrap` of Target.wrapped: each call runs within a context that is made of the call's positional arguments."""

    def wrap(field: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with context_of(arguments):
                return function(*arguments, **options)

        return call

    return wrap

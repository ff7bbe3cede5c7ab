"""A target: functions that write a cache and attend, with a declaration of what they support and where they round."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import torch
from attn_contract import Batch, Capabilities, Layer
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import InputError
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_fuzz.properties import Property


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
        """Write row s of kv_c and, after it, of k_pe to slot `slot_mapping[s]` of a latent cache, and nothing else."""
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
            reads. `support` needs an Engine with GIVES_KEYS (`attn_fuzz.targets.engine`), and not the rule rope, which rotates
            keys on their way into the cache. None: it reads the cache.
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
        findings: bugs of the target that were found (`attn_fuzz.findings.finding`).
        modules: returns the modules of its Triton kernels, or modules that import the kernels by their names. `NAME@gfx942` is
            then the same target with its kernels compiled for this architecture, and emulated. None: there is no such target.
        modes: by name, its own modes, such as a format of its cache, and its own versions of modes that any target may have
            (`attn_fuzz.targets.modes`); or, as a text, why it has no such mode.
        formats: the names of modes that are formats of its cache. The battery runs each of them in the other modes, too.
        planned: returns a context in which host code plans for a GPU that is not here. None: there is no `NAME@planned`,
            and host code plans for `NAME@gfx942` as it does for interpreted kernels.
        races: why two workgroups of its kernels may write one byte, or one read what another writes. `NAME@gfx942` then looks
            for no races; outputs that change with the order of workgroups fail all the same. None: they must not.
        compiled_for: returns `NAME@gfx942` for an architecture, of a target whose kernels are not Triton. None: the target's
            `modules` say what is compiled.
        architectures: those that its kernels are written for, if these are Gluon, which no interpreter runs. The target runs as
            only `NAME@gfx950`, which has the findings.
        compiles: True if it compiles kernels for a GPU that is emulated.
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
    formats: tuple[str, ...] = ()
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
"""Makes a new target from a target, or raises NoModeError."""


class NoModeError(InputError):
    """A target has no such mode."""


def within(context_of: Callable[[tuple[Any, ...]], AbstractContextManager[object]]) -> Callable[[str, Any], Any]:
    """A `wrap` of Target.wrapped: each call runs within a context that is made of the call's positional arguments."""

    def wrap(field: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with context_of(arguments):
                return function(*arguments, **options)

        return call

    return wrap

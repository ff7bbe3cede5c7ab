"""NAME@gfx942: the kernels compiled for an architecture of AMD, and emulated. What the compiler made of them runs.

Host code plans for the architecture as it would there, if the target says how (`Target.planned`). A compiled kernel is kept,
and cases that share a layer share it.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from attn_contract import Layer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import LimitError
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.modes.planned import MIN_KEYS_PER_TILE
from attn_fuzz.targets.rng import rng_of, rng_of_metadata
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Gpu, NoModeError, Target, within
from attn_fuzz.verdict.rounding import Rounding

MAX_TOKENS, MAX_KEYS = 128, 256
LARGE_SHARE = 0.3
"""The share of layers whose launches are compiled for storages that 32 bits do not address. That is other code, so it is chosen
for a layer: a choice for each launch would compile most kernels twice."""
_WITH_XF32 = ("gfx942",)
"""Architectures on which Triton makes XF32 of a plain tl.dot of float32. How hardware rounds to XF32 is not published."""
FLUSHES_FLOAT16 = ("gfx90a",)
"""Architectures whose matrix instructions take float16's subnormal operands for 0."""
_WITHOUT_XF32 = f"@{next(each for each in of_architecture.ARCHITECTURES if each not in _WITH_XF32)}"


def _unavailable(device: str, architecture: str) -> str | None:
    if reason := of_architecture.unavailable(device) or triton_unavailable(device):
        return reason
    from attn_optimized.device import missing_compiler

    return missing_compiler(architecture)


def _is_large(arguments: Iterable[object]) -> bool:
    layer = next((argument for argument in arguments if isinstance(argument, Layer)), None)
    if layer is None:
        return False
    group = layer.num_heads // layer.num_kv_heads
    fields = (group, layer.head_size, layer.v_head_size, layer.attn_type.value, layer.layout, layer.kv_cache_dtype)
    return rng_of(fields).random() < LARGE_SHARE


def compiled_for(target: Target, attribute: str, architecture: str) -> Target:
    """A target whose kernels are compiled for an architecture of AMD, and emulated.

    Args:
        attribute: as of `modes.applied`.

    Raises:
        NoModeError: its kernels cannot be compiled for the architecture.
    """
    if target.compiled_for is not None:
        if "@" in target.name:
            raise NoModeError(f"{target.name}@{architecture}: its code is that of an architecture, and has no other mode")
        return target.compiled_for(architecture)
    if target.modules is None:
        raise NoModeError(f"{target.name} does not name the modules of its kernels (Target.modules)")
    if target.architectures and architecture not in target.architectures:
        raise NoModeError(f"its kernels are those of {', '.join(target.architectures)}")
    made = _Compiled(target, attribute, architecture)
    return target.wrapped(
        within(made.emulated),
        support=made.support,
        rounding=made.rounding,
        unavailable=made.unavailable,
        events=made.events,
        # compiling takes long, and refusals and other modes of the kernels are host code's, which the interpreted target has
        refuses=False,
        compiles=True,
        sanitizes=False,
        exact=False,
    )


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """The parts of a target that are others when its kernels are compiled for an architecture."""

    target: Target
    attribute: str
    architecture: str

    @property
    def is_planned(self) -> bool:
        """Whether host code plans for the architecture."""
        return self.target.planned is not None

    def planned(self) -> contextlib.AbstractContextManager[object]:
        """While this lasts, host code plans for the architecture, if the target says how."""
        return contextlib.nullcontext() if self.target.planned is None else self.target.planned(Gpu(self.architecture))

    @contextlib.contextmanager
    def emulated(self, arguments: tuple[Any, ...]) -> Iterator[None]:
        """While this lasts, launches are planned for the architecture, compiled and emulated."""
        from attn_fuzz.emulated.launches import Launches

        launches = Launches(
            f"{self.attribute}.modules",
            self.architecture,
            functools.partial(of_architecture.schedules, rng_of_metadata(arguments), races=self.target.races is None),
            whole_storages=not self.is_planned,
            large_storages=self.is_planned and _is_large(arguments),
        )
        with self.planned(), launches.emulated():
            yield

    def support(self, device: str) -> Support:
        """The target's Support without dtypes that cannot be judged, and of small cases if they are planned."""
        declared = self.target.support(device)
        has_xf32 = self.architecture in _WITH_XF32 and not self.is_planned
        dtypes = tuple(dtype for dtype in declared.dtypes if dtype != "float32" or not has_xf32)
        if not dtypes:
            how = "where Triton's tl.dot is XF32, and how hardware rounds to XF32 is not published"
            what = f"float32 on {self.architecture}, {how}"
            raise LimitError(what, f"float16, bfloat16, or an architecture without XF32, such as {_WITHOUT_XF32}")
        steps = of_architecture.STEPS_PER_LAYER if declared.steps_per_layer == 1 else declared.steps_per_layer
        changed = dataclasses.replace(declared, dtypes=dtypes, steps_per_layer=steps, own_numbers=self.is_planned)
        if not self.is_planned:
            return changed
        sizes = {"max_tokens": MAX_TOKENS, "max_seq_len": MAX_KEYS}
        sizes = {name: min(most, getattr(declared, name)) for name, most in sizes.items()}
        return dataclasses.replace(changed, long_seq_len=None, **sizes)

    def rounding(self, device: str) -> Rounding:
        """The target's Rounding on a GPU, as this architecture rounds."""
        planned = {"keys_per_tile": MIN_KEYS_PER_TILE, "float16_dots": False} if self.is_planned else {}
        flushes = self.architecture in FLUSHES_FLOAT16
        return dataclasses.replace(self.target.rounding("cuda"), flushes_float16=flushes, **planned)

    def unavailable(self, device: str) -> str | None:
        return _unavailable(device, self.architecture) or self.target.unavailable(device)

    def events(self, step: Step) -> Iterable[str]:
        """The events of a step, as host code plans it for the architecture."""
        with self.planned():
            return [*self.target.events(step)]

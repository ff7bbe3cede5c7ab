"""One call of a target with a case: the step before and after the call, and the exception that the target raised."""

import contextlib
import copy
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attn_reference
import torch
from attn_contract import Batch, MiscompiledError
from attn_fuzz.cases import earlier, earlier_writes, tensors, wrong_values
from attn_fuzz.cases.case import ILLEGAL, MODE, Case, num_elements
from attn_fuzz.cases.own_defaults import targets_defaults
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Step, Write, latent_parts
from attn_fuzz.cases.wrong_arguments import GRADIENT, wrong_attention
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.exact import followed_call, quantities
from attn_fuzz.interpreted import launched, new_memory, permissions, program_order, sanitizer
from attn_fuzz.run.case import devices, fence
from attn_fuzz.run.case.exceptions import message_of
from attn_fuzz.run.case.fence import Fence
from attn_fuzz.targets.engine import ANY_ENGINE
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.verdict import EARLIER_CALL, EARLIER_WRITE

CPU_ELEMENTS, CPU_PRODUCTS = 1 << 21, 1 << 25
"""A GPU builds and judges a case faster than a CPU if the case has more elements or more products than these."""


class Attempt:
    """One run of a case on a target. The constructor builds the step, lets the target write the cache and attend, and keeps
    the exception that the target raised. The case's earlier calls come between the writes and the case's own call.

    Attributes:
        case, target, device: as given.
        called: the step on the target's device, as the target left it.
        written: the memory of the cache after the last write and before attention, by name, where the case is judged.
        num_written: the number of the step's cache writes that the target has made.
        error: the exception that the target raised, or None.
        during: the earlier call or write that raised it, in words; empty if the case's own did.
        followed: what exact mode knows of the case's own call; None if it is not followed.
        events: the paths that the target took, by its own account.
        launches: by Triton kernel, how often the target launched it, where it is interpreted or emulated.
        left_out: what was not asked of the target for a reason of the case or of this tool, and the reason.
        seconds: the seconds that building the step and the target took.
    """

    def __init__(
        self,
        case: Case,
        target: Target,
        device: str,
        *,
        follows: bool = False,
        fenced: Fence | None = None,
        prepare: Callable[[Step], None] | None = None,
    ) -> None:
        """Call the target with a case's step, after its earlier calls.

        Args:
            follows: True if the case's own call computes with elements (`attn_fuzz.exact`).
            fenced: where the target's tensors lie against unmapped pages. Then the attempt knows no more than its error: `step`
                is not to be asked for.
            prepare: changes the step before the target gets it.
        """
        started = time.perf_counter()
        self.case, self.target, self.device = case, target, device
        dense_keys = tuple(target.dense_keys(case)) if target.dense_keys and case.cache else ()
        self._built = dataclasses.replace(tensors.build(case, judged_on(case, device)), dense_keys=dense_keys)
        if prepare is not None:
            prepare(self._built)
        self._untouched = copy.deepcopy(self._built)
        if fenced is not None:
            self.called = fence.sent(self._built, case, device, fenced)
        else:
            self.called = self._built if self._built.q.device.type == device else devices.sent(self._built, device)
        self.written, self.num_written = self._untouched.memory, 0
        self.followed = _followed(self._built) if follows else None
        self.error: BaseException | None = None
        self.during = ""
        self.events: tuple[str, ...] = ()
        self.left_out: tuple[tuple[str, str], ...] = ()
        built, launched_before = time.perf_counter(), launched.counts.copy()
        try:
            with own_state(case), program_order.programs(case.program_order, case.values.seed):
                self._call()
        except BaseException as raised:
            self.error = raised
        self.launches = dict(launched.counts - launched_before)
        self.seconds = {"build": built - started, "target": time.perf_counter() - built}

    def _call(self) -> None:
        self.target.forget()
        for number, cache_write in enumerate(self.called.writes):
            for name in earlier_writes.chosen(self.case, number) if _keeps_writes(self.target, self.device) else ():
                self.during = f", in the earlier write {name!r}"
                if refusal := write_earlier(cache_write, self.called, name, self.target):
                    self.left_out += ((f"{EARLIER_WRITE}{name!r}", refusal),)
            self.during = ""
            write(cache_write, self.called, self.target)
            if ILLEGAL in self.case.earlier:
                ask_edges_of_writes(cache_write, self.called, self.target, accepts=self.target.can_be_sanitized(self.device))
            synchronize(self.device)
            self.written = {name: tensor.to(self._built.q.device, copy=True) for name, tensor in self.called.memory.items()}
            self.num_written += 1
        own = dataclasses.replace(self.called, batch=_own(self.called.batch))
        for name in self.case.earlier:
            self.during = f", in the earlier call {name!r}"
            if refusal := call_earlier(own, name, self.target, in_full=not self.target.can_be_sanitized(self.device)):
                self.left_out += ((f"{EARLIER_CALL}{name!r}", refusal),)
        self.during = ""
        with followed_call.following(self.followed):
            attend(own, self.target.attention)
        synchronize(self.device)
        self.events = tuple(self.target.events(self.called))

    @functools.cached_property
    def step(self) -> Step:
        """The step as the target left it, where the case is judged."""
        return self._built if self.called is self._built else devices.returned(self.called)

    @functools.cached_property
    def expected(self) -> Step:
        """The step as it was built, after the reference has made the writes that the target has made."""
        for cache_write in self._untouched.writes[: self.num_written]:
            write(cache_write, self._untouched, REFERENCE_FP32)
        return self._untouched

    @functools.cached_property
    def beyond(self) -> str | None:
        """The first property of the case that the target does not support, in words; None if it supports the case."""
        return self.target.beyond(self.case, self.device)

    @property
    def is_refused(self) -> bool:
        """True if the target refused a case that it does not support, a corrupted call, or miscompiled code."""
        return isinstance(self.error, MiscompiledError | RefusedCallError) or (
            bool(self.beyond) and isinstance(self.error, ValueError | NotImplementedError)
        )

    @property
    def not_refused(self) -> str:
        """The beginning of a message about a target that ran a case beyond its support; else empty."""
        return f"{self.beyond} is beyond its support{' and was not refused' * self.target.refuses}: " if self.beyond else ""


def _followed(step: Step) -> followed_call.FollowedCall:
    outputs = [step.out] if step.lse is None else [step.out, step.lse]
    return followed_call.FollowedCall(quantities.of_layer(step.layer), step.inputs().values(), outputs)


def judged_on(case: Case, device: str) -> str:
    """The device on which a case is built and judged: the CPU for a small case.

    A small case needs hundreds of small operations, and each of them takes longer on a GPU that processes share.
    """
    products = case.num_heads * case.head_size * sum(request.query_len * case.num_keys(request) for request in case.requests)
    return "cpu" if num_elements(case) <= CPU_ELEMENTS and products <= CPU_PRODUCTS else device


@contextlib.contextmanager
def own_state(case: Case) -> Iterator[None]:
    """Restore torch's global state after a target. Inside the block, new memory holds what the case's seed says."""
    default_dtype, default_device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    folder = os.getcwd()
    try:
        with torch.no_grad(), new_memory.filled(with_numbers=new_memory.numbers_in(case)):
            yield
    finally:
        torch.set_default_dtype(default_dtype)
        if torch.get_default_device() != default_device:
            torch.set_default_device(default_device)
        os.chdir(folder)
        torch.set_num_threads(threads)


def call_attention(step: Step, target: Target) -> None:
    """Call the target's attention with views of the step's tensors. If the target changes an object, the step keeps its own."""
    attend(dataclasses.replace(step, batch=_own(step.batch)), target.attention)


def call_earlier(step: Step, name: str, target: Target, *, in_full: bool) -> str | None:
    """Make one earlier call of a case (`attn_fuzz.cases.earlier`). If the change changes nothing, no call is made.

    The target may refuse the call. A target that promises no refusals may raise anything. Illegal calls must be refused.

    Args:
        step: the step of the case's own call. A change of the layer keeps the step's Batch, because the layers of a model share
            a Batch.
        name: name of the change.
        in_full: True if the requests of the earlier call have their queries. They have none for an interpreted kernel, which is
            slow.

    Returns:
        the kind of the target's refusal; None if it made the call, or none was to be made.

    Raises:
        FailedCheckError: an illegal call was not refused, or a legal one was.
    """
    refusal = None
    refusals = (ValueError, NotImplementedError) if target.refuses else (Exception,)
    lengths = contextlib.nullcontext() if in_full or name == ILLEGAL else earlier.without_queries(step)
    with lengths, earlier.changed(step, name) as other:
        if other is None:
            return None
        if name == ILLEGAL:
            for attention in (target.attention, *target.siblings) if target.checks_arguments else ():
                attend(other, _refusing(attention))
                if wrong_values.are_checked(attention):
                    with earlier.without_queries(other), contextlib.suppress(*refusals):
                        attend(other, attention)
                        if not in_full:
                            attend(other, _edges_of(attention, is_legal=True))
                    attend(other, _edges_of(attention, is_legal=False))
            return None
        for attention in target.siblings if name == MODE else (target.attention,):
            try:
                attend(other, attention)
            except sanitizer.Violation:
                raise
            except refusals as error:
                refusal = _refused_by(error)
        synchronize(step.q.device.type)
    return refusal


def _refused_by(error: Exception) -> str:
    """A message of a target may name the numbers of a call, and would be counted by itself."""
    return f"the target refused it: {type(error).__name__}"


def _keeps_writes(target: Target, device: str) -> bool:
    """True if a target may be asked for writes that its case does not have, and may keep something of them."""
    return target.refuses and not target.compiles and target.support(device).engine == ANY_ENGINE


def write_earlier(cache_write: Write, step: Step, name: str, target: Target) -> str | None:
    """Make one earlier write of a case (`attn_fuzz.cases.earlier_writes`), which the target may refuse.

    Args:
        step: the step of the case.
        name: name of the change. If it changes nothing, or the reference would write, no write is made.

    Returns:
        the reason why the contract has no such write, or the kind of the target's refusal; None if it was made.
    """
    with earlier_writes.changed(cache_write, step, name) as changed:
        if isinstance(changed, str):
            return changed
        if changed is None or not _writes_itself(changed[0], target):
            return None
        try:
            write(*changed, target)
        except (ValueError, NotImplementedError) as error:
            return _refused_by(error)
    return None


def ask_edges_of_writes(cache_write: Write, step: Step, target: Target, *, accepts: bool) -> None:
    """After a write, make it again with one value at a bound after the other, if the target looks at values.

    Args:
        accepts: True if to ask for values within the bounds, too, which interpreted kernels write quickly enough.

    Raises:
        FailedCheckError: an illegal write was not refused before it wrote, or a legal one was.
    """
    name = _function_of(cache_write)
    if (
        not target.checks_arguments
        or not _writes_itself(cache_write, target)
        or not wrong_values.are_checked(getattr(target, name))
    ):
        return
    call, written = functools.partial(write, cache_write, step, target), [*step.memory.values(), step.q]
    for edge in wrong_values.of_write(cache_write):
        what = f"{name} with {edge.what} after a legal write"
        if not edge.is_legal:
            with edge.holding:
                _check_refused(what, call, written)
        elif accepts:
            with edge.holding, earlier.restored(written):
                _check_accepted(what, call)


def _writes_itself(cache_write: Write, target: Target) -> bool:
    """True if the target has a function for a write, so that the reference does not make it."""
    return getattr(target, _function_of(cache_write)) is not None


def _function_of(cache_write: Write) -> str:
    """The name of the function that makes a write: a field of Target."""
    if cache_write.view.layout.has_latent_value:
        return "write_latent_cache"
    return "write_kv_cache" if cache_write.rotation is None else "rope_and_write_kv_cache"


class RefusedCallError(Exception):
    """The target refused a call that this tool has corrupted (`attn_fuzz.run.case.malformed`)."""


class NotRefusedError(FailedCheckError):
    """A call that contradicts the contract was not refused."""

    def __init__(self, message: str) -> None:
        super().__init__("served", "an illegal call", message)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


def _refusing(attention: AttentionFunction) -> AttentionFunction:
    """Calls attention with one wrong tensor after the other. It must refuse each before it writes `out`."""

    def all_refused(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        right = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch, "out": out, "lse": lse}
        for kind, what, make in wrong_attention(**right):
            with torch.set_grad_enabled(kind == GRADIENT):
                call = lambda make=make: _call_with(attention, right | make())  # noqa: E731
                _check_refused(f"an earlier call with {what}", call, [out])

    return all_refused


def _call_with(attention: AttentionFunction, arguments: dict[str, Any]) -> None:
    *inputs, out, lse = arguments.values()
    attention(*inputs, out=out, lse=lse)


def _edges_of(attention: AttentionFunction, *, is_legal: bool) -> AttentionFunction:
    """Calls attention with one value at a bound after the other: all legal ones, or all others."""

    def all_asked(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        right = {"q": q, "k": k, "v": v, "kv_cache": kv_cache, "layer": layer, "batch": batch, "out": out, "lse": lse}
        for edge in wrong_values.of_attention(layer, batch, kv_cache):
            if edge.is_legal is not is_legal:
                continue
            with edge.holding as changed:
                call = functools.partial(_call_with, attention, right | changed)
                what = f"a call with {edge.what} after a legal call"
                if is_legal:
                    _check_accepted(what, call)
                else:
                    _check_refused(what, call, [out])

    return all_asked


def _check_accepted(what: str, call: Callable[[], object]) -> None:
    """Make a legal call, and raise FailedCheckError if it is refused."""
    try:
        call()
    except (ValueError, NotImplementedError) as error:
        raise FailedCheckError("served", "a legal call", f"{what} was refused, and is legal: {message_of(error)}") from error


def _check_refused(what: str, call: Callable[[], object], written: Sequence[torch.Tensor]) -> None:
    """Make a call that contradicts the contract. It must be refused before it writes a tensor.

    Raises:
        NotRefusedError: it was not.
    """
    before = [bits(tensor).clone() for tensor in written]
    try:
        call()
    except sanitizer.Violation:
        raise
    except (ValueError, NotImplementedError):
        if any(not torch.equal(bits(tensor), own) for tensor, own in zip(written, before, strict=True)):
            raise NotRefusedError(f"{what} was refused after something was written") from None
    except Exception as error:
        raise NotRefusedError(f"{what}: {type(error).__name__}: {message_of(error)}") from error
    else:
        raise NotRefusedError(f"{what} was not refused")


def attend(step: Step, attention: AttentionFunction) -> None:
    """Call a target's function with the step's own Batch, and with views of its other tensors."""
    q, out = _view(step.q), _view(step.out)
    k, v, lse = (None if tensor is None else _view(tensor) for tensor in (step.k, step.v, step.lse))
    with _calling(lambda: permissions.of_attention(step)):
        attention(q, k, v, step.kv_cache, dataclasses.replace(step.layer), step.batch, out=out, lse=lse)


@contextlib.contextmanager
def _calling(permitted: Callable[[], list[permissions.Region]]) -> Iterator[None]:
    """For a call of a target's function."""
    with sanitizer.watch(permitted), targets_defaults():
        yield


def _view(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor of the same memory, with all strides. `Tensor.view` changes the strides of dimensions of one element."""
    return tensor[...]


def _own(batch: Batch) -> Batch:
    """A copy of the batch with views of its tensors. A target may keep the copy."""
    return dataclasses.replace(batch, **{name: _view(tensor) for name, tensor in batch.tensors.items()})


def write(cache_write: Write, step: Step, target: Target) -> None:
    """Have the target write the cache, or the reference if the target has no such function."""
    assert step.raw is not None
    k, v, slot_mapping = (_view(tensor) for tensor in (cache_write.k, cache_write.v, cache_write.slot_mapping))
    kv_cache, layer = cache_write.view.tensor(step.raw), dataclasses.replace(cache_write.layer)
    if layer.layout is not None and layer.layout.has_latent_value:
        write_latent = target.write_latent_cache or attn_reference.write_latent_cache
        with _calling(lambda: permissions.of_write(cache_write, step)):
            write_latent(*latent_parts(k, v), kv_cache, layer, slot_mapping)
        return
    if cache_write.rotation is None:
        function = target.write_kv_cache or attn_reference.write_kv_cache
        with _calling(lambda: permissions.of_write(cache_write, step)):
            function(k, v, kv_cache, layer, slot_mapping)
        return
    positions, table = cache_write.rotation.positions, cache_write.rotation.cos_sin_cache
    rotate = target.rope_and_write_kv_cache or attn_reference.rope_and_write_kv_cache
    q, positions, table = (_view(tensor) for tensor in (step.q, positions, table))
    with _calling(lambda: permissions.of_write(cache_write, step)):
        rotate(q, k, v, positions, table, kv_cache, layer, slot_mapping, is_neox=cache_write.rotation.is_neox)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()

"""An engine without a model: it plays requests against a cache manager, and judges each key that attention would read.

What a key holds depends on its group, its position, the tokens up to it, and the salt: requests with a common prefix may
share it.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from attn_fuzz.errors import InputError, LimitError
from attn_fuzz.serving.manager import OPTIONAL, Group, Manager, Slots
from attn_fuzz.shadow import CacheFault, Shadow

VOCABULARY = 64
MAX_TOKENS = 512
REQUIRED = {
    "allocate": "allocate(request, tokens, salt) -> int",
    "append": "append(request, tokens, drafts) -> bool",
    "slots": "slots(request, group) -> a sequence of int or None",
    "free": "free(request) -> None",
}


class ProtocolError(InputError):
    """A manager lacks a method of the protocol, or a method returns what the protocol does not know."""


class Work(NamedTuple):
    """The work of a step for one request: a chunk of its tokens. Drafts follow if the chunk ends with the last token."""

    num_tokens: int
    num_drafts: int = 0
    num_accepted: int = 0


class Action(NamedTuple):
    """A call of a method of the engine. `made` is the id of the request that it added, as far as it has."""

    method: str
    arguments: tuple[Any, ...]
    made: int | None = None


class ManagerFaultError(AssertionError):
    """The verdict on a manager.

    Attributes:
        kind: "cache": a key that is read is not the one that was written for it; "raised": the manager raises; "count": it says
            more or fewer keys or slots than there are.
        steps: the steps until then, in words.
        actions: the same for `replay`.
    """

    def __init__(self, kind: str, message: str, steps: Sequence[str], actions: Sequence[Action]) -> None:
        super().__init__(message)
        self.kind, self.steps, self.actions = kind, tuple(steps), tuple(actions)


@dataclass(kw_only=True)
class ManagedRequest:
    """A request. The cache holds its first `num_computed_tokens` keys, if `is_held`."""

    id: int
    salt: int = 0
    tokens: list[int] = field(default_factory=list)
    lineage: list[int] = field(default_factory=list)
    """for each token a hash of the salt and of all tokens up to it"""
    num_computed_tokens: int = 0
    num_known_tokens: int = 0
    """keys of a known prefix, until the first step has run"""
    is_held: bool = False

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            self.lineage.append(hash((self.lineage[-1] if self.lineage else self.salt, token)))

    def drop(self, count: int) -> None:
        del self.tokens[len(self.tokens) - count :], self.lineage[len(self.lineage) - count :]


class Scheduled(NamedTuple):
    """A request in a step, which computes the keys of positions [start, end), of which the last `rejected` are taken back."""

    request: ManagedRequest
    start: int
    end: int
    drafts: int
    rejected: int


class ManagedEngine:
    """Requests whose keys lie where a manager says.

    Args:
        make: makes the manager.
        failed: is called with each verdict before it is raised.

    Raises:
        ProtocolError: the manager lacks a method.
        ManagerFaultError: of all methods, the verdict.
    """

    def __init__(self, make: Callable[[], Manager], failed: Callable[[ManagerFaultError], None] = lambda fault: None) -> None:
        self.steps: list[str] = []
        self.actions: list[Action] = []
        self.requests: dict[int, ManagedRequest] = {}
        self.seen: list[ManagedRequest] = []
        """all requests, as they are or were at their end: others begin like them"""
        self._failed, self._rng = failed, random.Random(0)
        self.is_busy = False
        """an action has begun, and has not ended: it failed, or goes on"""
        self.manager = make()
        for name, signature in REQUIRED.items():
            if not callable(getattr(self.manager, name, None)):
                raise ProtocolError(f"manager: {type(self.manager).__name__} has no method {name}, expected {signature}")
        self.groups: Sequence[Group] = getattr(self.manager, "groups", (Group(),))
        if not self.groups or not all(isinstance(group, Group) for group in self.groups):
            raise ProtocolError(f"manager: groups: got {self.groups!r}, expected attn_fuzz.serving.manager.Group, at least one")
        self.max_tokens: int = getattr(self.manager, "max_tokens", MAX_TOKENS)
        self.by_priority = bool(getattr(self.manager, "by_priority", False))
        self.has_salts = bool(getattr(self.manager, "salts", False))
        self.has = {name for name in OPTIONAL if callable(getattr(self.manager, name, None))}
        names = [group.name for group in self.groups]
        self.shadow = Shadow(pools=dict.fromkeys(names, "slots"))
        for group in self.groups:
            self.shadow.narrow(group.name, window=group.window, chunk=group.chunk)
        self._all_free = self._ask("free_slots", is_a=int) if "free_slots" in self.has else None

    def add_request(self, prompt_len: int, salt: int = 0, like: int | None = None, num_shared: int = 0) -> int:
        """Add a request, whose first tokens, and salt, may be those of the request with the number `like` of `seen`."""
        request = ManagedRequest(id=len(self.seen), salt=salt if self.has_salts else 0)
        self.actions.append(Action("add_request", (prompt_len, salt, like, num_shared), request.id))
        words = f"request {request.id} arrives: {{}} tokens"
        if like is not None:
            other = self.seen[like]
            shared = other.tokens[:num_shared]
            request.extend(shared)
            words += f", of which the first {len(shared)} are those of request {other.id}"
        request.extend(self._tokens(min(prompt_len, self.max_tokens - 8 - len(request.tokens))))
        self.steps.append(words.format(len(request.tokens)) + f", salt {request.salt}" * self.has_salts)
        return self._add_request(request)

    def fork(self, id: int, num_shared_tokens: int, num_new_tokens: int) -> int | None:
        """Add a beam: a request with another last token. A request whose prompt is not computed has no beams yet."""
        parent = self.requests[id]
        if not parent.is_held or parent.num_computed_tokens < len(parent.tokens) - 1 or num_shared_tokens == 0:
            return None
        child = ManagedRequest(id=len(self.seen), salt=parent.salt, num_computed_tokens=num_shared_tokens, is_held=True)
        child.extend([*parent.tokens[:num_shared_tokens], *self._tokens(num_new_tokens)])
        self.actions.append(Action("fork", (id, num_shared_tokens, num_new_tokens), child.id))
        with self._action(f"request {child.id} forks from request {parent.id} after {num_shared_tokens} tokens, as a beam"):
            if not self._ask("fork", parent.id, child.id, is_a=bool):
                self.steps[-1] += ", and gets no room"
                return None
            self.shadow.fork(child.id, parent.id, num_shared_tokens)
        return self._add_request(child)

    def step(self, work: Mapping[int, Work]) -> None:
        """Run a batch of requests: append, copy, write and read in each group, roll back, commit."""
        self.actions.append(Action("step", (work,)))
        with self._action(""):
            self._step(work)
        if not self.steps[-1]:
            self.steps.pop()
        for id in [id for id, request in self.requests.items() if len(request.tokens) >= self.max_tokens - 8]:
            self.finish(id)

    def preempt(self, id: int) -> None:
        """Take all slots from a request. Its next step computes its tokens again."""
        if self.requests[id].is_held:
            self.actions.append(Action("preempt", (id,)))
            with self._action(f"request {id} is preempted"):
                self._free(self.requests[id])

    def finish(self, id: int) -> None:
        self.actions.append(Action("finish", (id,)))
        request = self.requests.pop(id)
        with self._action(f"request {id} ends"):
            if request.is_held:
                self._free(request)

    def end(self) -> None:
        """Read all keys once more, and free all requests, so that no damage stays unseen. After a failure nothing is done."""
        if self.is_busy:
            return
        self.step({id: Work(1) for id, request in self.requests.items() if request.is_held})
        for id in list(self.requests):
            self.finish(id)

    def _step(self, work: Mapping[int, Work]) -> None:
        self.shadow.next_step()
        batch: list[Scheduled] = []
        for id, chunk in work.items():
            self._schedule(self.requests[id], chunk, batch)
        if "copies" in self.has and batch:
            for source, target in self._ask("copies", is_a=Sequence):
                self.shadow.copy(self.groups[0].name, [source], [target])
        handed = [[self._slots("slots", scheduled, group) for scheduled in batch] for group in range(len(self.groups))]
        for group in range(len(self.groups)):
            self._run(group, batch, handed[group])
        for request, _, end, _, rejected in batch:
            request.num_computed_tokens, request.num_known_tokens = end - rejected, 0
            request.drop(rejected)
            if rejected:
                self._ask("roll_back", request.id, rejected)
                self.shadow.roll_back(request.id, end - rejected)
            if "commit" in self.has:
                self._ask("commit", request.id)
            if request.num_computed_tokens == len(request.tokens):
                request.extend(self._tokens(1))

    def _add_request(self, request: ManagedRequest) -> int:
        self.requests[request.id] = request
        self.seen.append(request)
        return request.id

    def _schedule(self, request: ManagedRequest, work: Work, batch: list[Scheduled]) -> None:
        """Have the manager make room for a chunk, and add it to the batch. If there is none, a request is preempted."""
        is_new = not request.is_held
        if is_new:
            self._begin(request)
        start, waiting = request.num_computed_tokens, len(request.tokens) - request.num_computed_tokens
        num_tokens = min(work.num_tokens, waiting)
        drafts = work.num_drafts if num_tokens == waiting and "roll_back" in self.has else 0
        rejected = max(0, drafts - work.num_accepted)
        request.extend(self._tokens(drafts))
        self.shadow.tell(request.id, request.lineage)
        end = start + num_tokens + drafts
        with_drafts = f" with {drafts} drafts, of which {rejected} are rejected" * bool(drafts)
        self._add(f"request {request.id} computes tokens {start} to {end - 1}{with_drafts}")
        while not self._ask("append", request.id, tuple(request.tokens[start:end]), drafts, is_a=bool):
            if is_new or not batch or not self.by_priority:
                request.drop(drafts)
                self.steps[-1] += ", gets no room, and is preempted"
                return self._free(request)
            victim = batch.pop()
            victim.request.drop(victim.drafts)
            self.steps[-1] += f", gets no room, and request {victim.request.id} is preempted, which computes nothing then"
            self._free(victim.request)
        batch.append(Scheduled(request, start, end, drafts, rejected))
        return None

    def _begin(self, request: ManagedRequest) -> None:
        request.is_held = True
        found = self._ask("allocate", request.id, tuple(request.tokens), request.salt, is_a=int)
        if not 0 <= found < len(request.tokens):
            raise self._fault(
                "count",
                f"allocate: request {request.id} of {len(request.tokens)} tokens: got {found} keys of a known prefix, expected "
                f"0 to {len(request.tokens) - 1}: the last token is always computed",
            )
        request.num_computed_tokens = request.num_known_tokens = found
        self._add(f"request {request.id} begins" + f", {found} of its keys are known" * bool(found))

    def _run(self, index: int, batch: Sequence[Scheduled], handed: Sequence[Slots]) -> None:
        """Write and read the keys of a group."""
        group = self.groups[index]
        writes = [
            self._slots("write_slots", scheduled, index) if "write_slots" in self.has else slots
            for scheduled, slots in zip(batch, handed, strict=True)
        ]
        for is_write in (False, True) if group.reads_first else (True, False):
            for scheduled, slots in zip(batch, writes if is_write else handed, strict=True):
                (self._write if is_write else self._read)(index, scheduled, slots)

    def _write(self, index: int, scheduled: Scheduled, slots: Slots) -> None:
        request, start, end, *_ = scheduled
        if len(slots) < end - start:
            raise self._fault(
                "count", f"request {request.id}: the manager says {len(slots)} slots to write, expected {end - start}"
            )
        new = slots[len(slots) - end + start :]
        written = [i for i, slot in enumerate(new) if slot is not None]
        self.shadow.write(
            self.groups[index].name,
            request.id,
            [start + i for i in written],
            slots=[new[i] for i in written],
            keys=[[index, request.lineage[start + i]] for i in written] or None,
        )

    def _read(self, index: int, scheduled: Scheduled, slots: Slots) -> None:
        """Judge the keys that the chunk's queries see; in a group that reads first, those from before the step."""
        request, start, end, *_ = scheduled
        group = self.groups[index]
        first, last = self.shadow.first_seen(group.name, start), start if group.reads_first else end
        held = [p for p in range(max(first, end - len(slots)), last) if slots[len(slots) - end + p] is not None]
        slots = [slots[len(slots) - end + p] for p in held]
        faults: list[CacheFault] = []
        if request.num_known_tokens:
            known = [i for i, position in enumerate(held) if position < request.num_known_tokens]
            faults += self.shadow.adopt(group.name, request.id, [held[i] for i in known], [slots[i] for i in known])
        faults += self.shadow.read(group.name, request.id, held, slots=slots, whole=not group.reads_first)
        if not faults and (lost := sorted({*range(first, last)} - {*held})):
            raise self._fault("cache", f"lost key: {group.name}, request {request.id}, position {lost[0]}: no slot")
        if faults:
            raise self._fault("cache", str(faults[0]))

    def _slots(self, method: str, scheduled: Scheduled, group: int) -> Slots:
        slots = self._ask(method, scheduled.request.id, group, is_a=Sequence)
        if wrong := [slot for slot in slots if slot is not None and (not isinstance(slot, int) or isinstance(slot, bool))]:
            raise ProtocolError(f"manager: {method}: got {wrong[0]!r} in what it returns, expected int or None")
        return slots

    def _free(self, request: ManagedRequest) -> None:
        request.is_held, request.num_computed_tokens = False, 0
        self._ask("free", request.id)
        self.shadow.free(request.id)
        if self._all_free is None or any(other.is_held for other in self.requests.values()):
            return
        if (free := self._ask("free_slots", is_a=int)) != self._all_free:
            raise self._fault("count", f"free_slots: got {free} when no request is left, expected {self._all_free} as before")

    def _ask(self, method: str, *arguments: Any, is_a: type | None = None) -> Any:
        """Call a method of the manager. What it raises is the verdict."""
        try:
            answer = getattr(self.manager, method)(*arguments)
        except LimitError:
            raise
        except Exception as error:
            told = ", ".join(str(argument) if isinstance(argument, int) else "..." for argument in arguments)
            raise self._fault("raised", f"{method}({told}) raises {type(error).__name__}: {error}") from error
        if is_a is not None and (not isinstance(answer, is_a) or (is_a is int and isinstance(answer, bool))):
            raise ProtocolError(f"manager: {method}: got {answer!r}, expected {REQUIRED.get(method, is_a.__name__)}")
        return answer

    def _fault(self, kind: str, message: str) -> ManagerFaultError:
        fault = ManagerFaultError(kind, message, self.steps, self.actions)
        self._failed(fault)
        return fault

    @contextmanager
    def _action(self, words: str) -> Iterator[None]:
        self.steps.append(words)
        before, self.is_busy = self.is_busy, True
        yield
        self.is_busy = before

    def _add(self, words: str) -> None:
        self.steps[-1] += ("; " if self.steps[-1] else f"step {self.shadow.step}: ") + words

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCABULARY) for _ in range(count)]


def replay(make: Callable[[], Manager], actions: Sequence[Action]) -> ManagerFaultError | None:
    """The fault to which actions lead, if any. What concerns a request that no action adds is left out."""
    engine = ManagedEngine(make)
    ids: dict[int, int] = {}
    try:
        for method, arguments, made in actions:
            new: int | None = None
            if method == "add_request":
                prompt_len, salt, like, num_shared = arguments
                new = engine.add_request(prompt_len, salt, ids.get(like), num_shared)
            elif method == "step":
                engine.step({ids[id]: work for id, work in arguments[0].items() if ids.get(id) in engine.requests})
            elif ids.get(arguments[0]) in engine.requests:
                new = getattr(engine, method)(ids[arguments[0]], *arguments[1:])
            if made is not None and new is not None:
                ids[made] = new
        engine.end()
    except ManagerFaultError as fault:
        return fault
    return None


def shortened(make: Callable[[], Manager], fault: ManagerFaultError) -> ManagerFaultError:
    """A fault of this kind to which none of its actions is needless. Hypothesis leaves some."""
    at = len(fault.actions) - 1
    while at >= 0:
        try:
            fewer = replay(make, fault.actions[:at] + fault.actions[at + 1 :])
        except Exception:  # with other actions something else may fail: the fault that is known is told
            fewer = None
        if fewer is not None and fewer.kind == fault.kind and len(fewer.actions) < len(fault.actions):
            fault, at = fewer, len(fewer.actions)
        at -= 1
    return fault

"""The protocol of a cache manager that can be fuzzed: it says in which slot each key lies. An engine writes and reads there.

A slot is the place of one key: an int that two keys have only if one overwrites the other, whatever their groups and requests.
A manager of tensors hands out a new number for each key that it is given, and says which numbers its tensors hold.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Group(NamedTuple):
    """Layers that share slots.

    Attributes:
        name: for messages.
        window: a query at position p sees the keys of (p - window, p]; None: all up to its own.
        chunk: a query at position p sees the keys from p // chunk * chunk on.
        reads_first: attention gets the old keys from the cache before the step writes, and the step's own keys without it.
    """

    name: str = "full"
    window: int | None = None
    chunk: int | None = None
    reads_first: bool = False


Slots = Sequence[int | None]


class Manager(Protocol):
    """The interface that users give a cache manager. `attn-parity fuzz --manager MODULE:NAME` calls NAME() for each example.

    In a step, all requests are appended to, then asked for their slots. The keys are written and read, `roll_back` follows for
    requests with rejected drafts, and `commit` for each.

    These attributes and methods may be missing, and then there is no such traffic:
        groups: a sequence of Group; default: one of full attention.
        max_tokens: the most tokens of a request, drafts included; default: 512.
        by_priority: True if a request that gets no room may preempt one that was appended to in the same step.
        salts: True if requests of equal tokens may have other keys, as with another LoRA adapter or image.
        write_slots(request, group) -> Slots: where the step writes; default: the last of `slots`. None: a key that is not kept.
        copies() -> pairs of slots: from which to which slot the step copies a key before it writes.
        fork(request, child) -> bool: `child` goes on from all tokens of a request, as a beam; False: no room.
        roll_back(request, count): the last `count` tokens that were appended are rejected drafts.
        commit(request): the step has run; its tokens, without those that were rolled back, are final.
        free_slots() -> int: how many slots, or blocks, are free, or would be for a new request. Without requests, all are.
    """

    def allocate(self, request: int, tokens: Sequence[int], salt: int) -> int:
        """A request begins, or begins again after a preemption. Returns how many of its first keys are known."""
        ...

    def append(self, request: int, tokens: Sequence[int], drafts: int) -> bool:
        """Make room for the next tokens; the last `drafts` may be rejected. False: no room, and the request is freed."""
        ...

    def slots(self, request: int, group: int) -> Slots:
        """Slots of the last keys: the last one is that of the last token appended. None, or too few: keys that are not held."""
        ...

    def free(self, request: int) -> None: ...


OPTIONAL = ("write_slots", "copies", "fork", "roll_back", "commit", "free_slots")

"""Cache managers of other packages agree with the shadow cache under any traffic. Public reports that are put back are found.

What a package lacks here is skipped. With more examples: `attn-parity fuzz --manager NAME`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
from attn_fuzz import foreign, managers
from attn_fuzz.errors import FaultError
from attn_fuzz.serving.managed import ManagedEngine, ManagerFaultError, ProtocolError
from attn_fuzz.serving.manager import Group
from attn_fuzz.serving.scheduler import Traffic, explore
from attn_fuzz.shadow import Shadow
from attn_parity.commands.fuzz import managers as command
from hypothesis import Phase

from tests.fuzz.managers.mutants import MUTANTS, Mutant
from tests.support.pages import PAGES, blocks

ACTIONS = 30
(EXAMPLE,) = (block for block in blocks(PAGES["docs/guide/fuzz-your-kernel.md"]) if block.file == "my_manager.py")


def play(make: Callable[[], Any], *, seed: int = 1, sequences: int = 100, engine: type[ManagedEngine] = ManagedEngine) -> None:
    explore(lambda: Traffic(engine(make)), seed=seed, sequences=sequences, actions=ACTIONS, phases=[Phase.generate])


def loaded(name: str) -> Callable[[], Any]:
    package = name.partition("-")[0]
    if reason := foreign.missing(package, (), managers.PACKAGES[package]):
        pytest.skip(reason)
    return managers.load(name)


def example() -> type[Any]:
    names: dict[str, Any] = {}
    exec(EXAMPLE.text, names)
    return names["Manager"]


class CopiesOnFork(example()):
    """The guide's manager without its bug: a child gets a copy of the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[int, int]] = []

    def copies(self) -> list[tuple[int, int]]:
        pairs, self.pairs = self.pairs, []
        return pairs

    def fork(self, request: int, child: int) -> bool:
        if not self.free_blocks:
            return False
        super().fork(request, child)
        last, own = self.tables[child][-1], self.free_blocks.pop()
        self.users[last], self.users[own], self.tables[child][-1] = self.users[last] - 1, 1, own
        self.pairs += [(last * 16 + slot, own * 16 + slot) for slot in range(16)]
        return True


@pytest.mark.parametrize("name", [name for name in managers.MANAGERS if name != "vllm-priority"])
def test_a_manager_agrees_with_the_shadow_cache(name):
    play(loaded(name), sequences=8)


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(each, marks=pytest.mark.nightly if each.manager == "vllm-priority" else ()) for each in MUTANTS],
    ids=lambda mutant: mutant.name,
)
def test_a_public_report_is_found_when_it_is_put_back(mutant: Mutant, monkeypatch):
    make = loaded(mutant.manager)
    mutant.patch(monkeypatch)
    with pytest.raises(ManagerFaultError) as fault:
        play(make, sequences=400)
    assert fault.value.kind in mutant.kind.split(" or ")


def test_vllm_knows_blocks_that_nobody_wrote():
    """vllm-project/vllm#43569, open: what the policy "priority" preempts may have been scheduled in the same step."""
    manager, prompt = loaded("vllm-priority")(), tuple(range(17))
    assert manager.allocate(0, prompt, 0) == 0
    assert manager.append(0, prompt, 0)
    manager.free(0)
    assert manager.allocate(0, prompt, 0) == 16


class Tallies(ManagedEngine):
    counted: ClassVar[Counter[str]] = Counter()
    WORDS = ("keys are known", "gets no room", "forks", "rejected", "is preempted", "of which the first", "salt 1", "ends")

    def end(self) -> None:
        super().end()
        self.counted.update(word for step in self.steps for word in self.WORDS if word in step)


def test_a_short_run_meets_what_lies_between_steps():
    class Knows(CopiesOnFork):
        """Finished requests leave their first block, from which a request with the same salt may begin."""

        salts = True

        def __init__(self) -> None:
            super().__init__()
            self.known: dict[tuple[Any, ...], int] = {}

        def allocate(self, request: int, tokens: Any, salt: int) -> int:
            super().allocate(request, tokens, salt)
            self.first = getattr(self, "first", {}) | {request: (salt, *tokens[:16])}
            block = self.known.get(self.first[request])
            if block is None or len(tokens) <= 16:
                return 0
            self.users[block] += 1
            self.tables[request], self.lengths[request] = [block], 16
            return 16

        def commit(self, request: int) -> None:
            key = self.first.get(request, ())
            if self.lengths[request] >= 16 and len(key) == 17 and key not in self.known and not self.known:
                self.known[key] = self.tables[request][0]
                self.users[self.tables[request][0]] += 1

        def free_slots(self) -> int:
            return len(self.free_blocks) + len(self.known)

    play(Knows, sequences=40, engine=Tallies)
    assert set(Tallies.WORDS) == set(Tallies.counted)


def test_a_failing_trace_is_short_and_told_in_words(capsys):
    assert command.fuzz_made("example", example(), 20, 1) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[1:5] == [
        "  request 0 arrives: 1 tokens",
        "  step 1: request 0 begins; request 0 computes tokens 0 to 0",
        "  request 1 forks from request 0 after 1 tokens, as a beam",
        "  step 2: request 0 computes tokens 1 to 1; request 1 computes tokens 1 to 1",
    ]
    assert told[5].startswith("cache: key of another request: layer full, request 0, position 1, step 2")
    assert told[6] == "again: attn-parity fuzz --manager example --examples 20 --seed 1"


def test_a_ring_that_is_read_before_it_is_written_may_overwrite_what_the_step_reads():
    class Ring(CopiesOnFork):
        groups = (Group("ring", window=16, reads_first=True),)
        fork = roll_back = None

        def append(self, request: int, tokens: Any, drafts: int) -> bool:
            before = self.lengths[request]
            if before == 0 and not super().append(request, tokens[:1], 0):
                return False
            self.lengths[request] = before + len(tokens)
            return True

        def slots(self, request: int, group: int) -> list[int]:
            return [self.tables[request][0] * 16 + position % 16 for position in range(self.lengths[request])]

    play(Ring, sequences=20)
    Ring.groups = (Group("ring", window=16),)
    with pytest.raises(ManagerFaultError, match="wrong ring"):
        play(Ring)


def without(name: str) -> type[Any]:
    return type("Lacks", (CopiesOnFork,), {name: None})


def answers(name: str, answer: object) -> type[Any]:
    return type("Answers", (CopiesOnFork,), {name: lambda self, *arguments: answer})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without("slots"), r"Lacks has no method slots, expected slots\(request, group\)"),
        (answers("append", None), r"append: got None, expected append\(request, tokens, drafts\) -> bool"),
        (answers("allocate", True), r"allocate: got True, expected allocate\(request, tokens, salt\) -> int"),
        (answers("slots", ["a"] * 99), "slots: got 'a' in what it returns, expected int or None"),
        (type("Groups", (CopiesOnFork,), {"groups": ("full",)}), "groups: got .*, expected attn_fuzz.serving.manager.Group"),
    ],
)
def test_who_breaks_the_protocol_is_told_the_method_and_what_was_expected(make, message):
    with pytest.raises(ProtocolError, match=message):
        play(make, sequences=3)


def raises(self: object, *arguments: object, **options: object) -> None:
    raise RuntimeError("no")


def test_an_exception_of_the_manager_is_a_verdict_and_one_of_the_tool_is_not(monkeypatch):
    with pytest.raises(ManagerFaultError, match=r"append\(0, \.\.\., 0\) raises RuntimeError: no") as fault:
        play(type("Raises", (CopiesOnFork,), {"append": raises}), sequences=3)
    assert fault.value.kind == "raised"
    monkeypatch.setattr(Shadow, "read", raises)
    with pytest.raises(FaultError, match="RuntimeError: no"):
        command.fuzz_made("whole", CopiesOnFork, 3, 1)


def test_a_failure_that_does_not_come_again_is_reported(capsys):
    class Once(CopiesOnFork):
        left = 1

        def append(self, request: int, tokens: Any, drafts: int) -> bool:
            Once.left, left = 0, Once.left
            return raises(self) if left else super().append(request, tokens, drafts)

    assert command.fuzz_made("once", Once, 5, 1) == 1
    assert "raised: append(0, ..., 0) raises RuntimeError: no" in capsys.readouterr().out


def test_an_interruption_without_a_fault_is_exit_code_130(monkeypatch):
    def interrupt(self: object, *arguments: object) -> None:
        raise KeyboardInterrupt

    assert command.fuzz_made("interrupted", type("Interrupts", (CopiesOnFork,), {"append": interrupt}), 5, 1) == 130


def test_options_of_kernels_are_refused_with_a_manager():
    from attn_parity.commands.fuzz import command as fuzz
    from click.testing import CliRunner

    done = CliRunner().invoke(fuzz, ["--manager", "vllm-full", "--workers", "2"])
    assert done.exit_code == 2
    assert "--workers: not with --manager, which takes --examples, --profile and --seed" in done.output


def test_of_two_modules_of_one_name_the_first_has_it(monkeypatch):
    """vLLM has a block_pool of its managers, and one of HiSparse."""
    found = [Mock(__name__="vllm." + file.removesuffix(".py").replace("/", ".")) for file in managers.vllm.FILES]
    monkeypatch.setattr(foreign, "load", lambda *arguments, **options: found)
    loaded = managers.vllm.load.__wrapped__()
    assert loaded["block_pool"].__name__ == "vllm.v1.core.block_pool"
    assert loaded["request"].__name__ == "vllm.v1.request"

"""A scheduler that Hypothesis plays. It looks for actions after which a manager is wrong, and then for fewer actions."""

from collections.abc import Callable
from typing import Any

import hypothesis
from attn_fuzz.serving.managed import MAX_TOKENS, ManagedEngine, ManagedRequest, Work
from attn_fuzz.strategies.independent import INDEPENDENT
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

MAX_REQUESTS = 5
# lengths around the ends of blocks and of a kernel's tiles
PROMPTS = st.sampled_from([1, 2, 15, 16, 17, 33, 64])
SHARED = st.sampled_from([1, 15, 16, 17, 31, 32, 33, 48, 64, 80])
NEW = st.sampled_from([1, 0, 2, 15, 16, 17, 33])
DRAFTS = st.sampled_from([0, 1, 2, 4])
WORK = st.builds(Work, num_tokens=st.sampled_from([1, 3, 16, 64]), num_drafts=DRAFTS, num_accepted=DRAFTS)
# the index of a request, modulo the number of requests
REQUEST = st.integers(0, MAX_REQUESTS - 1)


class Traffic(RuleBasedStateMachine):
    """The actions of a scheduler against a cache manager, as rules that Hypothesis applies in any order.

    Requests begin like any earlier one, and beams are those of the manager.
    """

    def __init__(self, engine: ManagedEngine) -> None:
        super().__init__()
        self.engine = engine

    @precondition(lambda self: len(self.engine.requests) < MAX_REQUESTS)
    @rule(prompt_len=PROMPTS, salt=st.integers(0, 1))
    def add_request(self, prompt_len: int, salt: int) -> None:
        self.engine.add_request(prompt_len, salt)

    @precondition(lambda self: self.engine.requests)
    @rule(batch=st.lists(st.tuples(REQUEST, WORK), min_size=1, max_size=MAX_REQUESTS))
    def step(self, batch: list[tuple[int, Work]]) -> None:
        """Run chunks of prefill, decodes and drafts in one batch, with the requests in any order."""
        self.engine.step({self._request(request).id: work for request, work in batch})

    @precondition(lambda self: self.engine.requests)
    @rule(num_drafts=DRAFTS, num_accepted=DRAFTS)
    def decode(self, num_drafts: int, num_accepted: int) -> None:
        """Run one token of every request and the drafts after it, or all that waits of a prompt. Most steps are like this."""
        self.engine.step(dict.fromkeys(self.engine.requests, Work(MAX_TOKENS, num_drafts, num_accepted)))

    @precondition(lambda self: self.engine.seen and len(self.engine.requests) < MAX_REQUESTS)
    @rule(request=st.integers(0, 9), num_shared_tokens=SHARED, num_new_tokens=NEW, salt=st.integers(0, 1))
    def share_a_prefix(self, request: int, num_shared_tokens: int, num_new_tokens: int, salt: int) -> None:
        like = len(self.engine.seen) - 1 - request % len(self.engine.seen)
        self.engine.add_request(num_new_tokens, salt, like, num_shared_tokens)

    @precondition(lambda self: "fork" in self.engine.has and 0 < len(self.engine.requests) < MAX_REQUESTS)
    @rule(request=REQUEST)
    def fork_a_beam(self, request: int) -> None:
        parent = self._request(request)
        self.engine.fork(parent.id, parent.num_computed_tokens, 1)

    @precondition(lambda self: self.engine.requests)
    @rule(request=REQUEST)
    def preempt(self, request: int) -> None:
        self.engine.preempt(self._request(request).id)

    @precondition(lambda self: self.engine.requests)
    @rule(request=REQUEST)
    def finish(self, request: int) -> None:
        self.engine.finish(self._request(request).id)

    def teardown(self) -> None:
        self.engine.end()

    def _request(self, number: int) -> ManagedRequest:
        return list(self.engine.requests.values())[number % len(self.engine.requests)]


def explore(scheduler: Callable[[], Traffic], *, seed: int, sequences: int, actions: int, **options: Any) -> None:
    """Have Hypothesis draw sequences of actions, and make a failing one short.

    Args:
        scheduler: makes what plays a sequence.
        seed: the same one plays the same sequences.
        sequences: number of sequences.
        actions: the most actions of a sequence.
        options: further settings of Hypothesis.

    Raises:
        ManagerFaultError: the manager is wrong.
    """

    def made() -> Traffic:
        return scheduler()

    run_state_machine_as_test(
        hypothesis.seed(seed)(made),  # pyright: ignore[reportArgumentType]: it takes any function that makes one
        settings=hypothesis.settings(
            INDEPENDENT,
            max_examples=sequences,
            stateful_step_count=actions,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            **options,
        ),
    )

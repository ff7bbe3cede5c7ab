"""Steps of a serving engine: query and key lengths, drawn from published traffic.

A step's requests come from one trace, and their lengths are log-normal. The traces are known by these figures of their papers:

    conversation, code    median prompts of 1020 and 1500 tokens         Splitwise, arXiv 2311.18677: Azure's traces
    chat                  prompts and answers of 161 and 338 on average  vLLM, arXiv 2309.06180: ShareGPT
    documents             inputs of 7590 tokens on average               Mooncake, arXiv 2407.00079

The spread, SIGMA, is our choice. So is a fifth trace, whose lengths are log-uniform from MIN_TOKENS to MAX_TOKENS.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

SIGMA, MIN_TOKENS, MAX_TOKENS = 1.0, 16, 128 * 1024
_OF_A_MEAN = math.exp(-(SIGMA**2) / 2)
"""The median of a log-normal, as a share of its mean."""
MEDIANS = {"conversation": 1020.0, "code": 1500.0, "chat": (161 + 338) * _OF_A_MEAN, "documents": 7590 * _OF_A_MEAN}
"""Tokens, by trace. `None` stands for the log-uniform one."""
TRACES: tuple[str | None, ...] = (*MEDIANS, None)
STEP_TOKENS = (2048, 4096, 8192, 16384)
"""The most query tokens of a step (vLLM's max_num_batched_tokens)."""
MAX_KEYS = 1 << 20
"""The most keys of a step's requests together: an engine's cache is full then."""


class Lengths(NamedTuple):
    """Lengths of a step's requests. `common_prefix_len`: leading keys that all requests have in the same blocks."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    common_prefix_len: int = 0


def decode(rng: random.Random) -> Lengths:
    lengths = contexts(rng)
    return Lengths((1,) * len(lengths), lengths)


def speculation(rng: random.Random) -> Lengths:
    """Each request has its last token and a draft of one to seven more."""
    query_len, lengths = rng.randint(2, 8), contexts(rng)
    return Lengths((query_len,) * len(lengths), tuple(n + query_len for n in lengths))


def prompts(rng: random.Random) -> Lengths:
    """Prompts without a context, as many as a step takes; a longer one has a step of its own."""
    room, trace, lengths = rng.choice(STEP_TOKENS), rng.choice(TRACES), []
    while not lengths or sum(lengths) < room:
        lengths.append(length_of(rng, trace))
    fitting = lengths if len(lengths) == 1 else lengths[:-1]
    return Lengths(tuple(fitting), tuple(fitting))


def chunks(rng: random.Random) -> Lengths:
    """Parts of long prompts after what is computed of them, beside requests that decode."""
    chunk, room = rng.choice((256, 512, 1024, 2048)), rng.choice(STEP_TOKENS)
    before = [length_of(rng, "documents") for _ in range(rng.randint(1, room // chunk))]
    decoding = contexts(rng)[: rng.choice((0, 16, 64, 256))]
    return Lengths((chunk,) * len(before) + (1,) * len(decoding), (*(n + chunk for n in before), *decoding))


def shared_prefix(rng: random.Random) -> Lengths:
    """Requests that decode after one long instruction."""
    prefix = 1024 * rng.randint(1, 16)
    own = [length_of(rng, "chat") for _ in range(rng.randint(2, 128))]
    return Lengths((1,) * len(own), tuple(prefix + n for n in own), prefix)


TRAFFIC: dict[str, Callable[[random.Random], Lengths]] = {
    "decode": decode,
    "speculation": speculation,
    "prompts": prompts,
    "chunks": chunks,
    "shared prefix": shared_prefix,
}
"""Classes of steps, by their names on the page."""


def contexts(rng: random.Random) -> tuple[int, ...]:
    """Lengths of 1 to 256 requests that decode, in the order in which they came. Small and large batches are as likely."""
    requests, trace = round(2 ** rng.uniform(0, 8)), rng.choice(TRACES)
    lengths = [length_of(rng, trace) for _ in range(requests)]
    while sum(lengths) > MAX_KEYS:
        lengths.pop()
    return tuple(lengths)


def length_of(rng: random.Random, trace: str | None) -> int:
    if trace is None:
        return round(math.exp(rng.uniform(math.log(MIN_TOKENS), math.log(MAX_TOKENS))))
    return min(MAX_TOKENS, max(MIN_TOKENS, round(rng.lognormvariate(math.log(MEDIANS[trace]), SIGMA))))

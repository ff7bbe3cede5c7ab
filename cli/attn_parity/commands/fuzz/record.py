"""The record that `attn-parity fuzz --json` writes.

A number that JSON does not have, such as the error over the bound of an output that is NaN, is written as null.
"""

from typing import Literal, NotRequired, TypedDict

from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import VerdictKind


class AsFound(TypedDict):
    """A failure before its case was made small."""

    kind: VerdictKind
    message: str
    case: Case


class Failure(TypedDict):
    """A failing case: the number of examples until it was found, and True for `minimal` if shrinking ended by itself."""

    kind: VerdictKind
    message: str
    found_after: int
    minimal: bool
    case: Case
    first: AsFound


class Found(Failure):
    """A failure of a run, the files about it, and lines about where its outputs are wrong and which mistake explains them.

    `past` is the name of the past case that fails, if it is one. `while_shrinking` says whether the failure was met while
    another one was shrunk. `never_sent` says why no engine sends the case, in the mode beyond. The last fields are those of a
    run with --keep-going: `needs` are the aspects that the smallest case needs (`attn_fuzz.findings.aspects`), `later` counts
    later failing cases of the same cause, `again` says whether the case failed when it was run once more, and `met_in` names
    the failure whose shrinking met this one, if no drawn case did. There `found_after` counts the target's past cases, too.
    """

    past: str | None
    while_shrinking: bool
    first_file: str | None
    case_file: str | None
    script: str | None
    explanation: list[str]
    never_sent: str | None
    name: NotRequired[str]
    about: NotRequired[str]
    needs: NotRequired[list[str]]
    later: NotRequired[int]
    again: NotRequired[bool]
    met_in: NotRequired[str | None]


class Possible(TypedDict):
    """The number of features that the target supports, and those not drawn."""

    possible: int
    not_drawn: list[str]


class Drawn(TypedDict):
    """Cases that were thrown away, by reason; remedies, by reason; and what was not drawn."""

    rejected: dict[str, int]
    remedies: dict[str, list[str]]
    features: Possible


class AskedMistake(TypedDict):
    """A mistake that a kernel may make (`attn_fuzz.account`), what it is about, and the number of sizes that it can have.

    `places` has for each path, dtype and layout of a cache, and for "anywhere", how many cases were asked, and in how many of
    its sizes a case would have shown it.
    """

    mistake: str
    about: str
    sizes: int
    places: dict[str, tuple[int, int]]


class Fuzz(TypedDict):
    """A run of `attn-parity fuzz`.

    `planned` and `examples` count drawn cases, `layers` the layers that they have, `replayed` past cases, `restarted`
    shards that ran again, and `refused` cases that the target refuses. `wrong_calls` counts corrupted calls by what became
    of them. `limits` counts by limit the cases that this tool could not run. `events` counts examples that took a path of
    the kernels, and `known` failures by known findings; of these, `known_by_predicate` counts those that were not seen to
    agree once the finding is repaired. `known_after` says for each finding how many cases had been drawn when the first of
    its failures was. `seconds` is the time of the run, `spent` that of all workers by kind of work. `max_ratio` is the
    largest error over its bound. `ratios` has, by tensor, dtype and phase, how many elements lie in each bin of
    `attn_fuzz.verdict.ratios`. `launches` counts launches by Triton kernel, on a CPU. `largest` has the most keys and
    queries of a request, and requests of a step. `in_modes` counts examples in modes of the target. `declared_away` has
    what the target's Support leaves out, by field. `left_out` has, by property and by reason, the examples that were not
    asked. `account` says which mistakes the run would have seen.
    """

    schema: Literal["attn-parity.fuzz/1"]
    target: str
    device: str
    versions: dict[str, str]
    seed: int
    workers: int
    planned: int
    examples: int
    layers: int
    replayed: int
    restarted: int
    refused: int
    wrong_calls: dict[str, int]
    limits: dict[str, int]
    drawn: Drawn
    events: dict[str, int]
    launches: dict[str, int]
    largest: dict[str, int]
    in_modes: dict[str, int]
    declared_away: dict[str, list[str]]
    left_out: dict[str, dict[str, int]]
    account: list[AskedMistake]
    known: dict[str, int]
    known_by_predicate: dict[str, int]
    known_after: dict[str, int]
    no_longer_failing: list[str]
    seconds: float
    spent: dict[str, float]
    max_ratio: float | None
    ratios: dict[str, list[int]]
    interrupted: bool
    error: str | None
    failures: list[Found]


class FuzzRuns(TypedDict):
    """Runs of several targets, which took turns."""

    schema: Literal["attn-parity.fuzz-runs/1"]
    runs: list[Fuzz]

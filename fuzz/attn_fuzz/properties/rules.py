"""Beside which rules the properties hold: one record for each question that properties ask of a rule.

Every rule of a layer or a step is an answer to each question, a yes or a no with its reason. A rule without an answer leaves
out the properties that ask: they say nothing of a kernel beside a rule that nobody has thought of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from attn_contract import RULES
from attn_contract.rules import active_rules
from attn_fuzz.cases.tensors import Step

NO_ANSWER = "nobody has said whether the property holds beside it (attn_fuzz.properties.rules)"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a rule, with the answers.

    Args:
        asks: the question.
        yes: the rules beside which a property that needs a yes holds.
        no: each other rule, with the reason.
    """

    asks: str
    yes: frozenset[str]
    no: Mapping[str, str]

    @property
    def answered(self) -> frozenset[str]:
        return self.yes | self.no.keys()

    def left_out(self, step: Step, adds: tuple[str, ...]) -> tuple[str, str] | None:
        """The first rule of a step beside which a property does not hold, and the reason; None if there is none.

        Args:
            adds: rules that the property's variants may have beside those of the step.
        """
        for more in adds:
            if step.layer.attn_type not in RULES[more].attn_types:
                return more, f"{step.layer.attn_type}: {RULES[more].why_not}"
        for name in active_rules(step.layer, step.batch):
            if name in self.no:
                return name, self.no[name]
            if name not in self.yes:
                return name, NO_ANSWER
            for more in adds:
                if more in RULES[name].excludes:
                    return name, RULES[name].why_excluded
                if name in RULES[more].excludes:
                    return name, RULES[more].why_excluded
        return None


def _question(asks: str, *yes: str, **no: str) -> Question:
    return Question(asks=asks, yes=frozenset(yes), no=no)


_SELECTS = "its units are counted from the beginning of the sequence"
_SHARES = "its keys are counted from the beginning of the sequence"
_SEES_OTHERS = "a query sees keys of queries after it, which come in a later step"
_BY_POSITION = "what a query sees of it depends on the position of the query or of the key, which a part of the keys changes"

ANY_ORDER: Final = _question(
    "Does it know heads, requests, rows and blocks by the axes of its record alone, and no window that hides nothing?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
)
LINEAR_IN_V: Final = _question(
    "Do the weights not depend on V, and the output on V linearly and channel by channel?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
)
SHIFTED: Final = _question(
    "Does scale * q.c, added to all logits of a row, change no weight, and add as much to the LSE?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("q_scale", "alibi_slopes", "qq_bias", "head_size_v"),
    logits_soft_cap="it is applied to what was shifted",
    sinks="their logit is not shifted",
)
SUMS_TO_ONE: Final = _question(
    "Do the weights sum to 1 less the share of the sinks?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
)
BOUNDED: Final = _question(
    "Does `attn_fuzz.properties.bound` count what it adds to logits, and its errors?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
)
PRODUCT_OF_SCALE: Final = _question(
    "Does it see q and the scale only in their product?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
)
IN_STEPS: Final = _question(
    "Does a query see as much where the queries after it come in a later step?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "sinks", "head_size_v"),
    bidirectional_ranges=_SEES_OTHERS,
    qq_bias=_SEES_OTHERS,
)
OF_DISTANCES: Final = _question(
    "Does it hold as before if all positions of a request become less?",
    *("window", "ranges_clamped", "logits_soft_cap", "q_scale", "alibi_slopes", "sinks", "qq_bias", "head_size_v"),
    sink_tokens="they are the first keys of the sequence",
    chunked_local="chunks begin at the beginning of the sequence",
    bidirectional_ranges="ranges name positions",
    selection_unit=_SELECTS,
    key_unit=_SHARES,
)
FAR: Final = _question(
    "Does it hold as before after whole chunks of keys that no query sees, in which ranges are moved?",
    *("window", "sink_tokens", "chunked_local", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "qq_bias", "sinks", "head_size_v"),
    selection_unit=_SELECTS,
    key_unit=_SHARES,
)
OF_PARTS: Final = _question(
    "Does it hold for a part of the keys as for all keys?",
    *("sink_tokens", "ranges_clamped", "logits_soft_cap", "q_scale", "sinks", "head_size_v"),
    window=_BY_POSITION,
    chunked_local=_BY_POSITION,
    bidirectional_ranges=_BY_POSITION,
    alibi_slopes=_BY_POSITION,
    qq_bias=_BY_POSITION,
    selection_unit=_SELECTS,
    key_unit=_SHARES,
)
LAST_SEES_ALL: Final = _question(
    "Does the last query see as much where queries see what comes after them?",
    *("window", "sink_tokens", "chunked_local", "selection_unit", "key_unit", "ranges_clamped", "bidirectional_ranges"),
    *("logits_soft_cap", "q_scale", "alibi_slopes", "sinks", "head_size_v"),
    qq_bias="it hides keys from the last query that other queries see",
)
QUESTIONS: Final = {name: each for name, each in globals().items() if isinstance(each, Question)}

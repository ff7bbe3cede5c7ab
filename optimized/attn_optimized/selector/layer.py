"""Selects a backend for one layer, with the reasons against the backends before it."""

import functools
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attn_contract import AttentionConfig, ContractError, Layout, Refusal, UnsupportedError
from attn_contract.arguments import check_type, shown
from attn_contract.capabilities import unsupported

from attn_optimized.aiter_adapter import Aiter, find_aiter
from attn_optimized.backends import BACKENDS
from attn_optimized.selector.priorities import cache_kind, parse_architecture, priorities


@dataclass(frozen=True)
class Skipped:
    """A backend that does not serve the layer, with all reasons. It is before the selected one in the order of priority."""

    backend: str
    refusals: tuple[Refusal, ...]

    def __str__(self) -> str:
        return f"{self.backend}: {'; '.join(map(str, self.refusals))}"


@dataclass(frozen=True, kw_only=True)
class BackendSelection:
    """The backend and the layout of a layer.

    Attributes:
        backend: its name, a key of `attn_optimized.backends.BACKENDS`.
        layout: the layout of the layer's KV cache; None for the types that have none.
        why: a sentence.
        skipped: the backends that were tried before, in that order.
    """

    backend: str
    layout: Layout | None
    why: str
    skipped: tuple[Skipped, ...]


def select(
    config: AttentionConfig, *, architecture: str, aiter: Aiter | None = None, backend: str | None = None
) -> BackendSelection:
    """The first backend, in the architecture's order, that serves a layer.

    If backends before it were skipped, one INFO line names the selection, and DEBUG lines name the reasons (vLLM #38450), once
    for each config.

    Args:
        config: the requirements of the layer; its `layout`, if given, is kept.
        architecture: such as "gfx942", "sm90" or "interpreter".
        aiter: AMD's AITER; the installed one if None.
        backend: the name of the only backend to consider.

    Raises:
        UnsupportedError: `backend` does not serve the layer, or none does; with all reasons, and who does.
        ContractError: an unknown architecture or backend.
    """
    check_type("config", config, AttentionConfig, "an AttentionConfig")
    architecture = parse_architecture(architecture)
    answers = answers_of(config, architecture, aiter_or_installed(aiter), backend)
    wanted = wanted_of(answers, config, architecture, backend)
    answer = next(answer for answer in wanted if not answer.refusals)
    skipped = skipped_before(wanted, answer)
    selection = BackendSelection(
        backend=answer.backend,
        layout=answer.layouts[0],
        why=why_selected(architecture, backend, skipped),
        skipped=skipped,
    )
    log_skipped(config, architecture, selection)
    return selection


@dataclass(frozen=True)
class BackendAnswer:
    """One backend's answer for one layer: the layouts that fit, in its order, or why it does not serve."""

    backend: str
    layouts: tuple[Layout | None, ...]
    refusals: tuple[Refusal, ...]


def aiter_or_installed(aiter: Aiter | None) -> Aiter:
    check_type("aiter", aiter, Aiter | None, "None (the installed one) or an Aiter")
    return find_aiter() if aiter is None else aiter


def answers_of(config: AttentionConfig, architecture: str, aiter: Aiter, backend: str | None = None) -> list[BackendAnswer]:
    """The answers of the backends, and of the one that is wanted, for layers of this kind."""
    names = priorities(architecture, cache_kind(config))
    if isinstance(backend, str) and backend in BACKENDS:
        names = dict.fromkeys((*names, backend))
    return [_answer(name, config, architecture, aiter) for name in names]


def _answer(name: str, config: AttentionConfig, architecture: str, aiter: Aiter) -> BackendAnswer:
    capabilities = BACKENDS[name].capabilities(aiter)
    refusals = capabilities.refusals(config, architecture)
    if refusals or config.layout is not None or not config.attn_type.reads_cache:
        return BackendAnswer(name, (config.layout,), tuple(refusals))
    layouts: list[Layout] = []
    reasons: list[Refusal] = []
    for layout in capabilities.layouts.values:
        if layout.has_inline_scales != (config.scales == "inline"):
            reasons.append(Refusal(f"layout {layout} with scales {config.scales}", "its rows hold their scales, no other's do"))
        elif layout.has_latent_value != config.has_latent_cache:
            asked = f"layout {layout} with head_size_v {config.value_of('head_size_v')}"
            reasons.append(Refusal(asked, "V is the beginning of K's row in latent layouts, and in no other"))
        elif refused := capabilities.refusals(replace(config, layout=layout), architecture):
            reasons += refused
        else:
            layouts.append(layout)
    return BackendAnswer(name, tuple(layouts), () if layouts else tuple(dict.fromkeys(reasons)))


def wanted_of(
    answers: list[BackendAnswer], config: AttentionConfig, architecture: str, backend: str | None
) -> list[BackendAnswer]:
    """The answers that may be selected, at least one of which serves."""
    if backend is None:
        if all(answer.refusals for answer in answers):
            reasons = as_lines(map(str, skipped_before(answers, None)))
            who = f"every backend of this project on {architecture}"
            raise UnsupportedError(who, f"{config.attn_type} attention of this kind", reasons)
        return answers
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ContractError("backend", shown(backend), f"one of {', '.join(sorted(BACKENDS))}")
    answer = next(answer for answer in answers if answer.backend == backend)
    if answer.refusals:
        serving = " or ".join(answer.backend for answer in answers if not answer.refusals)
        raise unsupported(backend, answer.refusals, serving or None)
    return [answer]


def skipped_before(answers: list[BackendAnswer], selected: BackendAnswer | None) -> tuple[Skipped, ...]:
    before = itertools.takewhile(lambda answer: answer is not selected, answers)
    return tuple(Skipped(answer.backend, answer.refusals) for answer in before)


def why_selected(architecture: str, backend: str | None, skipped: tuple[Skipped, ...]) -> str:
    if backend is not None:
        return "asked for by name"
    if not skipped:
        return f"the first choice on {architecture}"
    return f"the first on {architecture} that serves it, after {listed(one.backend for one in skipped)}"


logger = logging.getLogger("attn_optimized.selector")


# once for each config, however often it is selected
@functools.lru_cache(maxsize=1024)
def log_skipped(config: AttentionConfig, architecture: str, selection: BackendSelection) -> None:
    if not selection.skipped:
        return
    skipped = listed(one.backend for one in selection.skipped)
    logger.info("%s attention on %s: %s, skipping %s", config.attn_type, architecture, selection.backend, skipped)
    for one in selection.skipped:
        logger.debug("%s", one)


def as_lines(texts: Iterable[str]) -> str:
    return "".join(f"\n  {text}" for text in texts)


def listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last

"""The scopes that an exhaustive run enumerates, as data.

A scope is a tuple of parts. A part fixes the number of requests of a call, their lengths, the block sizes and the choices. A
choice is one thing that a call can have or not, such as a window; its settings are the values beside "off". A part enumerates

    each layer: all choices off; one choice at each of its settings; and, if the part has pairs, two choices at each pair of
        their settings
    of each layer, each block size
    of these, each batch of requests: all query lengths, all key lengths, and what the causality and the ranges of the layer
        leave to a request
    of each batch, each block table, up to the symmetries (`attn_fuzz.exhaustive.symmetry`)

Lengths are small on purpose. A rule of visibility compares two positions, so its edges appear among five keys. Other lengths
are those around the ends of tiles, where a kernel begins another tile or splits the keys.

Some settings are of latent caches alone. On a target of other caches they are undefined or left out, and the other way round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from attn_contract import RULES as RULES_OF_CALLS
from attn_contract import AttentionType
from attn_contract.rules import LOGITS, SOFTMAX, VISIBILITY
from attn_fuzz.cases.dimensions import DIMENSIONS, Setting, values_of


@dataclass(frozen=True)
class ScopeChoice:
    """One thing that a call can have, with its values beside "off"."""

    name: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class ScopePart:
    """A part of a scope; see the module's docstring.

    Args:
        what: for people.
        num_requests: the number of requests of each call.
        query_lens, seq_lens, block_sizes: all combinations are enumerated. A target that does not serve a block size gets the
            next larger one that it serves.
        choices: of layers.
        pairs: True if layers have two choices at once, too.
        packed: True if calls of one request are run together (`attn_fuzz.exhaustive.packing`). If not, each call is a launch of
            its own.
    """

    what: str
    num_requests: int
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    block_sizes: tuple[int, ...]
    choices: tuple[ScopeChoice, ...]
    pairs: bool = False
    packed: bool = False


@dataclass(frozen=True, kw_only=True)
class Scope:
    """A named set of calls, which a run goes through without sampling."""

    name: str
    what: str
    parts: tuple[ScopePart, ...]


def _values(name: str, *values: Any) -> ScopeChoice:
    """A choice that is one field of Case, at each of some values."""
    return ScopeChoice(name, values_of(name, values))


def _choices(scopes: str) -> dict[str, ScopeChoice]:
    """The choices of `attn_fuzz.cases.dimensions`, by name, with the settings of scopes with "few" or with "all" settings."""
    settings: dict[str, list[Setting]] = {}
    for dimension in DIMENSIONS:
        own = [setting for value in dimension.values for setting in value.settings if setting.scopes in ("every", scopes)]
        settings.setdefault(dimension.choice or dimension.name, []).extend(own)
    return {name: ScopeChoice(name, tuple(found)) for name, found in settings.items() if found}


FEW, ALL = _choices("few"), _choices("all")
MASKS = ("causality", *(name for name, rule in RULES_OF_CALLS.items() if rule.acts_on is VISIBILITY and name in FEW))
LOGIT_RULES = (*(name for name, rule in RULES_OF_CALLS.items() if rule.acts_on in (LOGITS, SOFTMAX)), "lse")
FORMATS = tuple(name for name in FEW if name not in (*MASKS, *LOGIT_RULES))
OF_TWO_REQUESTS = (
    ScopeChoice("causality", FEW["causality"].settings[1:]),
    _values("window", (0, -1)),
    _values("sinks", "near"),
    _values("qq_bias", "random"),
    _values("attn_type", AttentionType.ENCODER_DECODER),
)


def _few(*names: str) -> tuple[ScopeChoice, ...]:
    return tuple(FEW[name] for name in names)


RULES = Scope(
    name="rules",
    what="each rule and each format alone, at its edges and inside; and two short requests",
    parts=(
        ScopePart(
            what="one request, blocks of one key",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1,),
            choices=_few(*MASKS, *LOGIT_RULES, *FORMATS),
            packed=True,
        ),
        ScopePart(
            what="one request alone in its launch",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 3),
            block_sizes=(2,),
            choices=_few(*MASKS, *LOGIT_RULES, *FORMATS),
        ),
        ScopePart(
            what="two requests, blocks of one key",
            num_requests=2,
            query_lens=(0, 1, 2),
            seq_lens=(0, 1, 2),
            block_sizes=(1,),
            choices=OF_TWO_REQUESTS,
        ),
    ),
)


def _masks_at(tile: int) -> tuple[ScopeChoice, ...]:
    """Rules of masks with edges around the ends of tiles of `tile` keys."""
    edges = (tile - 1, tile, tile + 1)
    values = {
        "window": ((0, -1), *((edge, -1) for edge in edges), (-1, 0), (-1, tile - 1), (-1, tile), (tile, tile)),
        "sink_tokens": (1, tile, tile + 1),
        "chunked_local": (1, *edges),
    }
    return tuple(_values(name, *values[name]) if name in values else FEW[name] for name in MASKS)


CI = Scope(
    name="ci",
    what="the scope rules, each pair of rules of masks and logits, and one request over several tiles of 64 keys",
    parts=(
        RULES.parts[0],
        ScopePart(
            what="one request, pairs of rules",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(2,),
            choices=_few(*MASKS, *LOGIT_RULES),
            pairs=True,
            packed=True,
        ),
        *RULES.parts[1:],
        ScopePart(
            what="one request over several tiles, alone in its launch",
            num_requests=1,
            query_lens=(1, 2, 65),
            seq_lens=(64, 65, 129, 321),
            block_sizes=(16,),
            choices=(*_masks_at(64), *_few(*LOGIT_RULES, *FORMATS)),
        ),
    ),
)

SMALL = Scope(
    name="small",
    what="every rule at every value among five keys, every pair of settings of rules and formats, two requests",
    parts=(
        ScopePart(
            what="one request",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1, 2),
            choices=tuple(ALL.values()),
            pairs=True,
            packed=True,
        ),
        ScopePart(
            what="one request alone in its launch",
            num_requests=1,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(1, 2),
            choices=tuple(ALL.values()),
        ),
        ScopePart(
            what="two requests",
            num_requests=2,
            query_lens=(0, 1, 2, 3),
            seq_lens=(0, 1, 2, 3, 4, 5),
            block_sizes=(2,),
            choices=_few(*MASKS, *LOGIT_RULES, *FORMATS),
        ),
    ),
)


def _tiles(tile: int) -> Scope:
    """Lengths around the ends of tiles of keys, so that one call needs up to three tiles."""
    edges = (tile - 1, tile, tile + 1)
    formats = [name for name in FORMATS if name not in ("scale", "layout", "rope")]
    return Scope(
        name=f"tiles-{tile}",
        what=f"lengths around the ends of tiles of {tile} keys",
        parts=(
            ScopePart(
                what="one request over several tiles",
                num_requests=1,
                query_lens=(1, 2, tile + 1),
                seq_lens=(*edges, *(tile + edge for edge in edges)),
                block_sizes=(1, 16),
                choices=(*_masks_at(tile), *_few(*LOGIT_RULES, *formats)),
                pairs=True,
                packed=True,
            ),
            ScopePart(
                what="two requests over several tiles",
                num_requests=2,
                query_lens=(1, tile + 1),
                seq_lens=(tile, tile + 1),
                block_sizes=(tile,),
                choices=OF_TWO_REQUESTS,
            ),
        ),
    )


SCOPES: Final[Mapping[str, Scope]] = {scope.name: scope for scope in (RULES, CI, SMALL, _tiles(16), _tiles(64))}

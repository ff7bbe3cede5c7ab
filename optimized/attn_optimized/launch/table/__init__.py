"""Launch parameters of the attention kernel, as data: one file per architecture, whose entries say where they come from.

`python -m benchmarks tune --write` searches for better parameters on this machine's GPU and writes its file; with `--arch
gfx942` it derives them from compiled binaries, for a GPU that is elsewhere. To try others yourself, give
`attn_optimized.plan_of` a `Parameters` of your own, and the plan to `attention.paged_attention_calls`.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from attn_contract import ContractError
from attn_contract.arguments import check_int, check_type

FOLDER = Path(__file__).parent
SCHEMA = "attn-parity.launch-table/1"
MAX_BYTES = 1 << 20
# chips whose kernels compile to nearly the same code
_LIKE = {"gfx90a": "gfx942", "gfx1250": "gfx1201"}
_MINIMA = {
    "block_m": 16,
    "block_n": 16,
    "num_warps": 1,
    "num_stages": 1,
    "maxnreg": 16,
    "waves_per_eu": 1,
    "keys_per_split": 1,
    "programs_per_unit": 1,
    "uneven_waves": 0,
}
Phase = Literal["decode", "wide_decode", "mixed", "short", "prefill", "window", "rules"]
LatentPhase = Literal["latent_decode", "latent_scaled_decode", "latent", "latent_scaled"]
AnyPhase = Phase | LatentPhase
_PHASES = (*get_args(Phase), *get_args(LatentPhase))


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The free parameters of a launch.

    Args:
        block_m: the fewest rows of a tile, pairs of query and head. A tile holds at least all query heads of a KV head.
        block_n: keys of a tile.
        num_warps, num_stages: as the compiler takes them.
        maxnreg: registers of a thread at most, so that more programs fit a multiprocessor (NVIDIA); None: any number.
        waves_per_eu: waves that a SIMD should hold (AMD); None: as the compiler likes.
        keys_per_split: the fewest keys that are worth a program of their own.
        programs_per_unit: the number of programs that a compute unit runs at once, as splits of the keys assume.
        uneven_waves: the waves of programs if requests have different lengths; 0: the same as for equal lengths, without the
            kernel for parts if that needs no parts.

    Raises:
        ContractError: a value is no int or too small, or sides of a tile or warps are no power of two.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    waves_per_eu: int | None = None
    keys_per_split: int = 512
    programs_per_unit: int = 2
    uneven_waves: int = 4

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            if value is not None or name not in ("maxnreg", "waves_per_eu"):
                check_int(f"parameters.{name}", value, minimum=minimum)
        for name in ("block_m", "block_n", "num_warps"):
            value = getattr(self, name)
            if value.bit_count() != 1:
                raise ContractError(f"parameters.{name}", value, "a power of two")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Parameters for a class of calls. If several entries fit a call, the first one counts.

    Args:
        phase: decode: the rows (pairs of query and head of a group) of a request fit the smallest tile; wide_decode: they do
            not, and are few; mixed: requests that decode are most, beside longer ones; rules: longer ones whose keys have a
            bias, or holes among them; window: queries see few keys; short: large tiles would leave compute units idle; prefill:
            the others. All that is batch-invariant is rules if the layer has ALiBi slopes, else prefill. Of a latent cache,
            latent_decode: requests of few rows (queries times heads); latent_scaled_decode: of these, those whose cache's rows
            hold scales; latent_scaled: other requests over such rows; latent: the others. See `workload.phase_of`.
        itemsize: bytes of an element of q.
        most_block_d: the largest head size, K's or V's, padded to a power of two; of a latent cache, to two of them: 512 + 64.
        quantized: True if the cache's elements are of one byte.
        parameters: see Parameters.
        source: "measured: ..." with machine and date, or "derived: ..." with from what.

    Raises:
        ContractError: a field is none of these.
    """

    phase: AnyPhase
    itemsize: int
    most_block_d: int
    quantized: bool
    parameters: Parameters
    source: str

    def __post_init__(self) -> None:
        if self.phase not in _PHASES:
            raise ContractError("phase", repr(self.phase), f"one of {', '.join(_PHASES)}")
        for name in ("itemsize", "most_block_d"):
            check_int(name, getattr(self, name), minimum=1)
        check_type("quantized", self.quantized, bool, "true or false")
        check_type("source", self.source, str, "where the parameters are from, in words")


def entry_for(architecture: str, *, phase: AnyPhase, itemsize: int, block_d: int, quantized: bool) -> Entry:
    """The first entry that fits; see `device.architecture_of` for the names.

    Raises:
        ContractError: the file of the table is wrong, or it has no such entry.
    """
    for entry in entries(architecture):
        fits = entry.phase == phase and entry.itemsize == itemsize and entry.quantized == quantized
        if fits and block_d <= entry.most_block_d:
            return entry
    wanted = f"one of {phase} for elements of {itemsize} bytes and head size {block_d}, quantized {quantized}"
    raise ContractError(f"{table_of(architecture)}.json", "no such entry", wanted)


@lru_cache
def entries(architecture: str) -> tuple[Entry, ...]:
    """All entries of the table that an architecture's calls are launched by.

    Raises:
        ContractError: the file is no table; the message names the file, the entry by its number from 0, and the field.
    """
    path = FOLDER / f"{table_of(architecture)}.json"
    text = _bytes(path)
    try:
        table = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ContractError(path.name, str(error), "a table of launch parameters, as JSON") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA or not isinstance(table.get("entries"), list):
        raise ContractError(path.name, "another document", f"schema {SCHEMA} and a list of entries")
    return tuple(_entry(f"{path.name}: entry {number}", fields) for number, fields in enumerate(table["entries"]))


def _bytes(path: Path) -> bytes:
    """The bytes of a file of at most MAX_BYTES."""
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ContractError(path.name, f"more than {MAX_BYTES} bytes", "a table of launch parameters")
    return text


def architectures() -> tuple[str, ...]:
    """The architectures that have a table of their own, and those that are known to be like one of them."""
    return tuple(sorted({*_LIKE, *(path.stem for path in FOLDER.glob("*.json"))}))


def table_of(architecture: str) -> str:
    """The architecture whose file is read: itself, the most similar one that has a file, or one of none in particular.

    Raises:
        ContractError: it is no name of an architecture.
    """
    if not isinstance(architecture, str) or not re.fullmatch(r"gfx1?[0-9a-f]{3}|sm\d+", architecture):
        raise ContractError("architecture", repr(architecture), "such as gfx90a, gfx942, gfx1201 or sm90")
    names = (architecture, _LIKE.get(architecture), "gfx942" if architecture.startswith("gfx") else "sm90")
    for name in names:
        # no pipe and no device: they have no end
        if name and (FOLDER / f"{name}.json").is_file():
            return name
    raise ContractError("architecture", repr(architecture), f"one that has a file in {FOLDER.name}")


def _entry(place: str, fields: Any) -> Entry:
    try:
        return Entry(**{**fields, "parameters": Parameters(**fields["parameters"])})
    except (TypeError, KeyError) as error:
        raise ContractError(place, str(error), "the fields of Entry and of Parameters, each once") from None
    except ContractError as error:
        raise ContractError(f"{place}: {error.argument}", error.got, error.expected) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON without repeated keys. json's own dict silently keeps the last of two values of one key."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(f"a key twice among {', '.join(name for name, _ in pairs)}")
    return fields

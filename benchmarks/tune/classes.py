"""The classes of calls for which launch parameters are chosen, and the drawn cases that fall in each."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from attn_contract import AttentionType, UnsupportedError
from attn_optimized import plan_of
from attn_optimized.launch.table import Entry, Phase
from attn_optimized.launch.widths import Widths
from attn_optimized.launch.workload import Workload, phase_of

from benchmarks.measuring.machine import Rates
from benchmarks.steps.calls import attention_call
from benchmarks.steps.cases import Attention

META = torch.device("meta")
HEAD_SIZES = (64, 128, 256, 512)
CHECKED: dict[Phase, tuple[Attention, ...]] = {
    "decode": (
        Attention(name="split keys", query_lens=(1, 1, 1), seq_lens=(1500, 700, 33)),
        Attention(name="4 query tokens", query_lens=(4, 3), seq_lens=(900, 20)),
    ),
    "wide_decode": (
        Attention(name="split keys", query_lens=(1, 1, 1), seq_lens=(1500, 700, 33)),
        Attention(name="2 query tokens", query_lens=(2, 1), seq_lens=(900, 20)),
    ),
    "mixed": (Attention(name="one prefill + 8 decodes", query_lens=(200, *[1] * 8), seq_lens=(300, *range(5, 645, 80))),),
    "window": (Attention(name="window 70 + sinks", query_lens=(200, 30), seq_lens=(300, 450), window=70, sinks=True),),
    "rules": (Attention(name="chunks of 150", query_lens=(200, 30), seq_lens=(300, 450), chunked_local=150),),
    "short": (Attention(name="prefill and extend", query_lens=(200, 30), seq_lens=(200, 450)),),
    "prefill": (Attention(name="prefill and extend", query_lens=(200, 30), seq_lens=(200, 450)),),
}
"""Small cases in which the reference says whether a kernel is right: several tiles of queries and of keys, whole and cut."""
CHECKED_HEADS, CHECKED_WIDE_HEADS = (8, 2), (64, 2)
"""Query and KV heads of those, and of those of a wide decode: one query has 32 rows."""
MAX_CASES = 12
"""The most cases of a class: more of them cost time and tell little."""
H100_RATES = Rates(read=3e12, copy=3e12, matmul=7e14, launch=1e-3)
"""The rates by which cases are ordered, whatever GPU they are for."""


class CallClass(NamedTuple):
    """Calls that are launched alike: see `launch.table.Entry`."""

    phase: Phase
    itemsize: int
    most_block_d: int
    quantized: bool

    @property
    def name(self) -> str:
        """The text in which `--only` looks."""
        return f"{self.phase}, {8 * self.itemsize} bits, D {self.most_block_d}{', 8-bit cache' if self.quantized else ''}"

    @property
    def checked(self) -> list[Attention]:
        heads = CHECKED_WIDE_HEADS if self.phase == "wide_decode" else CHECKED_HEADS
        return [
            self.dressed(dataclasses.replace(each, num_heads=heads[0], num_kv_heads=heads[1])) for each in CHECKED[self.phase]
        ]

    def holds(self, entry: Entry) -> bool:
        """True if an entry is for calls of this class."""
        same = (entry.phase, entry.itemsize, entry.quantized) == (self.phase, self.itemsize, self.quantized)
        return same and self.most_block_d <= entry.most_block_d

    def dressed(self, case: Attention) -> Attention:
        """A case of the phase with this class's heads, elements and cache."""
        return dataclasses.replace(case, head_size=self.most_block_d, itemsize=self.itemsize, float8_cache=self.quantized)


CLASSES = tuple(
    CallClass(phase, itemsize, most_block_d, quantized)
    for quantized, itemsize, phase, most_block_d in itertools.product((False, True), (2, 4), get_args(Phase), HEAD_SIZES)
)
"""All, those first that models need most."""


def served(drawn: Sequence[Attention], architecture: str, compute_units: int) -> tuple[list[Attention], dict[str, str]]:
    """The cases that our kernels serve, and by name why they refuse the others."""
    refused: dict[str, str] = {}
    for case in drawn:
        try:
            for each in calls_of(case):
                call = attention_call(each, META, seed=0)
                plan_of(call.q, call.layer, call.batch, architecture=architecture, compute_units=compute_units)
        except UnsupportedError as error:
            refused[case.name] = str(error)
    return [case for case in drawn if case.name not in refused], refused


def class_of(case: Attention, compute_units: int) -> CallClass:
    """The class of a call over a cache."""
    call = attention_call(case, META, seed=0)
    workload = Workload.of(call.q, call.layer, call.batch)
    phase, widths = phase_of(workload, compute_units), Widths.of(workload)
    block_d = max(widths.row_block, widths.value_row_block)
    most_block_d = next(size for size in HEAD_SIZES if block_d <= size)
    return next(each for each in CLASSES if each == (phase, case.itemsize, most_block_d, case.float8_cache))


def calls_of(case: Attention) -> list[Attention]:
    """A case, or what cascade attention makes of it: all queries over the common prefix, and each over what is after it."""
    prefix = case.common_prefix_len
    if not prefix:
        return [case]
    of_prefix = dataclasses.replace(
        case,
        name=f"{case.name}: the prefix",
        query_lens=(case.num_tokens,),
        seq_lens=(prefix,),
        attn_type=AttentionType.ENCODER_DECODER,  # without a causal edge, as every query sees the whole prefix
        sinks=False,
        common_prefix_len=0,
    )
    own = tuple(seq_len - prefix for seq_len in case.seq_lens)
    return [of_prefix, dataclasses.replace(case, name=f"{case.name}: after it", seq_lens=own, common_prefix_len=0)]


def cases_by_class(drawn: Sequence[Attention], compute_units: int) -> dict[CallClass, list[Attention]]:
    """Drawn cases by class, those of most cases first. Of each, the case of most work and the middle one come first."""
    found: dict[CallClass, list[Attention]] = {}
    for case in itertools.chain.from_iterable(map(calls_of, drawn)):
        found.setdefault(class_of(case, compute_units), []).append(case)
    by_work = {each: _some(sorted(cases, key=_work, reverse=True)) for each, cases in found.items()}
    ordered = {each: [cases[0], *_from_the_middle(cases[1:])] for each, cases in by_work.items()}
    return dict(sorted(ordered.items(), key=lambda item: -len(found[item[0]])))


def stand_ins(call_class: CallClass, found: dict[CallClass, list[Attention]], compute_units: int) -> list[Attention]:
    """Cases of a class that no model has: the phase's, as if with its head size, elements and cache, if the phase stays."""
    alike = next((cases for each, cases in found.items() if each.phase == call_class.phase), [])
    return [case for case in map(call_class.dressed, alike) if class_of(case, compute_units) == call_class]


def _some(cases: list[Attention]) -> list[Attention]:
    """MAX_CASES of them at most, evenly."""
    step = max(1.0, len(cases) / MAX_CASES)
    return [cases[int(i * step)] for i in range(min(MAX_CASES, len(cases)))]


def _from_the_middle(cases: list[Attention]) -> list[Attention]:
    middle = len(cases) // 2
    return cases[middle : middle + 1] + cases[:middle] + cases[middle + 1 :]


def _work(case: Attention) -> float:
    return H100_RATES.floor_ms(case.flops, case.bytes)

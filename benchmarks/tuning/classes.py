"""What launch parameters are chosen for, as data: the classes of calls, and the cases that stand for each."""

import dataclasses
import itertools
from typing import NamedTuple, get_args

from attn_optimized.launch.table import Entry, Phase

from benchmarks.speed.cases import CASES, Attention

HEADS = {64: (64, 8), 128: (32, 8), 256: (16, 8)}
"""Query and KV heads that models have with a head size: GPT-OSS, Llama 3, Gemma 2."""
WIDE_HEADS = (64, 2)
"""Those of a wide decode: one query has 32 rows."""

TIMED: dict[Phase, dict[str, str]] = {
    "decode": {
        "64 x 8k": "decode, 64 x 8k",
        "1 x 128k": "decode, 1 x 128k",
        "ragged 64 x 256..16k": "decode, ragged 64 x 256..16k",
    },
    "wide_decode": {"64 x 8k": "decode, 64 x 8k", "1 x 128k": "decode, 1 x 128k", "ragged": "decode, ragged 64 x 256..16k"},
    "mixed": {"one 2k prefill + 63 decodes at 4k": "mixed, one 2k prefill + 63 decodes at 4k"},
    "window": {"window 128 + sinks, 4 x 4k": "prefill, H64/HK8/D64, window 128 + sinks, 4 x 4k"},
    "rules": {"chunks of 1k, 2 x 8k": "prefill, chunks of 1k, 2 x 8k"},
    "short": {},
    "prefill": {"4 x 4k": "prefill, 4 x 4k", "8 x 512 new on 8k": "extend, 8 x 512 new on 8k"},
}
"""Cases of `benchmarks.speed` that are timed, with the heads, dtype and cache of the class."""
SHORT: tuple[Attention, ...] = (
    Attention(name="1 x 1k", query_lens=(1024,), seq_lens=(1024,)),
    Attention(name="8 x 100", query_lens=(100,) * 8, seq_lens=(100,) * 8),
    Attention(name="2 x 256 new on 4k", query_lens=(256, 256), seq_lens=(4352, 4352)),
)
"""What is timed of short batches, which `benchmarks.speed` has none of."""

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

CHECKED_HEADS = (8, 2)


class CallClass(NamedTuple):
    """Calls that are launched alike: see `launch.table.Entry`."""

    phase: Phase
    itemsize: int
    most_block_d: int
    quantized: bool

    @property
    def name(self) -> str:
        """As `--only` looks for it."""
        return f"{self.phase}, {8 * self.itemsize} bits, D {self.most_block_d}{', 8-bit cache' if self.quantized else ''}"

    @property
    def timed(self) -> list[Attention]:
        heads = WIDE_HEADS if self.phase == "wide_decode" else HEADS[self.most_block_d]
        by_name = {case.name: case for case in CASES if isinstance(case, Attention)}
        named = [dataclasses.replace(by_name[case], name=name) for name, case in TIMED[self.phase].items()]
        return [self._case(case, heads) for case in (named if self.phase != "short" else SHORT)]

    @property
    def checked(self) -> list[Attention]:
        heads = WIDE_HEADS if self.phase == "wide_decode" else CHECKED_HEADS
        return [self._case(case, heads) for case in CHECKED[self.phase]]

    def holds(self, entry: Entry) -> bool:
        """Whether an entry is for calls of this class."""
        same = (entry.phase, entry.itemsize, entry.quantized) == (self.phase, self.itemsize, self.quantized)
        return same and self.most_block_d <= entry.most_block_d

    def _case(self, case: Attention, heads: tuple[int, int]) -> Attention:
        return dataclasses.replace(
            case,
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_size=self.most_block_d,
            itemsize=self.itemsize,
            float8_cache=self.quantized,
            reach=None,
        )


CLASSES = tuple(
    CallClass(phase, itemsize, most_block_d, quantized)
    for quantized, itemsize, phase, most_block_d in itertools.product((False, True), (2, 4), get_args(Phase), HEADS)
)
"""All, those first that models need most."""

"""What keeps something by a key that lacks a property of its arguments is wrong after the calls that come before."""

import dataclasses

import pytest
import torch
from attn_fuzz.targets.preceded import preceded


@dataclasses.dataclass(frozen=True)
class Terms:
    factor: int
    negates: bool


class Kept:
    """Multiplies rows, by what it keeps of the first call of each key. `lacks` is what the key does not have."""

    def __init__(self, lacks: str) -> None:
        self.lacks, self.by_key, self.refused, self.made = lacks, {}, 0, 0

    def __call__(self, a: torch.Tensor, b: torch.Tensor, terms: Terms, *, out: torch.Tensor) -> None:
        if a.shape != b.shape or a.shape != out.shape or a.dtype != b.dtype:
            self.refused += 1
            raise ValueError("a and b: expected one shape and dtype")
        properties = {
            "stride": a.stride(0), "rows": len(a), "dtype": a.dtype, "factor": terms.factor, "negates": terms.negates,
            "alignment": a.storage_offset() % 4,
        }  # fmt: skip
        key = tuple(value for name, value in properties.items() if name != self.lacks)
        kept = self.by_key.setdefault(key, properties)
        self.made += 1
        flat = a.as_strided((kept["rows"], a.shape[1]), (kept["stride"], 1), kept["alignment"])
        out[: kept["rows"]] = flat * kept["factor"] * (-1 if kept["negates"] else 1) + b[: kept["rows"]]


def calls(kept: Kept, seeds: range) -> int:
    """The number of calls, each in a state of its own, that write a wrong number, or fail."""
    wrong = 0
    function = preceded(kept)
    for seed in seeds:
        kept.by_key.clear()
        a, b = torch.randn(2, 3 + seed % 11, 4 + seed % 13, generator=torch.Generator().manual_seed(seed))
        a = torch.cat([a.flatten(), torch.zeros(99)])[: a.numel() + 8].as_strided(a.shape, a.stride(), seed % 3)
        terms, out = Terms(2 + seed % 3, bool(seed % 2)), torch.full(b.shape, torch.nan)
        try:
            function(a, b, terms, out=out)
        except (RuntimeError, IndexError):
            wrong += 1
            continue
        wrong += not torch.equal(out, a * terms.factor * (-1 if terms.negates else 1) + b)
    return wrong


@pytest.mark.parametrize("lacks", ["stride", "rows", "factor", "negates", "alignment"])
def test_a_property_that_a_key_lacks_is_found(lacks):
    assert calls(Kept(lacks), range(200)) > 0


def test_what_keeps_all_is_right_and_some_calls_come_before_and_are_refused():
    kept = Kept("")
    assert calls(kept, range(200)) == 0
    assert kept.made > 230
    assert kept.refused > 0


def test_the_calls_before_write_into_copies_and_leave_the_arguments():
    seen = []

    def function(a: torch.Tensor, *, out: torch.Tensor) -> None:
        seen.append((a.data_ptr(), out.data_ptr()))
        out.fill_(len(seen))

    before = [torch.randn(4, rows) for rows in range(2, 40)]
    for a in before:
        seen.clear()
        own, out = a.clone(), torch.zeros(3)
        preceded(function)(a, out=out)
        assert torch.equal(a, own)
        assert (out == len(seen)).all()
        assert seen[-1] == (a.data_ptr(), out.data_ptr())
        assert all(pointer != out.data_ptr() for _, pointer in seen[:-1])

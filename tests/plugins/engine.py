"""Continuous batching of transformers on tiny models: `python -m tests.plugins.engine` looks for false alarms of recordings.

Each model serves hundreds of requests, which share prefixes, come and go, and are preempted. A recording must judge every call,
hold every read of the cache, and find nothing. It needs transformers and what recordings need, and no network.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import attn_transformers
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from tests.plugins.tiny_models import ENGINE, VOCABULARY, tiny

IMPLEMENTATION = "paged|eager"
ENDS = [4, 5, 6, 7]
"""Tokens that end a request: some end early, at random."""


def served(
    model: Any, requests: list[list[int]], *, step: int = 32, new_tokens: int = 5, ends: Any = -1, **batching: Any
) -> list[list[int]]:
    """The tokens that continuous batching generates for each request, in pages of 8 tokens and steps of at most `step`.

    Args:
        ends: the tokens that end a request.
        batching: further options of its config.
    """
    batching = {"block_size": 8, "num_blocks": 256, "max_batch_tokens": step, **batching}
    outputs = model.generate_batch(
        inputs=requests,
        generation_config=GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(**batching),
        progress_bar=False,
    )
    return [output.generated_tokens for output in outputs.values()]


def with_prefixes(number: int, seed: int) -> list[list[int]]:
    """Prompts of 1 to 64 tokens. Three of four begin with a part of one of eight prefixes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    def tokens(count: int) -> list[int]:
        return torch.randint(8, VOCABULARY, (count,), generator=generator).tolist()

    prefixes = [tokens(draw(8, 40)) for _ in range(8)]
    return [(prefixes[draw(0, 7)][: draw(1, 40)] if draw(0, 3) else []) + tokens(draw(1, 24)) for _ in range(number)]


def recorded(name: str, number: int, seed: int) -> dict[str, Any]:
    """The counts of a recording of this model's requests.

    paged|eager serves Gemma 2 without its soft cap, which is a true alarm: there our own attention computes.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun, model = time.monotonic(), tiny(name)
    model.set_attn_implementation(IMPLEMENTATION)
    ours = attn_transformers.replacing(IMPLEMENTATION) if name == "gemma2" else contextlib.nullcontext()
    with (
        torch.no_grad(),
        ours,
        tempfile.TemporaryDirectory() as folder,
        attn_transformers.recording(folder, IMPLEMENTATION) as recording,
    ):
        outputs = served(model, with_prefixes(number, seed), step=128, new_tokens=12, num_blocks=64, ends=ENDS)
    shadow = recording.shadow
    first = [one.error or one.judgement.message for one in recording.found[:1]] + [str(fault) for fault in shadow.faults[:1]]
    return {
        "model": name,
        "requests": sum(bool(tokens) for tokens in outputs),
        "tokens": sum(map(len, outputs)),
        "calls": recording.calls,
        "judged": recording.judged,
        "wrong": recording.wrong,
        "hidden": recording.hidden,
        "not_judged": recording.not_judged,
        "reads": shadow.reads,
        "wrong_reads": shadow.wrong,
        "not_seen": shadow.not_seen,
        "first": first,
        "seconds": round(time.monotonic() - begun),
    }


def is_right(counts: dict[str, Any], number: int) -> bool:
    is_quiet = not any(counts[name] for name in ("wrong", "hidden", "wrong_reads", "not_judged", "not_seen"))
    return is_quiet and counts["requests"] == number and counts["calls"] == counts["judged"] > 0 < counts["reads"]


def _results(names: list[str], number: int, seed: int, workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (recorded(name, number, seed) for name in names)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(recorded, name, number, seed) for name in names]):
            yield future.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(ENGINE), help=f"of {', '.join(ENGINE)}; default: all")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, help="a file of lines of JSON: models that are there are left out")
    options = parser.parse_args()
    before = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    done = {json.loads(line)["model"] for line in before}
    are_right = True
    for counts in _results(
        [name for name in options.models if name not in done], options.requests, options.seed, options.workers
    ):
        are_right &= is_right(counts, options.requests)
        print(json.dumps(counts), flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(counts) + "\n")
    return 0 if are_right else 1


if __name__ == "__main__":
    sys.exit(main())

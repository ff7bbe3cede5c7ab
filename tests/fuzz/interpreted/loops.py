"""The turns of our kernels' loops in the draws of a small fuzz run, as JSON: `python -m interpreted.loops EXAMPLES`."""

import ast
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from attn_contract import Batch, Indexer
from attn_fuzz.interpreted import interpreter

FOLDER = Path(__file__).parents[3] / "optimized" / "attn_optimized" / "kernels"
_COUNTED = "_counted_turns"


def loops() -> dict[str, bool]:
    """File and line of each loop in the kernels, and whether it can turn 0 times.

    A loop cannot if the compiler unrolls it, or if the comment above it begins with "at least once:" and says why.
    """
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.While), f"{path.name}:{node.lineno}: a loop that is not counted here"
            if isinstance(node, ast.For):
                turns = "static_range" in ast.unparse(node.iter) or "# at least once: " in lines[node.lineno - 2]
                found[f"{path.name}:{node.iter.lineno}"] = not turns
    return found


def count_turns() -> dict[str, set[int]]:
    """Have every loop of an interpreted function count its turns, by its file and line: 0, 1, or 2 for more."""
    from triton.runtime import interpreter as triton_interpreter

    turns: dict[str, set[int]] = defaultdict(set)

    def counted(iterable: Iterable[Any]) -> Iterator[Any]:
        caller = sys._getframe(1)
        return counting(iterable, f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}")

    def counting(iterable: Iterable[Any], place: str) -> Iterator[Any]:
        number = 0
        for item in iterable:
            number += 1
            yield item
        turns[place].add(min(number, 2))

    def visit(self: Any, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        call = ast.Call(func=ast.Name(id=_COUNTED, ctx=ast.Load()), args=[node.iter], keywords=[])
        node.iter = ast.copy_location(call, node.iter)
        return node

    triton_interpreter.ASTTransformer.visit_For = visit
    setattr(triton_interpreter, _COUNTED, counted)
    return turns


def _select_without_requests() -> None:
    """Rows of no request alone, as a CUDA graph has them before its first step: the fuzzer draws at least one request."""
    import attn_optimized

    indexer = Indexer(head_size=16, num_heads=1, top_k=4)
    none = torch.zeros(1, dtype=torch.int32)
    batch = Batch(
        query_start_loc=none,
        seq_lens=none[:0],
        max_query_len=1,
        max_seq_len=9,
        num_actual_tokens=0,
        causal=True,
        block_table=torch.zeros(0, 1, dtype=torch.int32),
    )
    out = torch.full((1, 2, indexer.selected_width), 7, dtype=torch.int32)
    assert (attn_optimized.select(torch.zeros(1, 2, 9), indexer, batch, out=out) == 7).all()


def main(examples: int) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    torch.set_num_threads(1)
    interpreter.install()
    turns = count_turns()
    from attn_fuzz.run.case.attempt import Attempt
    from attn_fuzz.strategies.cases import cases
    from attn_fuzz.strategies.independent import INDEPENDENT
    from attn_fuzz.targets.indexer import TRITON_INDEXER
    from attn_fuzz.targets.merge import TRITON_MERGE_PARTS
    from attn_fuzz.targets.modes import applied
    from attn_fuzz.targets.triton import TRITON
    from hypothesis import HealthCheck, given, seed, settings

    def draw(target, most: int) -> None:
        @seed(1)
        @settings(INDEPENDENT, max_examples=most, suppress_health_check=list(HealthCheck))
        @given(cases(target.name, target.support("cpu"), refuses=False))
        def run(case) -> None:
            error = Attempt(case, target, "cpu").error
            if error is not None:
                raise error

        run()

    draw(TRITON, examples)
    draw(applied(TRITON, ["prompts"], ""), examples)
    draw(TRITON_MERGE_PARTS, examples // 4)
    draw(TRITON_INDEXER, 3 * examples)  # few layers have many index heads
    _select_without_requests()
    print(json.dumps({place: sorted(numbers) for place, numbers in turns.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))

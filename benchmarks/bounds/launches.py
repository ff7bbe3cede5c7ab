"""The hot loops of a participant's launches in a drawn case: in a process without Triton's interpreter."""

from pathlib import Path

from attn_contract import UnsupportedError
from attn_fuzz.emulated.compilation import compiled_kernel
from attn_parity.binaries.facts import facts_of

from benchmarks.binaries.launches import META, SEED, Launch, launches_of
from benchmarks.bounds.loops import hot_loop
from benchmarks.bounds.results import Row
from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, attention_call
from benchmarks.speed.drawn import draw_cases


def bounded_case(number: int, seed: int, architecture: str, name: str, whose: str, folder: Path | None) -> tuple[Row, ...]:
    """A row for each launch with a hot loop; none of what the participant refuses.

    Args:
        number, seed: of the drawn cases.
        name: of one of them.
        folder: a peer's, see `benchmarks.speed.peers`.
    """
    case = next(case for case in draw_cases(number, seed) if case.name == name)
    call = attention_call(case, META, SEED, FLOAT8_OF.get(architecture, FLOAT8))
    try:
        launches = launches_of(call, architecture, whose, folder)
    except UnsupportedError:
        return ()
    rows = [_row(Row(architecture, name, whose, launch.kernel.fn.__name__), launch) for launch in launches.all]
    # the reductions of parts have no matrix instruction
    return tuple(row for row in rows if row.turn is not None) or tuple(rows[:1])


def _row(row: Row, launch: Launch) -> Row:
    try:
        binary, _ = compiled_kernel(launch.kernel, row.architecture, *launch.arguments, **launch.named)
        turn = hot_loop(binary.asm["amdgcn"])
    except Exception as error:  # whatever a compiler raises is the result
        return row.without(f"{type(error).__name__}: {error}")
    waves = facts_of(binary, row.architecture).waves or 0
    row = row._replace(num_warps=binary.metadata.num_warps, waves=waves, turn=turn)
    return row if turn is not None else row.without("no loop with matrix instructions")

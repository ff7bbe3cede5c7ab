"""Calls that are the same but for names: each set of such calls is an orbit, of which one call is run.

Two symmetries of the contract give orbits. A kernel with a bug need not have them, so each comes with the argument why the
call that is run stands for the others, and with what the argument leaves out. The tests run all calls of an orbit on a
target, and compare their outputs (`tests/fuzz/exhaustive/test_exhaustive.py`).

**Renaming of blocks.** In the contract a block id is an address and nothing else: a call whose blocks are renamed, with their
contents moved along, has the same outputs. A kernel that multiplies the id by a stride and adds the product to a pointer has
this symmetry by construction. A kernel that uses the id in another way has a bug: it takes the logical index instead, or
expects ids to ascend, or to begin at 0. So the call that is run is none in which such a kernel is right by chance: its ids
descend, and block 0 belongs to no request (`numbered`). The argument leaves out what depends on the size of an id, such as an
address of 32 bits: the target `triton@far` is about those. It leaves out a kernel that expects ids to descend by one, too.

**Order of requests.** In the contract request r owns the rows from query_start_loc[r] to query_start_loc[r + 1], and nothing
else depends on r: a call whose requests change places, with their rows moved along, has the same outputs in other rows. A
kernel that reads only what belongs to r has the symmetry. A kernel that reads a number of the other request instead gives a
wrong result in both orders if the two numbers differ, and in neither order if they are equal. The argument leaves out a bug
that needs a certain request in a certain place. Known bugs of this kind have an empty request in front of another one
(flash-attention #1537 and sglang #1469, in the zoo). So the symmetry is used only where every request has a query and a key,
and batches with an empty request run in each order. The call that is run has the longest request first; packed launches
(`attn_fuzz.exhaustive.packing`) have the shortest request first.

Two more symmetries of the contract are not used. A permutation of heads changes which query head reads which KV head, and
this is something to be wrong about. And two layers whose rules hide the same keys, such as windows of 4 and of 5 over five
keys, take different ways through a kernel.
"""

import itertools
from collections.abc import Iterator, Sequence

import msgspec
from attn_fuzz.cases.case import Request

Requests = tuple[Request, ...]


def canonical(batch: Sequence[Request]) -> Requests:
    """The batch of an orbit that stands for the others. Its blocks are named in the order in which the requests list them."""
    return max((renamed(order) for order in _orders(batch)), key=_rank)


def batches(requests: Sequence[Sequence[Request]], block_size: int, key_unit: int = 1) -> Iterator[Requests]:
    """One batch of each orbit, of requests without blocks.

    Args:
        requests: the requests that may stand in each place of the batch.
        block_size: 0 where there is no cache, and so no block.
        key_unit: tokens that share a key.
    """
    seen = set[Requests]()
    for chosen in itertools.product(*requests):
        for batch in tables(chosen, block_size, key_unit):
            one = canonical(batch)
            if one not in seen:
                seen.add(one)
                yield one


def tables(batch: Sequence[Request], block_size: int, key_unit: int) -> Iterator[Requests]:
    """The batch with each block table, up to renaming of blocks.

    A row names each block once. Requests may share any blocks in which no two of them write one slot; the caller leaves out
    the tables in which they do.
    """
    used = [-(-(request.seq_len // key_unit) // block_size) if block_size else 0 for request in batch]

    def rows(at: int, named: int) -> Iterator[tuple[tuple[int, ...], ...]]:
        if at == len(used):
            yield ()
            return
        for row in _rows(used[at], named):
            for rest in rows(at + 1, max(named, *(block + 1 for block in row)) if row else named):
                yield (row, *rest)

    for table in rows(0, 0):
        yield tuple(msgspec.structs.replace(r, blocks=row) for r, row in zip(batch, table, strict=True))


def numbered(groups: Sequence[Requests]) -> tuple[Requests, int]:
    """Batches beside each other in one cache, with block ids that descend; and the number of blocks, of which 0 is free."""
    counts = [1 + max((block for request in batch for block in request.blocks), default=-1) for batch in groups]
    num_blocks = sum(counts) + 1
    placed: list[Request] = []
    first = num_blocks - 1
    for batch, count in zip(groups, counts, strict=True):
        placed += [msgspec.structs.replace(r, blocks=tuple(first - block for block in r.blocks)) for r in batch]
        first -= count
    return tuple(placed), num_blocks


def _orders(batch: Sequence[Request]) -> list[tuple[Request, ...]]:
    """The orders of the requests that are taken for the same."""
    has_work = all(request.query_len and request.seq_len for request in batch)
    return list(itertools.permutations(batch)) if has_work else [tuple(batch)]


def _rows(length: int, named: int) -> Iterator[tuple[int, ...]]:
    """Rows of different blocks, each one of the `named` blocks or the next new one."""
    if not length:
        yield ()
        return
    for row in _rows(length - 1, named):
        new = max(named, *(block + 1 for block in row)) if row else named
        yield from ((*row, block) for block in range(new + 1) if block not in row)


def renamed(batch: Sequence[Request]) -> Requests:
    """The batch with its blocks named 0, 1, ... in the order in which the requests list them."""
    names: dict[int, int] = {}
    found = []
    for request in batch:
        row = tuple(names.setdefault(block, len(names)) for block in request.blocks)
        found.append(msgspec.structs.replace(request, blocks=row))
    return tuple(found)


def _rank(batch: Requests) -> list[tuple[object, ...]]:
    return [(r.query_len, r.seq_len, r.causal, r.bidirectional_ranges, r.blocks) for r in batch]

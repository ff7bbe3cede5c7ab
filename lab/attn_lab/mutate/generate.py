"""Generated mutants: every operator at every place of a package's source, and a random sample of them."""

import ast
import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import NamedTuple

from attn_fuzz.patches.mutant import Mutant, MutantError, Patch
from attn_fuzz.patches.source import PatchError, modules_of, patched_sources, text_of
from attn_lab.mutate.operators import OPERATORS, Change
from attn_lab.mutate.places import PatchMaker, Place, places, way

PACKAGE = "attn_optimized"
LONG, CONTEXT = 120, 40


class Generated(NamedTuple):
    """A mutant that an operator makes at a place.

    Attributes:
        name: `module.function:operator:number`. The operator's changes of a function are numbered from 1, so that a change
            of another function renames no mutant. The name identifies the mutant.
        module, operator: names.
        patch: the mutant's change.
        line: where the statement begins that is changed, or that holds what is changed.
        change: the code that is replaced and what takes its place, in one line.
    """

    name: str
    module: str
    operator: str
    patch: Patch
    line: int
    change: str

    @property
    def mutant(self) -> Mutant:
        """Every exception counts as a finding: the exceptions of hundreds of mutants cannot be announced."""
        return Mutant(name=self.name, patches=(self.patch,), raises="")


def of_package(package: str = PACKAGE) -> list[Generated]:
    """All mutants of a package, module by module, in the order of the source."""
    return [mutant for module in modules_of(package) for mutant in of_module(module)]


@functools.cache
def of_module(module: str) -> tuple[Generated, ...]:
    """All mutants of a module, in the order of its source.

    Raises:
        PatchError: there is no such module.
    """
    tree = ast.parse(text_of(module))
    maker = PatchMaker(module, tree)
    numbers: Counter[str] = Counter()
    made: list[Generated] = []
    for place in places(tree):
        for operator, changes in OPERATORS.items():
            for change in changes(place.node):
                name = f"{module}.{place.path}".rstrip(".") + f":{operator}"
                numbers[name] += 1
                patch = maker.patch(place, change)
                made.append(Generated(f"{name}:{numbers[name]}", module, operator, patch, _line(place, change), _told(change)))
    return tuple(made)


def by_name(names: Sequence[str], package: str = PACKAGE) -> list[Generated]:
    """The mutants with these names.

    Raises:
        MutantError: there is no mutant of a name.
    """
    modules = [module for module in modules_of(package) if any(name.startswith((f"{module}.", f"{module}:")) for name in names)]
    known = {mutant.name: mutant for module in modules for mutant in of_module(module)}
    if unknown := [name for name in names if name not in known]:
        function = unknown[0].split(":")[0]
        there = [name for name in known if name.split(":")[0] == function]
        expected = f"some of {', '.join(there)}" if there else "module.function:operator:number"
        raise MutantError(f"got {unknown[0]}, which no operator makes, expected {expected}")
    return [known[name] for name in names]


def sample(count: int, seed: int, package: str = PACKAGE) -> list[Generated]:
    """Mutants of a package, drawn by a seed: all modules and all operators have their share.

    The mutants of a module and an operator are a stratum. Strata take turns, in an order by the seed, until the sample is
    large enough. A mutant is passed over if its source does not compile, or compiles to the same code as the module or as
    another mutant of the sample.
    """
    rng = random.Random(seed)
    strata: dict[tuple[str, str], list[Generated]] = {}
    for mutant in of_package(package):
        strata.setdefault((mutant.module, mutant.operator), []).append(mutant)
    queues = list(strata.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    in_turn = (mutant for turn in itertools.zip_longest(*queues) for mutant in turn if mutant is not None)
    return list(itertools.islice(_distinct(in_turn), count))


def _distinct(mutants: Iterator[Generated]) -> Iterator[Generated]:
    seen: dict[str, set[object]] = {}
    for mutant in mutants:
        if mutant.module not in seen:
            seen[mutant.module] = {None, _compiled(text_of(mutant.module))}
        if (code := compiled(mutant)) not in seen[mutant.module]:
            seen[mutant.module].add(code)
            yield mutant


def compiled(mutant: Generated) -> object:
    """The code object of a mutant's module, without line numbers; None if the module does not compile."""
    try:
        (source,) = patched_sources([mutant.patch]).values()
    except PatchError:
        return None
    return _compiled(source)


def _compiled(source: str) -> object:
    return _essence(compile(source, "module", "exec"))


def _essence(code: CodeType) -> object:
    """All of a code object that decides on what it does."""
    constants = tuple(_essence(each) if isinstance(each, CodeType) else (type(each), repr(each)) for each in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def _line(place: Place, change: Change) -> int:
    """The line where the innermost statement around a change begins."""
    around = [node for node in [*place.around, *way(place.node, change.old)] if isinstance(node, ast.stmt)]
    return around[-1].lineno


def _told(change: Change) -> str:
    """A change in words: old code -> new code. Long code is cut to the part that differs, with a little around it."""
    old, new = (" ".join(ast.unparse(code).split()) for code in change)
    if max(len(old), len(new)) > LONG:
        before, after = _common(old, new), _common(old[::-1], new[::-1])
        begin = max(0, before - CONTEXT)
        cut = max(0, min(after, len(old) - before, len(new) - before) - CONTEXT)
        old, new = ("..." * bool(begin) + code[begin : len(code) - cut] + "..." * bool(cut) for code in (old, new))
    return f"{old} -> {new}"


def _common(one: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))

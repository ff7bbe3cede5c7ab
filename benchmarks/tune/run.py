"""A run: all classes stage by stage on the GPU that is here, or class by class derived from binaries for one that is not."""

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields

import torch
from attn_optimized.launch.table import Parameters
from attn_parity.console import progress_bar, results

from benchmarks.measuring.clock import Budget
from benchmarks.steps.cases import Attention
from benchmarks.tune.classes import CallClass
from benchmarks.tune.compilers import Compile, Job
from benchmarks.tune.facts import WorstFacts
from benchmarks.tune.ranking import best, prune, rank
from benchmarks.tune.results import Candidate, Search, Tuning
from benchmarks.tune.search import BEST_TILES, FIRST_CASES, STAGES, ClassSearch, Stage, decide, gain, judge, time_stage
from benchmarks.tune.space import SHOWN_BY_BINARIES, TILE, variants, with_as_many_waves
from benchmarks.tune.table import entry_of

MOST_OF_TINY = 2
"""Candidates of each stage beside today's in `--tiny`."""

Save = Callable[[CallClass | None], None]


def measure(
    run: Tuning,
    by_class: Mapping[CallClass, list[Attention]],
    device: torch.device,
    compile_all: Compile,
    *,
    budget: Budget,
    save: Save,
    is_tiny: bool = False,
) -> None:
    """Search class after class, stage by stage, into `run`.

    Args:
        by_class: the calls of drawn steps.
        is_tiny: True for few candidates, in tiny cases.
    """
    searches = [_begun(run, call_class, cases, MOST_OF_TINY if is_tiny else None) for call_class, cases in by_class.items()]
    begins = 0.0
    for stage in STAGES:
        # compilers get half of a stage's time
        contenders = _compiled(compile_all, searches, stage, budget.time_of((begins + stage.ends) / 2))
        for search in searches:
            time_stage(search, stage, contenders[search], device, deadline=budget.time_of(stage.ends), is_tiny=is_tiny)
            results.print(f"{stage.name}: {_best(search.found)}")
            if stage == STAGES[-1]:
                decide(search.found)
            save(None)
        begins = stage.ends
    chosen = {search: parameters for search in searches if (parameters := search.found.chosen) is not None}
    to_judge = [Job(case, parameters) for search, parameters in chosen.items() for case in search.call_class.checked]
    _finished(compile_all, to_judge, budget.time_of((begins + 1) / 2), "what is chosen")
    for search in searches:
        if search in chosen:
            judge(search, device)
        if search.today.verdict == "final":
            run.unfinished.remove(search.found.name)
        save(search.call_class)
        results.print(f"{search.found.name}: {search.found.why}")


def derive(
    run: Tuning,
    by_class: Mapping[CallClass, list[Attention]],
    compile_all: Compile,
    *,
    budget: Budget,
    save: Save,
) -> None:
    """Compile, and rank by the facts of the binaries: other options of today's tile, other tiles, other options of these."""
    run.unfinished = [call_class.name for call_class in by_class]
    for i, (call_class, cases) in enumerate(by_class.items()):
        if (left := budget.left) <= 0:
            break
        today = entry_of(run.architecture, call_class).parameters
        found = Search(name=call_class.name, candidates=[Candidate(parameters=today)])
        run.classes.append(found)
        deadline = time.monotonic() + left / (len(by_class) - i)
        for names in (SHOWN_BY_BINARIES, TILE, SHOWN_BY_BINARIES):
            if time.monotonic() >= deadline:
                break
            bases = [each.parameters for each in best(found, run.architecture, BEST_TILES)] or [today]
            wanted = (each for base in bases for each in variants(call_class, run.architecture, base, names))
            known = {each.parameters for each in found.candidates}
            new = dict.fromkeys(with_as_many_waves(each, today) for each in wanted)
            found.candidates += [Candidate(parameters=each) for each in new if each not in known]
            jobs = {
                each.parameters: [Job(case, each.parameters) for case in cases[:FIRST_CASES]]
                for each in found.candidates
                if each.facts is None and each.verdict == "waiting"
            }
            every = list(itertools.chain.from_iterable(jobs.values()))
            facts = _finished(compile_all, every, deadline, call_class.name)
            for each in found.candidates:
                if each.parameters in jobs:
                    _record(each, [facts.get(job) for job in jobs[each.parameters]])
            prune(found)
        rank(found, run.architecture)
        run.unfinished.remove(found.name)
        save(call_class)
        untried = sum(candidate.verdict == "waiting" for candidate in found.candidates)
        no_time = f" (no time for {untried} of {len(found.candidates)} candidates)" if untried else ""
        results.print(f"{found.name}: {found.why}{no_time}")


def _begun(run: Tuning, call_class: CallClass, cases: list[Attention], most: int | None) -> ClassSearch:
    today = entry_of(run.architecture, call_class).parameters
    found = Search(
        name=call_class.name,
        cases=[case.name for case in cases],
        candidates=[Candidate(parameters=today)],
    )
    run.classes.append(found)
    run.unfinished.append(found.name)
    return ClassSearch(call_class, cases, run.architecture, found, most)


def _best(found: Search) -> str:
    """The best candidate of a class so far, and how it differs from today's parameters."""
    today, *others = found.candidates
    timed = [each for each in others if each.times]
    if not timed or not today.times:
        return f"{found.name}: nothing timed"
    best = max(timed, key=lambda each: (len(each.times), gain(each, today)))
    changed = [
        f"{field.name} {old} -> {new}"
        for field in fields(Parameters)
        if (old := getattr(today.parameters, field.name)) != (new := getattr(best.parameters, field.name))
    ]
    of_all = f"{len(timed)} of {len(others)} candidates"
    return f"{found.name}: {gain(best, today):.3f} in {len(best.times)} cases, {of_all}: {', '.join(changed)}"


def _compiled(
    compile_all: Compile, searches: Sequence[ClassSearch], stage: Stage, deadline: float
) -> dict[ClassSearch, list[Candidate]]:
    """Each search's contenders of a stage, without today's, whose binaries are there."""
    contenders = {search: [search.today, *search.contenders(stage)] for search in searches}
    jobs = {
        (search, each.parameters): [Job(case, each.parameters) for case in search.cases_of(stage)]
        for search, some in contenders.items()
        for each in some
    }
    facts = _finished(compile_all, list(itertools.chain.from_iterable(jobs.values())), deadline, stage.name)
    ready = {
        search: [each for each in some if _record(each, [facts.get(job) for job in jobs[search, each.parameters]])]
        for search, some in contenders.items()
    }
    return {search: [each for each in some if each is not search.today] for search, some in ready.items()}


def _record(candidate: Candidate, found: Sequence[WorstFacts | str | None]) -> bool:
    """Note what was compiled of a candidate. True if all of its binaries are there."""
    why = next((each for each in found if isinstance(each, str)), None)
    if why is not None:
        candidate.verdict, candidate.why = "failed", why
        return False
    facts = [each for each in found if isinstance(each, WorstFacts)]
    if facts:
        candidate.facts = WorstFacts.worst(facts if candidate.facts is None else [candidate.facts, *facts])
    return len(facts) == len(found)


def _finished(compile_all: Compile, jobs: Collection[Job], deadline: float, of_what: str) -> Mapping[Job, WorstFacts | str]:
    with progress_bar(len(jobs)) as show_bar:
        facts = compile_all(jobs, deadline, show_bar)
    if len(facts) < len(jobs):
        results.print(f"{of_what}: {len(facts)} of {len(jobs)} compiled in time")
    return facts

"""Changes of a target between two sides: of its sources, of its adapter's fit, and of its results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from attn_parity.adapters import misfit
from attn_parity.commands.drift.look import Look, still_there
from attn_parity.commands.drift.sides import Side


class Change(TypedDict):
    """The changes of a target, in sentences.

    Attributes:
        failures, still_failing: the kernel's: of another kind than before, and of the same.
        not_judged: what says nothing of the kernel: the target does not load, its adapter does not fit, a limit of this tool,
            or a failure where what the adapter calls has changed, so that the adapter may be the cause.
        findings: known ones that are gone, as their stored case does not fail, or new; and failures that are gone.
        sources: changed signatures of functions that the adapter names, changed fields of its declaration, and lines that it
            cites, because its declaration is read from them, and that are gone.
    """

    failures: list[str]
    still_failing: list[str]
    not_judged: list[str]
    findings: list[str]
    sources: list[str]


class Drift(TypedDict):
    """The result of `attn-parity drift`: two sides, of which the first call has one, and what changed by target.

    `interrupted` says whether targets are left to run.
    """

    schema: Literal["attn-parity.drift/1"]
    package: str
    seed: int
    examples: int
    before: Side | None
    after: Side
    changes: dict[str, Change]
    interrupted: bool


def of_target(name: str, before: Side, after: Side, package: str) -> Change:
    """The changes of a target that both sides looked at. Runs are compared if both ran."""
    old, new = before["looks"][name], after["looks"][name]
    change = Change(failures=[], still_failing=[], not_judged=[], findings=[], sources=[])
    if new["missing"]:
        change["not_judged"] += [f"it does not load: {new['missing']}"] * (not old["missing"])
        return change
    breaking: list[str] = []
    if old["missing"]:
        change["sources"].append("it loads now")
    else:
        breaking = [*_signatures(change["sources"], old, new)]
        fields = [(field, was, new["declared"].get(field)) for field, was in old["declared"].items()]
        change["sources"] += [f"declaration: {field} was {was}, is {now}" for field, was, now in fields if was != now]
    folder = Path(after["folder"], package)
    gone = [place for place, lines in old["cited"].items() if not still_there(lines, place.partition(":")[0], folder)]
    change["sources"] += [f"lines that the adapter cites are gone: {place}" for place in gone]
    new["cited"] = {place: lines for place, lines in old["cited"].items() if place not in gone}  # newer sources renumber them
    _compare_runs(change, name, before, after, package, breaking)
    return change


def _signatures(words: list[str], old: Look, new: Look) -> Iterator[str]:
    """Add a sentence for each changed function. Yields the functions whose earlier calls may mean something else now."""
    for place in sorted({*old["functions"], *new["functions"]}):
        was, now = old["functions"].get(place), new["functions"].get(place)
        if was is None or now is None:
            words.append(f"signature: {place} is {'new' if was is None else 'gone'}")
        elif was != now:
            added, lost = [each for each in now if each not in was], [each for each in was if each not in now]
            parts = [f"{', '.join(each)} {what}" for each, what in ((added, "new"), (lost, "gone")) if each]
            words.append(f"signature: {place}: {'; '.join(parts) or 'another order'}")
            given = old["positional"][place]
            if lost or now[:given] != was[:given] or not all("=" in each or each.startswith("*") for each in added):
                yield place
        if now is None:
            yield place


def _compare_runs(change: Change, name: str, before: Side, after: Side, package: str, breaking: list[str]) -> None:
    ran, earlier = after["ran"].get(name), before["ran"].get(name)
    if ran is None:
        return
    misfits = [reason for failed in ran["failures"] if (reason := misfit(failed["kind"], failed["message"], package))]
    change["not_judged"] += misfits + [f"not run: {limit}" for limit in (*filter(None, [ran["error"]]), *ran["limits"])]
    if not (ran["examples"] or ran["failures"] or ran["error"]):
        change["not_judged"].append(f"not run: no example within {ran['seconds']:.0f} s")
    if misfits or ran["error"]:
        return
    there, there_before = _findings(after, name), _findings(before, name)
    if there is not None and there_before is not None:
        change["findings"] = [f"finding {each} is gone" for each in sorted(there_before - there)]
        change["findings"] += [f"finding {each} is new" for each in sorted(there - there_before)]
    if earlier and not ran["failures"] and ran["examples"] >= earlier["examples"]:
        gone = [failed for failed in earlier["failures"] if not misfit(failed["kind"], failed["message"], package)]
        change["findings"] += [f"no longer fails: {failed['kind']}: {failed['message']}" for failed in gone]
    kinds = {failed["kind"] for failed in earlier["failures"]} if earlier else ()
    for failed in ran["failures"]:
        told = f"{failed['kind']}: {failed['message']}" + (f" ({failed['case_file']})" if failed["case_file"] else "")
        if failed["kind"] in kinds:
            change["still_failing"].append(told)
        elif breaking:
            change["not_judged"].append(f"it fails, perhaps by its adapter, as {', '.join(breaking)} changed: {told}")
        else:
            change["failures"].append(told)


def _findings(side: Side, name: str) -> set[str] | None:
    """The known findings that these sources show; None if the run did not ask."""
    ran, known = side["ran"].get(name), side["looks"][name].get("findings")
    return None if known is None or ran is None or ran["interrupted"] else {*known} - {*ran["no_longer_failing"]}

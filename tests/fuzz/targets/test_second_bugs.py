"""Behind a predicate that explains failures alone, because its finding has no repair, a second bug is found."""

import pytest
from attn_fuzz.findings import repairs
from attn_fuzz.targets import registry


def _architectures(name: str) -> list[str]:
    target = registry.load(name)
    known = target.architectures or (("gfx942", "gfx950") if target.compiled_for else ())
    return [f"{name}@{each}" for each in known]


LEFT = [
    each
    for name in registry.packages()["aiter-emulated"].attributes
    for each in _architectures(name)
    if (findings := registry.load(each).findings) and repairs.of_findings(findings).keys() != {one.name for one in findings}
]


@pytest.mark.nightly
@pytest.mark.parametrize("bug", ["head", "key", "row"])
@pytest.mark.parametrize("name", LEFT)
def test_a_second_bug_is_new_where_a_predicate_explains_alone(name, bug, fuzz_apart):
    if reason := registry.load(name).unavailable("cpu"):
        pytest.skip(reason)
    planted = f"planted_second:{bug}__{name.replace('@', '__').replace('-', '_')}"
    progress = fuzz_apart(planted, 60, on_failure="stop", case_seconds=240.0)
    assert progress.failure is not None, f"{progress.known} of {progress.examples}"
    assert progress.failure.verdict.kind in ("value", "bitwise", "exact")


def test_all_findings_of_interpreted_kernels_have_a_repair():
    findings = [
        each for package in registry.packages().values() for name in package.attributes for each in registry.load(name).findings
    ]
    assert repairs.of_findings(findings).keys() == {each.name for each in findings} != set()

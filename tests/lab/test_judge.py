"""`python -m attn_lab judge calibration` refuses a file that is no run that agrees, before any work."""

import json

import pytest
from attn_fuzz.verdict.ratios import NUM_BINS

RUN = {
    "schema": "attn-parity.fuzz/1",
    "target": "triton",
    "device": "cpu",
    "versions": {},
    "seed": 0,
    "examples": 1,
    "ratios": {"out float32 decode": [0] * NUM_BINS},
    "error": None,
    "failures": [],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no run", "Expecting value"),
        ([], "schema: got nothing, expected 'attn-parity.fuzz/1'"),
        ({"schema": RUN["schema"]}, "Object missing required field `target`"),
        (RUN | {"ratios": {"out": [1]}}, "Expected `array` of length"),
        (RUN | {"ratios": {}}, "expected a run that compared elements"),
        (RUN | {"failures": [{}]}, "expected a run that agrees"),
    ],
)
def test_a_file_that_is_no_run_that_agrees_is_refused(tmp_path, attn_lab, content, message):
    (tmp_path / "given.json").write_text(content if isinstance(content, str) else json.dumps(content))
    ended = attn_lab("judge", "calibration", "given.json", "--name", "x")
    assert ended.code == 2
    assert f"given.json: {message}" in " ".join(ended.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["given.json"]

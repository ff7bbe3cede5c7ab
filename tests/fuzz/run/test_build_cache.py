"""Files in the user's cache are made once, and again if they are damaged or cannot be written."""

import pytest
from attn_fuzz.emulated.build_cache import cached


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Returns the text that is kept under a name, and how often it was made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []

    def text(name: str) -> tuple[str, int]:
        folder = cached("texts", (name,), lambda made: (calls.append(name), (made / "text").write_text(f"of {name}")))
        return (folder / "text").read_text(), len(calls)

    return text


def test_it_is_made_once_for_each_name(make):
    assert [make(name) for name in ("a", "a", "b", "a")] == [("of a", 1), ("of a", 1), ("of b", 2), ("of a", 2)]


@pytest.mark.parametrize("file", ["text", "sha256"])
@pytest.mark.parametrize("content", [b"of ", b"\xff", None])
def test_a_damaged_file_is_made_anew(make, tmp_path, file, content):
    make("a")
    [path] = (tmp_path / "cache/attn-parity/texts").glob(f"*/{file}")
    path.unlink() if content is None else path.write_bytes(content)
    assert [make("a"), make("a")] == [("of a", 2), ("of a", 2)]


def test_where_nothing_can_be_written_it_is_made_each_time(make, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert [make("a"), make("a")] == [("of a", 1), ("of a", 2)]


def test_a_build_that_fails_is_not_kept(make, tmp_path):
    def fails(made):
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached("texts", ("a",), fails)
    assert not list((tmp_path / "cache/attn-parity/texts").iterdir())
    assert make("a") == ("of a", 1)

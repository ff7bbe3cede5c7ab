"""The reader of all files that a command is given: what it refuses, in one line that begins with the path."""

import io
import os
from pathlib import Path

import pytest
from attn_fuzz import inputs
from attn_fuzz.errors import InputError


def refused(reads, path: Path, says: str) -> None:
    with pytest.raises(InputError) as error:
        reads(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert says in said
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "can't decode byte 0xff"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "'a' is there twice"),
        (b"[" * 100_000, "nested more than 32 deep"),
        (b"9" * 401, "a number of more than 400 digits"),
        (b"NaN", "NaN is not a finite number"),
        (b"-Infinity", "-Infinity is not a finite number"),
        (b"1e999", "1e999 is not a finite number"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', "is there twice"),
        (b" " * (inputs.MAX_BYTES + 1), "larger than 1048576 bytes"),
    ],
    ids=lambda given: given[:12] if isinstance(given, bytes) else "",
)
def test_a_file_that_is_no_json_is_refused(content, says, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(inputs.read_json, tmp_path / "file", says)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'{"a": 1}', b'{"schema": null}', b'{"schema": "\\u001b"}'])
def test_a_record_is_of_its_schema(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(lambda path: inputs.read_record(path, "mine/1"), tmp_path / "file", "expected 'mine/1'")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = 'b", "at end of document"),
        (b"a = 1\na = 1", "Cannot overwrite"),
        (b"a = " + b"9" * 5000, "a number of more than 400 digits"),
        (b"a = " + b"[" * 40 + b"]" * 40, "nested more than 32 deep"),
        (b"a = " + b"[" * 3000, ""),
        (b".".join([b"a"] * 40) + b" = 1", "a name of more than 32 parts"),
        (b"#" * (inputs.MAX_BYTES + 1), "larger than 1048576 bytes"),
    ],
    ids=["no end", "twice", "digits", "deep", "deep and cut", "parts", "large"],
)
def test_a_file_that_is_no_toml_is_refused(content, says, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(inputs.read_toml, tmp_path / "file", says)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "not a file"),
        (os.mkdir, ""),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: None, "No such file"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "larger than 1048576 bytes"),
    ],
    ids=["pipe", "folder", "endless", "dangling", "loop", "missing", "huge"],
)
def test_a_path_that_is_no_file_is_refused(make, says, tmp_path):
    make(tmp_path / "file")
    refused(inputs.read_text, tmp_path / "file", says)


def test_a_file_that_would_wait_is_refused(tmp_path, monkeypatch):
    """A file of /proc may be a regular one, and have nothing to read yet."""

    class Waiting(io.FileIO):
        def read(self, size=-1):
            return None

    monkeypatch.setattr(inputs, "open", lambda path, mode, opener: Waiting(path), raising=False)
    (tmp_path / "file").touch()
    refused(inputs.read_json, tmp_path / "file", "not a file")

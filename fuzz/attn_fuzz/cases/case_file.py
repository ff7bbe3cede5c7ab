"""Case files: a case as JSON text, and as a file that captured tensors may lie beside."""

import contextlib
from pathlib import Path

import msgspec
from attn_fuzz.cases.case import MESSAGE, SCHEMA, Case, CaseError
from attn_fuzz.cases.contradictions import check

MAX_BYTES = 1 << 24
_decoder = msgspec.json.Decoder(Case)


def dumps(case: Case) -> str:
    if case.values.file is not None:
        case = _with_file(case, Path(case.values.file).name)
    return msgspec.json.format(msgspec.json.encode(case), indent=1).decode()


def _with_file(case: Case, file: str) -> Case:
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, file=file))


def loads(text: str | bytes) -> Case:
    """Read a case.

    Raises:
        CaseError: the text is not JSON or has another schema, a field is unknown or out of range, fields contradict each other,
            or `values.file` is not the plain name of a .safetensors file.
    """
    try:
        head = msgspec.json.decode(text)
        found = head.get("schema") if isinstance(head, dict) else None
        if found != SCHEMA:
            raise CaseError(f"schema: got {repr(found)[:MESSAGE]}, expected {SCHEMA!r}")
        case = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # the message quotes the file: names in it may be long, and may hold characters that control a terminal
        said = str(error)[:MESSAGE]
        raise CaseError("".join(character if character.isprintable() else "?" for character in said)) from None
    check(case)
    file = case.values.file
    if file is not None and not (file.endswith(".safetensors") and file.isprintable() and not set(file) & {"/", "\\"}):
        raise CaseError(f"values.file: got {file!r}, expected the plain name of a .safetensors file beside the case")
    return case


def save(path: Path, case: Case) -> None:
    """Write a case file in one step. If the disk is full, an old file stays as it was, and a new file is not created."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(dumps(case) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the error of a full disk names no file
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # the write may have failed, or a signal may have ended it


def load(path: Path) -> Case:
    """Read a case file. The tensors of a captured call must lie beside the file.

    Raises:
        CaseError: the file cannot be read, or is no valid case. The message begins with the path.
    """
    try:
        if path.exists() and not path.is_file():
            raise CaseError("not a file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise CaseError(f"larger than {MAX_BYTES} bytes: not a case")
        case = loads(text)
        return case if case.values.file is None else _with_file(case, str(path.resolve().parent / case.values.file))
    except OSError as error:
        raise CaseError(f"{path}: {error.strerror}") from None
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None

"""Case files: a case as JSON text, and as a file that captured tensors may lie beside."""

from pathlib import Path

import msgspec
from attn_fuzz import inputs, outputs
from attn_fuzz.cases.case import SCHEMA, Case, CaseError
from attn_fuzz.cases.contradictions import check
from attn_fuzz.errors import InputError
from attn_fuzz.text import one_line

MAX_BYTES = 1 << 24
_decoder = msgspec.json.Decoder(Case)


class _Head(msgspec.Struct):
    """The schema of a file alone: nothing else of the file is made an object."""

    schema: msgspec.Raw = msgspec.Raw(b"null")


_head_decoder = msgspec.json.Decoder(_Head)


def dumps(case: Case) -> str:
    if case.values.file is not None:
        case = _with_file(case, Path(case.values.file).name)
    return msgspec.json.format(msgspec.json.encode(case), indent=1).decode()


def _with_file(case: Case, file: str) -> Case:
    return msgspec.structs.replace(case, values=msgspec.structs.replace(case.values, file=file))


def loads(text: str | bytes) -> Case:
    """Read a case.

    Raises:
        CaseError: the text is not JSON or has another schema, a field is unknown, there twice or out of range, fields
            contradict each other, or `values.file` is not the plain name of a .safetensors file.
    """
    try:
        found = _schema(text)
        if found != f'"{SCHEMA}"'.encode():
            raise CaseError(f"schema: got {one_line(found[: inputs.MAX_QUOTE].decode(errors='replace'))}, expected {SCHEMA!r}")
        case = _decoder.decode(text)
        inputs.check_json(text if isinstance(text, str) else text.decode())
    except CaseError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        # the message quotes the file: names in it may be long, and may hold characters that control a terminal
        raise CaseError(one_line(str(error), inputs.MAX_QUOTE)) from None
    check(case)
    file = case.values.file
    if file is not None and not (file.endswith(".safetensors") and file.isprintable() and not set(file) & {"/", "\\"}):
        raise CaseError(f"values.file: got {file!r}, expected the plain name of a .safetensors file beside the case")
    return case


def _schema(text: str | bytes) -> bytes:
    try:
        return bytes(_head_decoder.decode(text).schema)
    except msgspec.ValidationError:  # JSON, and no object
        return b"null"


def content(case: Case) -> str:
    return dumps(case) + "\n"


def save(path: Path, case: Case) -> None:
    """Write a case file in one step (`attn_fuzz.outputs.write`)."""
    outputs.write(path, content(case))


def load(path: Path) -> Case:
    """Read a case file. The tensors of a captured call must lie beside the file.

    Raises:
        CaseError: the file cannot be read, or is no valid case. The message begins with the path.
    """
    try:
        text = inputs.read_bytes(path, MAX_BYTES)
    except InputError as error:
        raise CaseError(str(error)) from None
    try:
        case = loads(text)
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None
    return case if case.values.file is None else _with_file(case, str(path.resolve().parent / case.values.file))

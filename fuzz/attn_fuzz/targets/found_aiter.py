"""The AITER that is found on disk, as a target: its unified_attention serves the call if the AITER has all of its arguments.

The sizes of a call choose what is installed: another package of that name, or an AITER with some functions, whose signatures
lack some arguments (`attn_fuzz.documented_aiter.package`). What is found must be what was written.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.documented_aiter import DOCUMENTED_AITER_UNIFIED, documented, unified
from attn_fuzz.targets.wrong_arguments import must_refuse

VERSION = "9.8.7"


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    choose = choices_by((q.shape, layer.num_kv_heads, batch.query_start_loc, batch.seq_lens))
    if choose.random() < 0.2:
        _check_recorded(choose)
    with _installation() as folder:
        if choose.random() < 0.2:
            _check_none(folder, choose)
            aiter = documented("cpu")
        else:
            aiter = _found(folder, choose)
        unified(aiter, q, kv_cache, layer, batch, out=out, lse=lse)


@contextlib.contextmanager
def _installation() -> Iterator[Path]:
    """A folder where Python looks for packages first. Every AITER that is imported meanwhile is forgotten."""
    before = {name: module for name, module in sys.modules.items() if _is_aiter(name)}
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        _forget_imports()
        try:
            yield Path(folder)
        finally:
            sys.path.remove(folder)
            _forget_imports()
            sys.modules.update(before)


def _forget_imports() -> None:
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if _is_aiter(name)]:
        del sys.modules[name]


def _is_aiter(module: str) -> bool:
    return module.split(".")[0] == "aiter"


def _check_recorded(choose: random.Random) -> None:
    """Check that there is a record of each version that is said to have one, and of no other version.

    Raises:
        AssertionError: another version has a record, or its error is no ValueError.
    """
    from attn_optimized.aiter_adapter import RECORDED, recorded

    version = choose.choice((*RECORDED, f"{RECORDED[0]}1", RECORDED[0][:-1]))
    try:
        recorded(version)
    except ValueError:
        assert version not in RECORDED, f"no record of {version}"
    except Exception as error:
        raise AssertionError(f"a record of {version!r}: expected a ValueError, got {error!r}") from error
    else:
        assert version in RECORDED, f"a record of {version!r}"


def _check_none(folder: Path, choose: random.Random) -> None:
    """Check that another thing of AITER's name is found to be none, and says so when it is called.

    Raises:
        AssertionError: it is found, or is taken for something else than it is.
    """
    from attn_fuzz.documented_aiter import package
    from attn_optimized.aiter_adapter import features_of, find_aiter

    # a regular package elsewhere would go before a folder that is none
    without_a_package = () if importlib.util.find_spec("aiter") else ("is not installed", "is no package")
    kind = choose.choice(("is not AMD's", "a module", "has none of", *without_a_package))
    if kind == "is not installed":
        pass
    elif kind == "a module":
        (folder / "aiter.py").touch()
    elif kind == "has none of":
        package.write(folder, [])
    else:
        (folder / "aiter").mkdir()
        if kind == "is not AMD's":
            (folder / "aiter" / "__init__.py").touch()
    importlib.invalidate_caches()
    told = "is not AMD's" if kind == "a module" else kind
    aiter = find_aiter()
    assert told in (aiter.missing or ""), f"got {aiter}, expected one that {told}"
    assert told in str(aiter)
    assert not aiter.has("unified_attention", "q")
    assert {*dataclasses.asdict(features_of(aiter)).values()} == {aiter.missing}
    assert told in must_refuse(functools.partial(aiter.call, "unified_attention"), "an AITER that is missing")


def _found(folder: Path, choose: random.Random) -> Any:
    """An AITER that was written into a folder, if it can serve what the double serves; else the double.

    Raises:
        AssertionError: it is not found as it was written.
    """
    from attn_fuzz.documented_aiter import package
    from attn_optimized.aiter_adapter import find_aiter, import_aiter

    whole = documented("cpu").signatures
    functions = package.drawn(whole, choose)
    is_broken, is_released = choose.random() < 0.2, choose.random() < 0.5
    package.write(folder, functions, broken=is_broken, version=VERSION if is_released else None)
    importlib.invalidate_caches()
    aiter = find_aiter()
    if not functions:
        assert "has none of" in str(aiter), f"got {aiter}, expected none"
        return documented("cpu")
    newest = package.newest(functions)
    assert aiter.signatures == {name: one.read for name, one in newest.items()}, f"got {aiter.signatures}"
    assert (aiter.missing, aiter.location) == (None, folder / "aiter"), f"got {aiter!r}"
    assert str(aiter) == (f"AITER {VERSION}" if is_released else f"AITER at {folder / 'aiter'}"), str(aiter)
    assert [str(one) for one in aiter.signatures.values()] == [one.shown for one in newest.values()]
    imported = import_aiter()
    if is_broken:
        assert "there is no GPU" in str(imported.missing), f"got {imported}, expected one that does not import"
        name = next(iter(newest))
        assert "there is no GPU" in must_refuse(functools.partial(aiter.load, name), "an AITER that does not import")
        return documented("cpu")
    assert imported.signatures == {name: one.signature for name, one in newest.items()}, f"got {imported.signatures}"
    for name in whole:
        _check_calls(aiter, name, newest.get(name))
    has_all = "unified_attention" in newest and len(newest["unified_attention"].signature.arguments) == len(
        whole["unified_attention"].arguments
    )
    return choose.choice((aiter, imported)) if has_all else documented("cpu")


def _check_calls(aiter: Any, name: str, function: Any) -> None:
    """Check that calls are refused that name an unknown argument or leave one out, and that features are arguments."""
    if function is None:
        assert "no such function" in must_refuse(functools.partial(aiter.call, name), f"{name}, which is missing")
        assert not aiter.has(name, "q")
        return
    signature = function.signature
    given = dict.fromkeys(name for name in signature.arguments if name not in signature.defaults)
    assert "unheard_of" in must_refuse(functools.partial(aiter.call, name, **given, unheard_of=1), "an unknown argument")
    last = list(given)[-1]
    del given[last]
    assert last in must_refuse(functools.partial(aiter.call, name, **given), f"{name} without {last}")
    assert all(aiter.has(name, argument) for argument in signature.arguments)
    assert not aiter.has(name, "unheard_of")


FOUND_AITER = dataclasses.replace(
    DOCUMENTED_AITER_UNIFIED,
    name="found-aiter",
    description="the AITER that is found on disk: packages of all kinds, and the double's functions in them",
    attention=_attention,
)

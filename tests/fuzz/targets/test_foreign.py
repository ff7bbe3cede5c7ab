"""Modules of a package load without the package, import what they were given, and leave nothing behind; caches are views."""

import importlib.util
import sys

import attn_reference
import pytest
import torch
from attn_contract import KVCacheView, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.errors import LimitError

from tests.support import processes

FILES = {
    "__init__.py": "raise RuntimeError('the package itself is not to be imported')",
    "ops/__init__.py": "raise RuntimeError('nor a part of it')",
    "ops/kernel.py": (
        "from owner.gpu import units\n"
        "import owner.gpu as gpu\n"
        "from .helpers import twice\n\n"
        "def launch():\n"
        "    from owner.ops.late import LATE\n"
        "    import owner.ops.helpers\n"
        "    return twice(units()), gpu.NAME, LATE, owner.ops.helpers.twice(1)\n"
    ),
    "ops/helpers.py": "from owner.common import factor\n\ndef twice(x):\n    return factor * x\n",
    "ops/late.py": "LATE = 'late'\n",
    "ops/lost.py": "import owner.gpu\nimport owner.nowhere\n",
    "common.py": "raise RuntimeError('a stub has this name')",
}
STUBS = {"owner.gpu": {"units": lambda: 8, "NAME": "none"}, "owner.common": {"factor": 2}}


@pytest.fixture
def owner(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "owner" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("ATTN_PARITY_OWNER", str(tmp_path))
    return tmp_path / "owner"


def test_files_import_files_and_stubs_and_leave_nothing_behind(owner):
    before, finders = set(sys.modules), list(sys.meta_path)
    [kernel, _] = foreign.load("owner", ("ops/kernel.py", "ops/helpers.py", "ops/"), stubs=STUBS)
    assert kernel.launch() == (16, "none", "late", 2)
    assert kernel.__name__ == "owner.ops.kernel"
    assert set(sys.modules) == before
    assert sys.meta_path == finders
    assert not list(owner.rglob("*.pyc"))


def test_two_loads_do_not_meet(owner):
    [one] = foreign.load("owner", ("ops/kernel.py", "ops/"), stubs=STUBS)
    [two] = foreign.load("owner", ("ops/kernel.py", "ops/"), stubs={**STUBS, "owner.common": {"factor": 3}})
    assert (one.launch()[0], two.launch()[0]) == (16, 24)


def test_a_module_that_is_neither_a_file_nor_a_stub_is_named(owner):
    with pytest.raises(ImportError, match=r"owner\.nowhere is neither among the files of owner nor among its stubs"):
        foreign.load("owner", ("ops/lost.py",), stubs=STUBS)
    with pytest.raises(ImportError, match=r"owner\.ops\.helpers is neither"):
        foreign.load("owner", ("ops/kernel.py",), stubs=STUBS)
    assert not [name for name in sys.modules if name.startswith("owner")]


def test_the_real_package_imports_afterwards(owner):
    (owner / "__init__.py").write_text("REAL = True")
    code = (
        "from attn_fuzz import foreign\n"
        f"foreign.load('owner', ('ops/late.py',), folder=__import__('pathlib').Path({str(owner)!r}))\n"
        "import owner\nprint(owner.REAL)"
    )
    ended = processes.run(["-c", code], cwd=owner.parent)
    assert ended.stdout == "True\n", ended.stderr


def test_a_missing_file_is_named_with_the_command_that_installs_it(owner, monkeypatch):
    assert foreign.missing("owner", ("ops/kernel.py",), "owner==1") is None
    assert "has no ops/gone.py: pip install --no-deps owner==1" in str(foreign.missing("owner", ("ops/gone.py",), "owner==1"))
    monkeypatch.setenv("ATTN_PARITY_OWNER", str(owner / "ops"))
    assert "expected a folder that holds a folder owner" in str(foreign.missing("owner", (), "owner==1"))
    monkeypatch.delenv("ATTN_PARITY_OWNER")
    assert "owner is neither installed" in str(foreign.missing("owner", (), "owner==1"))


def _written(layout: Layout) -> tuple[torch.Tensor, Layer, torch.Tensor, torch.Tensor]:
    """A cache whose slots [0, 48) of 3 blocks hold random rows, 48 keys of two heads, and these rows."""
    sizes = {"num_blocks": 3, "block_size": 16, "num_kv_heads": 2, "head_size": 32}
    view = KVCacheView.dense(layout, **sizes, itemsize=4)
    layer = Layer(num_heads=2, num_kv_heads=2, head_size=32, scale=1.0, layout=layout)
    raw = torch.full((view.offset + 2 * 3 * 16 * 2 * 32,), torch.nan)
    kv_cache = view.tensor(raw)
    k, v = torch.randn(2, 48, 2, 32)
    attn_reference.write_kv_cache(k, v, kv_cache, layer, torch.arange(48))
    return kv_cache, layer, k, v


@pytest.mark.parametrize(
    "layout", [layout for layout in Layout if not (layout.is_x_packed or layout.has_inline_scales or layout.has_latent_value)]
)
def test_views_hold_what_the_reference_writes(layout):
    kv_cache, layer, k, v = _written(layout)
    for view, rows in zip(foreign.keys_and_values(kv_cache, layer), (k, v), strict=True):
        assert torch.equal(view, rows.view(3, 16, 2, 32))
        assert view.untyped_storage().data_ptr() == kv_cache.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", [Layout.X_PACKED, Layout.SHUFFLED])
def test_packed_views_hold_what_the_reference_writes(layout):
    kv_cache, layer, k, v = _written(layout)
    k_pages, v_pages = foreign.packed_keys_and_values(kv_cache, layer)
    assert torch.equal(k_pages.permute(0, 3, 1, 2, 4).reshape(48, 2, 32), k)
    v_pages = v_pages.movedim(3, 1) if layout is Layout.X_PACKED else v_pages.permute(0, 2, 4, 1, 3)
    assert torch.equal(v_pages.reshape(48, 2, 32), v)


def test_a_layout_of_the_other_kind_is_refused():
    for layout, function in ((Layout.X_PACKED, foreign.keys_and_values), (Layout.KV_FIRST_NHD, foreign.packed_keys_and_values)):
        kv_cache, layer, _, _ = _written(layout)
        with pytest.raises(ValueError, match=f"got {layout}"):
            function(kv_cache, layer)


def test_a_package_elsewhere_is_found_first_and_only_meanwhile(owner):
    (owner / "__init__.py").write_text("")
    path = list(sys.path)
    with foreign.findable("owner"):
        assert importlib.util.find_spec("owner").origin == str(owner / "__init__.py")
    assert sys.path == path
    assert importlib.util.find_spec("owner") is None


def test_an_option_of_another_release_is_left_out_only_where_it_asks_for_nothing():
    def kernel(x, scale=1):
        return x * scale

    assert foreign.call(kernel, 3, scale=2, sinks=None, causal=False, hints={"page_size": 16}) == 6
    with pytest.raises(LimitError, match="kernel of these sources takes no sinks"):
        foreign.call(kernel, 3, sinks=1)

"""A patch finds a piece of code by what it says, in the function that it names, exactly once; or it says why not."""

import ast
import sys

import pytest
from attn_fuzz.patches.mutant import Patch
from attn_fuzz.patches.source import PatchError, patched_sources, undefined_names

SOURCE = '''\
"""A module."""

import math  # to be used

TABLE = {"near": 1, "far": 2.5}
LIMITS = (1, 2)


@staticmethod
def area(width, height, *, scale=1):
    """Width times height."""
    # each is in metres
    product = (
        width  # wide
        * height
    )
    if scale == 1:
        return product
    elif scale == 2:
        product *= 2
    return rounded(product * scale, digits=2, up=True)


def rounded(number, digits, up):
    text = f"{number + 1}"
    return math.ceil(number) if up else round(number, digits), text


class Box:
    def __init__(self, width):
        self.width = width

    def volume(self):
        def inner(width):
            return width**3

        return inner(self.width), {"kind": "box", "größe": self.width, **TABLE}
'''

IF = """\
if scale == 1:
        return product
    elif scale == 2:
        product *= 2"""
INIT = """\
def __init__(self, width):
        self.width = width"""
STATIC = SOURCE[SOURCE.index("@static") : SOURCE.index("\n\n\ndef rounded")]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The package `shapes`, which nobody imports; returns what a patch makes of `shapes.boxes`."""
    package = tmp_path / "shapes"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("SIDES = 4\n")
    (package / "boxes.py").write_text(SOURCE, encoding="utf-8")
    (package / "inner" / "__init__.py").write_text("def area_of_circle(r):\n    return 3 * r * r\n")
    monkeypatch.syspath_prepend(tmp_path)

    def patched(place: str, find: str, replace: str) -> str:
        (text,) = patched_sources([Patch(place=place, find=find, replace=replace)]).values()
        assert "shapes" not in sys.modules
        return text

    return patched


@pytest.mark.parametrize(
    ("place", "find", "replace", "old", "new"),
    [
        ("boxes.area", "width*height", "width + height", "width  # wide\n        * height", "width + height"),
        ("boxes.area", "(width)\n  *  height # deep", "width", "width  # wide\n        * height", "width"),
        ("boxes.area", "scale == 2", "scale == 3", "scale == 2", "scale == 3"),
        ("boxes.area", "product\n*scale", "product + scale", "product * scale", "(product + scale)"),
        ("boxes.rounded", "math.ceil", "math.floor", "math.ceil", "math.floor"),
        ("boxes.Box.volume.inner", "width ** 3", "width", "width**3", "width"),
        ("boxes.Box.volume", "width ** 3", "width", "width**3", "width"),
        ("boxes.Box", "inner(self.width)", "0", "inner(self.width)", "0"),
        ("boxes", "(1, 2)", "(1, 3)", "(1, 2)", "(1, 3)"),
        ("boxes", "staticmethod", "classmethod", "staticmethod", "classmethod"),
        # arguments of a call
        ("boxes.area", "digits=2", "digits=3", "digits=2", "digits=3"),
        ("boxes.area", "digits = 2, up=True,", "up=False", "digits=2, up=True", "up=False"),
        # entries of a dict
        ("boxes.Box.volume", "'kind': 'box'", "'kind': 'ball'", '"kind": "box"', '"kind": "ball"'),
        ("boxes.Box.volume", '"größe": self.width,', '"größe": 0, "more": 1', '"größe": self.width', '"größe": 0, "more": 1'),
        ("boxes", '"near": 1,\n"far": 2.5', '"near": 2', '"near": 1, "far": 2.5', '"near": 2'),
        # statements
        ("boxes.area", "product *= 2", "if scale:\n    product *= 3", "product *= 2", "if scale:\n            product *= 3"),
        ("boxes.area", "product *= 2", "", "product *= 2", "pass"),
        ("boxes.area", "product *= 2", "# gone", "product *= 2", "pass"),
        ("boxes.area", "if scale == 1: return product\nelif scale == 2: product *= 2", "", IF, "pass"),
        ("boxes.rounded", 'text = f"{number + 1}"', "text = ''", 'f"{number + 1}"', "''"),
        ("boxes.Box.__init__", "self.width = width", "self.width = 0", "self.width = width", "self.width = 0"),
        ("boxes", "import math\nTABLE = {'near': 1, 'far': 2.5}", "import math; TABLE = {}", '{"near": 1, "far": 2.5}', "{}"),
        ("boxes.Box", "def __init__(self, width):\n  self.width = width", "width = 3", INIT, "width = 3"),
        ("boxes", STATIC, "import area", STATIC, "import area"),
    ],
)
def test_code_is_found_however_it_is_written(place, find, replace, old, new, source):
    assert SOURCE.count(old) == 1
    assert ast.dump(ast.parse(source(f"shapes.{place}", find, replace))) == ast.dump(ast.parse(SOURCE.replace(old, new)))


def test_all_else_stays_as_it_is_written(source):
    assert source("shapes.boxes.area", "scale==1", "scale <= 1") == SOURCE.replace("scale == 1", "(scale <= 1)")


def test_a_package_is_a_module(source):
    assert source("shapes", "SIDES = 4", "SIDES = 5") == "SIDES = 5\n"


def test_patches_are_applied_to_the_source_as_it_is(source):
    """The second would match twice in what the first makes."""
    place = "shapes.boxes.Box.volume.inner"
    with_import = Patch(place="shapes.boxes", find="import math", replace="import math\nwidth = 1\nwidth**3")
    patched = patched_sources([with_import, Patch(place=place, find="width**3", replace="width**2")])
    assert "width ** 2" in patched["shapes.boxes"]
    two = [Patch(place=place, find="width**3", replace=f"width**{n}") for n in (1, 2)]
    with pytest.raises(PatchError, match=r"two patches of shapes.boxes change the same code"):
        patched_sources(two)


@pytest.mark.parametrize(
    ("place", "find", "replace", "message"),
    [
        (
            "boxes.area",
            "width * depth",
            "1",
            r"0 times, expected once: 'width \* depth'; nearest is line 14: 'width \* height'",
        ),
        ("boxes.rounded", "width * height", "1", r"0 times, .*; it stands in shapes.boxes.area"),
        ("boxes.area", "product", "1", r"2 times, expected once: 'product' \(lines 18, 21\)"),
        ("boxes.area", "product = 0", "1", "0 times"),
        ("boxes.rounded", "number + 1", "1", "0 times"),  # Python 3.11 knows no places in f-strings
        ("boxes.area", "if scale == 2: product *= 2", "", "0 times"),  # an elif is no statement of its own
        ("boxes.aera", "width", "1", r"shapes.boxes has no function or class aera; nearest is shapes.boxes.area"),
        ("boxes.area_of_circle", "r", "1", "nearest is shapes.inner.area_of_circle"),
        ("boxes.aerial", "3 * r * r", "1", "aerial; .*; it stands in shapes.inner.area_of_circle"),
        ("boxes.rounded", "r * r * 3", "1", "0 times"),
        ("boxes.rounded", "3 * r", "1", "0 times, .*; it stands in shapes.inner.area_of_circle"),
        ("boxes.Box.weight", "width", "1", "no function or class Box.weight"),
        ("spheres.area", "width", "1", "no function or class spheres.area; nearest is shapes.boxes.area"),
        ("", "SIDES", "1", "0 times"),
        ("boxes.area", "(((", "1", r"`find` is not Python: .*: '\(\(\('"),
        ("boxes.area", "scale == 1", "((((", "`replace` is not Python"),
        ("boxes.area", "digits=2", "print(2)", "0 times"),
        ("boxes.Box.volume", "'kind': 'box'", "pass", "`find` reads as entries, `replace` as statements"),
        ("boxes.area", "scale == 1", "(scale   == 1)  # the same", "says the same"),
        ("boxes.area", "scale == 1", "scale == one", "shapes.boxes reads a name that is not defined: one"),
        ("boxes.area", "product *= 2", "break", "does not compile any more: 'break' outside loop"),
        ("boxes", "import math", "", "reads a name that is not defined: math"),
        ("boxes", "import math", "\0", "not Python"),
    ],
)
def test_a_patch_that_does_not_apply_says_why(place, find, replace, message, source):
    with pytest.raises(PatchError, match=message):
        source(f"shapes.{place}".rstrip("."), find, replace)


def test_a_package_that_is_not_there_is_an_error():
    with pytest.raises(PatchError, match=r"there is no module nothing.at.all"):
        patched_sources([Patch(place="nothing.at.all", find="x", replace="y")])


def test_names_that_nobody_defines_are_noticed():
    assert undefined_names("import a\n\n\ndef f(x: int) -> int:\n    y = x\n    return a.b + y + len(z)") == {"z"}
    assert undefined_names("class A:\n    b = c\n    def d(self):\n        return b, __name__") == {"b", "c"}
    assert undefined_names("def f():\n    global g\n    g = 1\n\ndef h():\n    return g") == set()

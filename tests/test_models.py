"""docs/guide/models.md has an example for every model file beside it, and shows one of the files as it is."""

import shlex

from tests.pages import PAGES, ROOT, blocks, commands

PAGE = PAGES["docs/guide/models.md"]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples" / "models").glob("*.json"))


def test_every_model_has_an_example():
    words = {word for command, _ in commands(PAGE) for word in shlex.split(command.text)}
    assert sorted(word for word in words if word.endswith(".json")) == FILES


def test_the_page_shows_a_file_as_it_is():
    (shown,) = (block.text for block in blocks(PAGE) if block.language == "json")
    assert shown in [(ROOT / name).read_text() for name in FILES]

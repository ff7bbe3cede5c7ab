"""Options of the fuzz job; one test per target and shard."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attn-parity")
    group.addoption("--examples", type=int, default=300, help="cases per target")
    group.addoption("--shards", type=int, default=2, help="tests per target, each with a seed of its own")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shard" in metafunc.fixturenames:
        metafunc.parametrize("shard", range(int(metafunc.config.getoption("--shards") or 1)))

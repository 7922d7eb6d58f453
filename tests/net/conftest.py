"""Runs every test of the in-memory network in virtual time.

pytest-trio takes a clock only from a test's own arguments; conformance tests must not know which one they get.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

pytest.register_assert_rewrite("tests.net.conformance", "tests.net.conformance_records")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_async = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function)
        if is_async and item.path.name == "test_memory.py":
            item.add_marker(pytest.mark.trio(run=_run_virtually), append=False)


def _run_virtually(function: Callable[..., Any], **settings: Any) -> Any:  # as trio.run
    settings["clock"] = MockClock(autojump_threshold=0)
    return trio.run(function, **settings)

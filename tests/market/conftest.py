"""The world of a market test, in virtual time; when it ends, nothing may be left of any conversation.

pytest-trio takes a clock only from a test's own arguments, so the whole folder is run with one.
"""

from collections.abc import AsyncIterator, Callable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.net.memory import MemoryFabric
from tests.market.world import World

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=_run_virtually), append=False)


def _run_virtually(function: Callable[..., Any], **settings: Any) -> Any:  # as trio.run
    settings["clock"] = MockClock(autojump_threshold=0)
    return trio.run(function, **settings)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    made = World(nursery, fabric, tmp_path)
    yield made
    await made.settle()

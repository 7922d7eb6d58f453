"""Every test here runs real hosts on loopback."""

import pytest
import trio

from tests.net.world import LibP2pWorld


@pytest.fixture
async def world(nursery: trio.Nursery) -> LibP2pWorld:
    return LibP2pWorld(nursery)

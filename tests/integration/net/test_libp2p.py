"""The libp2p network on loopback: the conformance suite."""

import pytest
import trio

from tests.net.conformance import *  # noqa: F403 (its tests are collected here)
from tests.net.conformance_records import *  # noqa: F403
from tests.net.world import LibP2pWorld

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
async def world(nursery: trio.Nursery) -> LibP2pWorld:
    return LibP2pWorld(nursery)

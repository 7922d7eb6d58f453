"""``souk serve`` with a daemon in place of ours that behaves as its first argument says."""

import sys
from types import ModuleType
from typing import Any

import trio

import node
from node.cli import main
from node.errors import TransportError
from node.home import ApiInfo, Home


async def serve(home: Home, live: Any, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    if behaviour == "fails":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fail)
    home.write_api(
        ApiInfo(url="http://127.0.0.1:1", token_file="", pid=1, peer_id="12D3", addresses=("/ip4/1.2.3.4/tcp/5",))
    )
    task_status.started()
    try:
        if behaviour != "returns":
            await trio.sleep_forever()
    finally:
        if behaviour == "lingers":
            with trio.CancelScope(shield=True):
                print("lingering", file=sys.stderr, flush=True)  # noqa: T201  the test waits for it
                await trio.sleep_forever()


async def _fail() -> None:
    raise TransportError("the port is in use")


if __name__ == "__main__":
    behaviour = sys.argv.pop(1)
    fake = ModuleType("node.daemon")
    fake.serve = serve  # type: ignore[attr-defined]  # a module made by hand has no declared names
    sys.modules["node.daemon"] = fake
    node.daemon = fake  # type: ignore[attr-defined]  # as above
    main()

"""One HTTP/1.1 listener on loopback: hypercorn's connection code in a nursery of ours (ux.md, section 4.1).

Knows nothing of the app that it serves. Cancelling ``serve_app`` ends every connection and request at once.
"""

import errno
import logging
import math
import socket
from functools import partial
from typing import Final, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

from node.errors import NodeError

HEAD_BYTES_MAX: Final = 32 * 1024
IDLE_S_MAX: Final = 75.0
"""Without a complete request head; longer than the pool of the usual clients keeps a connection."""
WRITE_STALL_S_MAX: Final = 20.0
BACKLOG: Final = 128

log = logging.getLogger(__name__)


class Http1(H11Protocol):
    """HTTP/1.1 and nothing else.

    hypercorn lets any client switch a clear-text connection to HTTP/2: nobody needs that here, and one with
    broken settings hung for good.
    """

    async def _check_protocol(self, event: h11.Request) -> None:
        pass


class Connection(TCPServer):
    """One client. Cures faults of hypercorn 0.18.0, each held by a test of its own.

    It shields every send from cancellation, so one client that does not read keeps the process from ever
    stopping; here a send is cancelled, or given up after ``WRITE_STALL_S_MAX``, and closes the connection, since
    half a chunk may be out. It catches ``OSError`` around a nursery, whose errors arrive in groups, so that what
    it did not foresee would end the daemon; here it ends one connection. And its idle timer, and a reader that
    waits behind a pipelined request, outlive the connection (1,500 tasks after 3,100 rude clients); here reading
    is one scope, with the idle time as its deadline, and whatever closes the connection ends it.
    """

    async def run(self) -> None:
        self._reading = trio.CancelScope(deadline=trio.current_time() + IDLE_S_MAX)
        try:
            sock = self.stream.socket
            client, server = sock.getpeername()[:2], sock.getsockname()[:2]
            async with TaskGroup() as task_group:
                self.protocol = Http1(  # type: ignore[assignment]  # the wrapper around it adds only HTTP/2
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                with self._reading:
                    await self._read_data()
                # Tells the app, which may still be at work, that nobody listens.
                await self.protocol.handle(Closed())
        except OSError:
            pass  # gone before it was greeted
        except Exception:  # the edge of one connection: whatever a client provokes must not stop the others
            log.warning("connection broke", exc_info=True)
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._reading.deadline = trio.current_time() + IDLE_S_MAX if event.idle else math.inf
        elif isinstance(event, RawData):
            await self._send(event.data)
        else:
            await super().protocol_send(event)
            self._reading.cancel()

    async def _send(self, data: bytes) -> None:
        async with self.send_lock:
            sent = False
            try:
                with trio.move_on_after(WRITE_STALL_S_MAX):
                    await self.stream.send_all(data)
                    sent = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client is gone: told to the app below
            finally:
                if not sent:
                    self._reading.cancel()
                    self.stream.socket.close()
            if not sent:
                await self.protocol.handle(Closed())


async def serve_app(
    app: ASGIApp, bind: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``app`` at ``host:port`` until cancelled; ``started`` tells the URL, with the port that was taken.

    Raises:
        NodeError: the address cannot be listened on.
    """
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.include_server_header = False
    with _listen(bind) as sock:
        host, port = sock.getsockname()[:2]
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        # Starlette and hypercorn name the same ASGI callable differently.
        wrapped = ASGIWrapper(cast(ASGIFramework, app))
        handler = partial(Connection, wrapped, config, WorkerContext(None), ConnectionState({}))
        async with trio.open_nursery() as connections:
            task_status.started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await trio.serve_listeners(handler, [listener], handler_nursery=connections)


def _listen(bind: str) -> socket.socket:
    name, _, port = bind.rpartition(":")
    host = "127.0.0.1" if name == "localhost" else name.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        sock.close()
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            raise NodeError(
                f"the API cannot listen on {bind}: the port is in use. Another souk may run here"
                " (souk status); stop it, or set api.bind to another port"
            ) from exc
        raise NodeError(f"the API cannot listen on {bind}: {exc}. Set api.bind to a loopback address") from exc
    return sock

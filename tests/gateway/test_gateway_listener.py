"""Connections of the HTTP server: what a body that nobody reads does to the one it comes by."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import hypercorn.trio
import hypercorn.trio.run as server
import pytest
import trio
import trio.testing
from hypercorn.config import Config

from swamp_orch.gateway import listener
from swamp_orch.gateway.listener import Connection, keep_connections_apart


class Deaf:
    """An application that answers without reading, once its connection's reader can not go on; and what it hears then."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.port = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
        await trio.testing.wait_all_tasks_blocked(0.05)
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        while (await receive())["type"] != "http.disconnect":
            self.heard.append("body")
        self.heard += [(await receive())["type"]]


@pytest.fixture
async def deaf(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Deaf, list[Connection]]]:
    """The application, and the connections that live."""
    keep_connections_apart(lambda event, problem: None)
    live: list[Connection] = []

    class Counted(Connection):
        async def run(self) -> None:
            live.append(self)
            await super().run()
            live.remove(self)

    monkeypatch.setattr(server, "TCPServer", Counted)
    app, config = Deaf(), Config()
    config.bind, config.errorlog = ["127.0.0.1:0"], None
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve: Any = partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
            (bound,) = await nursery.start(serve)
            app.port = int(bound.rpartition(":")[2])
            yield app, live
            nursery.cancel_scope.cancel()


async def test_a_body_that_nobody_reads_ends_with_its_connection(deaf: tuple[Deaf, list[Connection]]) -> None:
    """Neither its reader nor the news of the end waits for room among what the application does not hear."""
    app, live = deaf
    async with await trio.open_tcp_stream("127.0.0.1", app.port) as stream:
        await stream.send_all(b"PATCH / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(listener.READ_SIZE))
    while live:  # noqa: ASYNC110 - a connection that has ended tells nobody
        await trio.sleep(0.01)
    assert app.heard[-1] == "http.disconnect"
    assert app.heard.count("body") <= Config().max_app_queue_size

"""Message pipes: one contract for the WebSocket and its twin in memory, and what is particular to each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio_websocket import WebSocketConnection, WebSocketRequest, connect_websocket_url, serve_websocket

from swamp_proto.errors import Broken, LimitExceeded, MalformedMessage
from swamp_proto.limits import CLOSE_HANDSHAKE_S, CONTROL_FRAME_MAX
from swamp_proto.trio_io import (
    CLOSED_ABNORMALLY,
    REASON_BYTES_MAX,
    MessagePipe,
    PipeBroken,
    WebSocketPipe,
    fitted,
    memory_pipe_pair,
)

Pair = tuple[MessagePipe, MessagePipe]


@asynccontextmanager
async def memory() -> AsyncIterator[Pair]:
    yield memory_pipe_pair(8)


@asynccontextmanager
async def websocket() -> AsyncIterator[Pair]:
    """A real socket on loopback; `(client, server)`."""
    arrived, take = trio.open_memory_channel[WebSocketConnection](1)

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        await arrived.send(connection)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: serve_websocket(
                handle, "127.0.0.1", 0, None, max_message_size=CONTROL_FRAME_MAX, task_status=task_status
            )
        )
        client = await connect_websocket_url(
            nursery, f"ws://127.0.0.1:{server.port}/control/v1", max_message_size=CONTROL_FRAME_MAX
        )
        accepted = await take.receive()
        try:
            yield WebSocketPipe(client), WebSocketPipe(accepted)
        finally:
            for connection in (client, accepted):
                await trio.aclose_forcefully(connection._stream)
            nursery.cancel_scope.cancel()


KINDS = pytest.mark.parametrize("pair", [memory, websocket], ids=["memory", "websocket"])


@KINDS
async def test_messages_arrive_whole_and_in_order_both_ways(pair) -> None:  # type: ignore[no-untyped-def]
    messages = [b"", b"\x00", b"x" * 70_000, bytes(range(256)), b"y" * CONTROL_FRAME_MAX]
    with trio.fail_after(60):
        async with pair() as ends, trio.open_nursery() as nursery:

            async def send(pipe: MessagePipe) -> None:
                for message in messages:
                    await pipe.send(message)

            for pipe in ends:
                nursery.start_soon(send, pipe)
            for pipe in ends:
                assert [await pipe.receive() for _ in messages] == messages


@KINDS
async def test_a_close_gives_the_peer_what_was_sent_then_the_code_and_the_reason(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            await near.send(b"last words")
            await near.aclose(4001, "shift over")
            assert await far.receive() == b"last words"
            for _ in range(2):
                with pytest.raises(PipeBroken) as caught:
                    await far.receive()
                assert (caught.value.close_code, caught.value.reason) == (4001, "shift over")
            with pytest.raises(PipeBroken) as caught:
                await far.send(b"too late")
            assert caught.value.close_code == 4001
            assert isinstance(caught.value, Broken)


@KINDS
async def test_a_closed_end_neither_sends_nor_receives_and_closing_again_is_fine(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, _):
            await near.aclose()
            await near.aclose(1011, "again")
            with pytest.raises(PipeBroken):
                await near.send(b"x")
            with pytest.raises(PipeBroken):
                await near.receive()


@KINDS
async def test_closing_wakes_a_receive_on_either_end(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            woken = []

            async def wait(pipe: MessagePipe) -> None:
                with pytest.raises(PipeBroken):
                    await pipe.receive()
                woken.append(pipe)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, near)
                nursery.start_soon(wait, far)
                await trio.testing.wait_all_tasks_blocked()
                await near.aclose()
            assert len(woken) == 2


@KINDS
async def test_a_message_over_the_limit_is_refused_before_it_is_sent(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            with pytest.raises(LimitExceeded):
                await near.send(bytes(CONTROL_FRAME_MAX + 1))
            await near.send(b"still alive")
            assert await far.receive() == b"still alive"


@KINDS
async def test_a_long_reason_is_cut_to_what_a_close_frame_holds(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            await near.aclose(4000, "ü" * 200)
            with pytest.raises(PipeBroken) as caught:
                await far.receive()
            assert caught.value.reason == "ü" * (REASON_BYTES_MAX // 2)


@KINDS
async def test_a_peer_that_does_not_read_holds_the_sender_back(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            for _ in range(200):
                with trio.move_on_after(0.3) as scope:
                    await near.send(bytes(1 << 20))
                if scope.cancelled_caught:
                    break
            else:
                raise AssertionError("200 MiB were taken that nobody reads")
            assert await far.receive() == bytes(1 << 20)


@KINDS
async def test_the_goodbye_is_said_even_in_a_cancelled_scope(pair) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(60):
        async with pair() as (near, far):
            with trio.CancelScope() as scope:
                scope.cancel()
                await near.aclose(4002, "cancelled")
            with pytest.raises(PipeBroken) as caught:
                await far.receive()
            assert (caught.value.close_code, caught.value.reason) == (4002, "cancelled")


def test_a_reason_is_never_cut_inside_a_character() -> None:
    for text in ("", "plain", "x" + "ü" * 100, "€" * 100, "\udcff"):
        short = fitted(text)
        assert len(short.encode()) <= REASON_BYTES_MAX
        assert short == text[: len(short)] or text == "\udcff"


# ── memory only ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_memory_pipe_holds_only_so_many_messages() -> None:
    near, far = memory_pipe_pair(2)
    await near.send(b"1")
    await near.send(b"2")
    with trio.move_on_after(0.01) as scope:
        await near.send(b"3")
    assert scope.cancelled_caught
    assert await far.receive() == b"1"
    with trio.fail_after(60):
        await near.send(b"3")


async def test_a_cut_loses_what_was_in_flight_and_both_ends_know_at_once() -> None:
    near, far = memory_pipe_pair()
    await near.send(b"in flight")
    near.cut()
    for pipe in (near, far):
        with pytest.raises(PipeBroken) as caught:
            await pipe.receive()
        assert caught.value.close_code == CLOSED_ABNORMALLY
        with pytest.raises(PipeBroken):
            await pipe.send(b"x")


# ── WebSocket only ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_text_message_is_malformed() -> None:
    with trio.fail_after(60):
        async with websocket() as (near, far):
            assert isinstance(near, WebSocketPipe)
            await near._connection.send_message("{}")
            with pytest.raises(MalformedMessage) as caught:
                await far.receive()
            assert caught.value.path == "$"


async def test_a_socket_that_breaks_without_a_goodbye_is_abnormal() -> None:
    with trio.fail_after(60):
        async with websocket() as (near, far):
            assert isinstance(near, WebSocketPipe)
            await near._connection._stream.aclose()
            with pytest.raises(PipeBroken) as caught:
                await far.receive()
            assert caught.value.close_code == CLOSED_ABNORMALLY
            with pytest.raises(PipeBroken):
                await far.send(b"x")


async def test_a_peer_that_never_answers_the_close_costs_a_bounded_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A connection whose peer reads nothing and says nothing: a half-open link."""

    class Mute:
        async def aclose(self, code: int, reason: str | None) -> None:
            await trio.sleep_forever()

    before = trio.current_time()
    await WebSocketPipe(Mute()).aclose()
    assert trio.current_time() - before == pytest.approx(CLOSE_HANDSHAKE_S)

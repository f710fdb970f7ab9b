"""What runs in a runner process: reads its start from the channel, performs the step, says how it went, and is gone.

Two ways lead here: a child of the forkserver (`forkserver.py`), forked before there was a step, and a fresh interpreter for code
with dependencies (`python -I main.py CHANNEL`). Either way this process leads its own session and group, has `/dev/null` as standard
input, two pipes to the step's log as standard output and error, and one more descriptor, the channel, which nothing it starts inherits.

Rules that hold here:

- No code of an author's runs before the start has come: by then the executor has registered the group.
- The environment is the one that the start brings, all of it.
- The process ends when the step has: what its threads still do is nobody's.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

if __name__ == "__main__":  # started by its path, in an interpreter that looks nowhere else
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from swamp_proto.errors import LimitExceeded, SwampError
from swamp_worker.execution.runner.framing import READ_SIZE, Inbox, pack
from swamp_worker.execution.runner.house import RunnerHouse, Wire
from swamp_worker.execution.runner.loading import find_class
from swamp_worker.sdk.conversations import Ask, Situation
from swamp_worker.sdk.declarations import declared
from swamp_worker.sdk.performance import Hearer, Order, Performance, perform, sentence, story
from swamp_worker.sdk.values import ModelInfo, Place, run_findings

_PRACTICE = Path(__file__).resolve().parent
_VARIABLES = 40  # about as many as a step has
_INLINE_OUTPUTS_MAX = 1024 * 1024  # of one closing message; larger outputs are put beside it as files


def run(channel: socket.socket, mark: Callable[[bytes], object] = lambda marker: None) -> NoReturn:
    """Perform the step that the channel names, when it does; `mark` hears its marker first. Does not return."""
    code = 1
    try:
        sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc,assignment] # those of the interpreter were made for other files
        sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc,assignment]
        wire = Wire(channel)
        start = _receive(channel, wire.inbox)
        if start is not None:
            mark(start["dispatch"].encode())
            _enter(start)
            closing = _Closing(wire, Path(start["directory"]))
            closing.finish(_perform(wire, start, closing))
            code = 0
    except BaseException:  # ours: nothing of an author's gets here
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        os._exit(code)


def rehearse() -> None:
    """Go through the motions of a step once: what is made lazily is made, and the pages that a step writes to are copied before
    there is a step. Leaves nothing behind.
    """
    before = signal.getsignal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # one that is meant is taken afterwards
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours)
        variables = {
            b"SWAMP_REHEARSAL_%d" % number: b"a value of some length" for number in range(_VARIABLES)
        }
        os.environb.update(variables)
        cls = find_class(_PRACTICE, "practice.py:Practice")
        said = declared(cls)
        assert said is not None
        info, place = ModelInfo("", "", "", 1), Place("", "", "", "")
        situation = Situation(said, info, place, 1, 1, "", None, _PRACTICE, _PRACTICE, lambda *_: None)
        found = perform(cls, Order("act", {}, {}), situation, RunnerHouse(wire, situation))
        assert found.error is None, found.error
        pack({"done": True, "outputs": [], "environment": b""})
        for name in variables:
            del os.environb[name]
        sys.path.remove(str(_PRACTICE))
        sys.path_importer_cache.pop(str(_PRACTICE), None)
        del sys.modules["practice"]
    signal.signal(signal.SIGTERM, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _receive(channel: socket.socket, inbox: Inbox) -> dict[str, Any] | None:
    while (message := inbox.take()) is None:
        data = channel.recv(READ_SIZE)
        if not data:
            return None  # the executor thought better of it
        inbox.feed(data)
    return message


def _enter(start: dict[str, Any]) -> None:
    """Become the step's process: its environment and its directory."""
    environment = dict(entry.split(b"=", 1) for entry in start["environment"].split(b"\0") if entry)
    environment[b"PWD"] = os.fsencode(start["directory"])
    for name in [name for name in os.environb if name not in environment]:
        del os.environb[name]
    os.environb.update(environment)
    time.tzset()
    os.chdir(start["directory"])


def _stream(descriptor: int) -> TextIO:
    """Lines leave when they are whole, and no text is refused."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _perform(wire: Wire, start: dict[str, Any], closing: "_Closing") -> Performance:
    root = Path(start["root"])
    try:
        cls = find_class(root, start["entry"], tuple(start["paths"]))
    except BaseException as error:  # whatever an import raises, also SystemExit, is the extension's doing
        for line in story(error, root):
            _say(line, True)
        return Performance(error=f"The extension can not be loaded: {sentence(error, root)}")
    said = declared(cls)
    assert said is not None
    situation = Situation(
        declared=said,
        model=ModelInfo(**start["model"]),
        place=Place(**start["place"]),
        fence=start["fence"],
        attempt=start["attempt"],
        attempt_key=start["attempt_key"],
        global_arguments=None,
        folder=root,
        directory=Path(start["directory"]),
        say=_say,
    )
    order = Order(
        start["method"],
        start["arguments"],
        start["global_arguments"],
        tuple(start["checks"]),
        tuple(start["reports"]),
        run_findings(json.loads(Path(start["run"]).read_bytes())) if start["run"] else None,
    )
    return perform(cls, order, situation, RunnerHouse(wire, situation), closing)


_SAYING = threading.Lock()


def _say(line: str, is_error: bool) -> None:
    """A line of the step's log, whole, also between lines that other threads print."""
    stream = sys.stderr if is_error else sys.stdout
    with _SAYING:
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):  # the method closed it: there is no log any more
            pass


class _Closing(Hearer):
    """Says how the step ends, as it ends: `ended` when the method has and reports come, `report` for each of them, `done`."""

    def __init__(self, wire: Wire, directory: Path) -> None:
        self._wire = wire
        self._directory = directory
        self._ended = False
        self._files = 0

    def ended(self, found: Performance) -> None:
        self._ended = True
        self._send({"ended": True, **self._end_of(found)})

    def report(self, name: str, records: list[Ask]) -> None:
        self._send({"report": name, "outputs": self._sent(records)})

    def finish(self, found: Performance) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        message: dict[str, Any] = {"error": None, "cancelled": found.cancelled, "outputs": []}
        self._send({"done": True, **(message if self._ended else self._end_of(found))})

    def _end_of(self, found: Performance) -> dict[str, Any]:
        return {"error": found.error, "cancelled": found.cancelled, "outputs": self._sent(found.outputs)}

    def _sent(self, outputs: list[Ask]) -> list[Ask]:
        """Those that are too large for one message are put beside it."""
        found, room = [], _INLINE_OUTPUTS_MAX
        for output in outputs:
            content = output.get("content")
            if content is None or len(content) <= room:
                room -= len(content or b"")
                found.append(output)
                continue
            folder = self._directory / ".swamp"
            folder.mkdir(parents=True, exist_ok=True)  # a method may have removed it
            self._files += 1
            path = folder / f"end-{self._files}"
            path.write_bytes(content)
            found.append(
                {**{key: value for key, value in output.items() if key != "content"}, "file": str(path)}
            )
        return found

    def _send(self, message: dict[str, Any]) -> None:
        try:
            data = pack(message)
        except (LimitExceeded, SwampError) as error:
            text = f"the outputs can not be sent: {error}"
            data = pack({**message, "error": text, "cancelled": False, "outputs": []})
        self._wire.channel.setblocking(True)
        self._wire.channel.sendall(data)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    run(socket.socket(fileno=int(sys.argv[1])))

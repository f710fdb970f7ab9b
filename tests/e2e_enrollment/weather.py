"""A TCP proxy between workers and their orchestrator, whose connections can be cut or fall silent.

Silent is half-open: both ends keep an open socket, nothing arrives any more, and the end of one is never told to the other.
Connections made afterwards work: that is what makes the situation hard.
"""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Sequence

_OFFSET = re.compile(rb"(?i)\nupload-offset: *(\d+)\r")


class Weather:
    """Listens on `port` until closed; `url` leads to the orchestrator through it. The first connections are cut when as
    many bytes as `budgets` say have gone to the orchestrator.
    """

    def __init__(self, target: int, budgets: Sequence[int] = ()) -> None:
        self.target = target
        self.offsets: list[int] = []  # at which uploads through it began or went on
        self.budgets = list(budgets)  # of connections to come
        self.waiting = threading.Event()  # somebody has connected
        self.open = threading.Event()  # whoever connects goes on only now
        self.open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"ws://localhost:{self.port}"

    def cut(self) -> None:
        """End every connection of now; both ends notice at once."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut()

    def silence(self) -> None:
        """Every connection of now goes half-open."""
        with self._lock:
            for pair in self._pairs:
                pair.silent.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.open.set()
        self.cut()
        self._accepting.join(60)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.waiting.set()
            self.open.wait()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append(_Pair(self, near, far, self.budgets.pop(0) if self.budgets else None))


class _Pair:
    def __init__(self, weather: Weather, near: socket.socket, far: socket.socket, budget: int | None) -> None:
        self.silent = threading.Event()
        self._ends = (near, far)
        self._weather = weather
        for source, sink, left in ((near, far, budget), (far, near, None)):
            threading.Thread(target=self._pump, args=(source, sink, left), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        while True:
            try:
                data = source.recv(65_536)
            except OSError:
                data = b""
            if self.silent.is_set():
                if not data:
                    return  # the other end is never told
                continue
            try:
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
                if source is self._ends[0]:
                    self._weather.offsets += map(int, _OFFSET.findall(data))
                if left is not None and (left := left - len(data)) <= 0:
                    self.cut()
                    return
            except OSError:
                self.cut()  # one end is gone; the other must not wait for somebody to take what it sends
                return

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()

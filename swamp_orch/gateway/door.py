"""Before a secret is proved: how many may wait at the door, and who is verified next.

Rules that hold here (SEMANTICS §6):

1. Sockets that have proved nothing are few, per address and in all. When there is one too many, the one that has waited longest at
   the most crowded address makes room: whoever has something to say says it within a round trip, and is not locked out by those
   who say nothing.
2. Verifications run a few at a time, in turns by address: a flood from one address waits behind itself. A full queue answers
   `overloaded` with a hint, to the newest of the most crowded address.
3. Nothing here learns whether a token exists: both paths are one verification.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import attrs
import trio

from swamp_orch.core.tokens import Challenge
from swamp_orch.tokens.verification import Verifier
from swamp_proto.errors import RefusalCode, Refused
from swamp_proto.limits import VERIFICATION_QUEUE_MAX, VERIFICATIONS_AT_ONCE

RETRY_SOON_S: Final = 1.0


def overloaded(what: str) -> Refused:
    """The retryable no of a door with too many before it."""
    return Refused(RefusalCode.OVERLOADED, what, retry_after_s=RETRY_SOON_S)


class Waiters:
    """Tasks that wait at the door, bounded; making room cancels the scope of the one that has waited longest."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._scopes: dict[str, OrderedDict[trio.CancelScope, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def waiting(self, address: str, limit_s: float) -> Iterator[trio.CancelScope]:
        """Wait inside for at most `limit_s`. `cancelled_caught` of the scope: the time is over, or it made room
        (then its deadline has not passed)."""
        with trio.move_on_after(limit_s) as scope:
            self._scopes.setdefault(address, OrderedDict())[scope] = None
            self._count += 1
            self._make_room(address)
            try:
                yield scope
            finally:
                self._remove(address, scope)

    def _make_room(self, address: str) -> None:
        if len(self._scopes[address]) > self._most_per_address:
            crowded = address
        elif self._count > self._most:
            crowded = max(self._scopes, key=lambda one: len(self._scopes[one]))
        else:
            return
        oldest = next(iter(self._scopes[crowded]))
        self._remove(crowded, oldest)
        oldest.cancel()

    def _remove(self, address: str, scope: trio.CancelScope) -> None:
        scopes = self._scopes.get(address)
        if scopes is not None and scope in scopes:
            del scopes[scope]
            self._count -= 1
            if not scopes:
                del self._scopes[address]


@attrs.define(eq=False)
class _Turn:
    address: str
    come: trio.Event = attrs.field(factory=trio.Event)
    turned_away: bool = False


class Verifications:
    """argon2 behind its limiter. `verifier.spent` counts what was really paid."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        at_once: int = VERIFICATIONS_AT_ONCE,
        waiting_max: int = VERIFICATION_QUEUE_MAX,
    ) -> None:
        self.verifier = verifier
        self._free = at_once
        self._waiting_max = waiting_max
        self._limiter = trio.CapacityLimiter(at_once)
        self._queues: OrderedDict[str, deque[_Turn]] = OrderedDict()  # the first address is next
        self._waiting = 0

    @property
    def must_wait(self) -> bool:
        """Whether a verification asked for now would queue."""
        return self._free == 0

    async def verify(self, address: str, asked: Challenge, secret: str) -> bool:
        """Whether the secret is right. What this process has verified before passes by the queue.

        Raises Refused (`overloaded`) when the queue is full.
        """
        if self.verifier.knows(asked, secret):
            return True
        await self._take_turn(address)
        try:
            return await trio.to_thread.run_sync(
                partial(self.verifier.verify, asked, secret), limiter=self._limiter
            )
        finally:
            self._next()

    async def _take_turn(self, address: str) -> None:
        if self._free:
            self._free -= 1
            return
        if self._waiting >= self._waiting_max:
            self._turn_one_away(address)
        turn = _Turn(address)
        self._queues.setdefault(address, deque()).append(turn)
        self._waiting += 1
        try:
            await turn.come.wait()
        except trio.Cancelled:
            if turn.come.is_set():
                self._next()
            else:
                self._drop(turn)
            raise
        if turn.turned_away:
            raise overloaded("too many enrollments are being verified")

    def _turn_one_away(self, address: str) -> None:
        counts = Counter({one: len(queue) for one, queue in self._queues.items()})
        counts[address] += 1
        crowded = max(counts, key=lambda one: counts[one])
        if crowded == address:
            raise overloaded("too many enrollments are being verified")
        turn = self._queues[crowded][-1]
        self._drop(turn)
        turn.turned_away = True
        turn.come.set()

    def _drop(self, turn: _Turn) -> None:
        queue = self._queues[turn.address]
        queue.remove(turn)
        self._waiting -= 1
        if not queue:
            del self._queues[turn.address]

    def _next(self) -> None:
        """A turn is over: the next address has its turn, or there is one more free."""
        if not self._queues:
            self._free += 1
            return
        address, queue = next(iter(self._queues.items()))
        turn = queue.popleft()
        self._waiting -= 1
        del self._queues[address]
        if queue:
            self._queues[address] = queue  # behind all others
        turn.come.set()

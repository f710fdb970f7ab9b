"""The workers that are connected, and their session credentials.

A member's scope *is* its session: whoever ends the session cancels it. A session credential is valid until its own end, never
beyond the token's, and never beyond the session; only its digest is kept. After a refresh the one before it stays valid until its
own end, because a request that carries it may be on its way.
"""

import hashlib
import secrets

import attrs
import trio

from swamp_orch.gateway.link import Link
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.errors import Refused
from swamp_proto.limits import SESSION_CREDENTIAL_S


@attrs.define(eq=False)
class Member:
    """A connected worker: its state as recorded, its link, and the scope that is its session."""

    state: WorkerState
    link: Link
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    warned: int = 0  # token warnings already given
    farewell: Refused | None = None  # said before the link ends
    left: bool = False
    ending: trio.Event = attrs.field(factory=trio.Event)  # somebody cut it
    gone: trio.Event = attrs.field(factory=trio.Event)  # nothing counts on it any more
    parted: trio.Event = attrs.field(factory=trio.Event)  # its last words were written, or could not be

    @property
    def name(self) -> str:
        return self.state.name

    def end(self, farewell: Refused | None = None) -> None:
        """Cut the session; `farewell` tells the worker why."""
        self.farewell = self.farewell or farewell
        self.ending.set()
        self.scope.cancel()

    def seen(self, now_ms: int) -> WorkerState:
        """The state with the instant of the last frame that was heard."""
        heard_ms = now_ms - round((trio.current_time() - self.link.heard_s) * 1000)
        return attrs.evolve(self.state, last_seen_ms=max(self.state.last_seen_ms, heard_ms))


@attrs.frozen
class _Issued:
    member: Member
    ends_ms: int


class Sessions:
    """Session credentials by digest."""

    def __init__(self) -> None:
        self._issued: dict[bytes, _Issued] = {}
        self._digests: dict[Member, list[bytes]] = {}

    def issue(self, member: Member, now_ms: int) -> tuple[str, int]:
        """A fresh credential and its end, wall milliseconds."""
        credential = secrets.token_hex(32)
        ends_ms = min(now_ms + round(SESSION_CREDENTIAL_S * 1000), member.state.token_expires_ms)
        digest = _digest(credential)
        live = [one for one in self._digests.get(member, ()) if now_ms < self._issued[one].ends_ms]
        for over in set(self._digests.get(member, ())).difference(live):
            del self._issued[over]
        self._issued[digest] = _Issued(member, ends_ms)
        self._digests[member] = [*live, digest]
        return credential, ends_ms

    def member(self, credential: str, now_ms: int) -> Member | None:
        """Whose session this is; None when there is none (any more)."""
        found = self._issued.get(_digest(credential))
        return None if found is None or now_ms >= found.ends_ms else found.member

    def end(self, member: Member) -> None:
        """The session is over, and every credential of it."""
        for digest in self._digests.pop(member, ()):
            del self._issued[digest]


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()

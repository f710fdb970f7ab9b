"""Tokens' lifetimes, on the wall clock: what ends with a token ends here, within a second, whoever ended it.

Rules that hold here (SEMANTICS §2, §5, §6):

1. Deadlines are derived anew from the wall clock at least every second, and sooner when one is due or somebody says that a token
   changed. Tokens are read from the store each time, so a revocation by another process counts like our own.
2. An end that is seen first here is made durable first; then the leases of that mint end, connected or not; then the sessions.
3. Another mint id is another token: sessions and leases of the mint before it end.
4. Warnings come when a tenth of the lifetime is left and one minute before the end.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

import attrs
import trio

from swamp_orch.core.tokens import LIVE, Token, mint_over, warning_instants
from swamp_orch.gateway.members import Member
from swamp_orch.store.bookkeeping import iso
from swamp_orch.tokens.watch import TokenWatch
from swamp_proto.errors import RefusalCode, Refused, SwampError
from swamp_proto.limits import TOKEN_TICK_S
from swamp_proto.messages.enrollment import Notice


class Leases(Protocol):
    """The engine's side."""

    def mints_at_work(self) -> Collection[tuple[str, str]]:
        """Token name and mint id of every lease that has not ended."""
        ...

    def token_ended(self, mint_id: str, why: RefusalCode) -> None: ...


class Reporter(Protocol):
    """Says what happens, to the operator and to the log."""

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None: ...


class Lifetimes:
    """`watch` runs as long as the orchestrator."""

    def __init__(
        self,
        tokens: TokenWatch,
        members: Mapping[str, Member],
        leases: Leases,
        reporter: Reporter,
        *,
        clock_ms: Callable[[], int],
        expire_due: Callable[[], object],
        update: Callable[..., Awaitable[None]],
    ) -> None:
        self._watch = tokens
        self._members = members
        self._leases = leases
        self._report = reporter
        self._clock_ms = clock_ms
        self._expire_due = expire_due
        self._update = update
        self._sooner = trio.Event()

    def look_again(self) -> None:
        """Token records may have changed: look now rather than at the next tick."""
        self._sooner.set()

    async def watch(self) -> None:
        while True:
            try:
                await self._look()
            except SwampError as error:
                self._report.warning("enrollment tokens can not be read", error=str(error))
            with trio.move_on_after(self._pause_s()):
                await self._sooner.wait()
            self._sooner = trio.Event()

    def _pause_s(self) -> float:
        """Until the next end of a life or warning of it, if that is sooner than the tick."""
        now_ms = self._clock_ms()
        soon_ms = now_ms + TOKEN_TICK_S * 1000
        for token in self._watch.tokens.values():
            if token.state in LIVE:
                for instant in (*warning_instants(token), token.expires_ms):
                    if now_ms < instant < soon_ms:
                        soon_ms = instant
        return max(0.01, (soon_ms - now_ms) / 1000)

    async def _look(self) -> None:
        # Taken down first: whoever is here now has a token that the look will find.
        members, mints = tuple(self._members.values()), sorted(self._leases.mints_at_work())
        await trio.to_thread.run_sync(self._watch.look)
        now_ms = self._clock_ms()
        if any(token.state in LIVE and now_ms >= token.expires_ms for token in self._watch.tokens.values()):
            try:
                await trio.to_thread.run_sync(self._expire_due)
                await trio.to_thread.run_sync(self._watch.look)
            except SwampError as error:  # a full disk keeps no expired token connected
                self._report.warning("the end of a token could not be recorded", error=str(error))
        for name, mint_id in mints:
            why = mint_over(self._watch.tokens.get(name), mint_id, now_ms)
            if why is not None:
                self._leases.token_ended(mint_id, why)
        for member in members:
            await self._check(member)

    async def _check(self, member: Member) -> None:
        name = member.state.token_name
        why = mint_over(self._watch.tokens.get(name), member.state.mint_id, self._clock_ms())
        if why is not None:
            self.cut(member, why)
            return
        token = self._watch.tokens[name]
        if token.expires_ms != member.state.token_expires_ms:
            member.warned = 0
            member.state = attrs.evolve(member.state, token_expires_ms=token.expires_ms)
            member.link.post(
                Notice("info", f"token '{name}' was renewed: it lives until {iso(token.expires_ms)}")
            )
            await self._update(member, token_expires_ms=token.expires_ms)
        self._warn(member, token)

    def _warn(self, member: Member, token: Token) -> None:
        now_ms = self._clock_ms()
        due = sum(1 for instant in warning_instants(token) if instant <= now_ms)
        if due > member.warned:
            left = span(token.expires_ms - now_ms)
            text = (
                f"token '{token.name}' expires in {left}; extend it: "
                f"swamp worker token renew {token.name} --duration <d>"
            )
            self._report.warning("token about to expire", worker=member.name, left=left)
            member.link.post(Notice("warn", text))
        member.warned = max(member.warned, due)

    def cut(self, member: Member, why: RefusalCode) -> None:
        """End the leases of this member's mint, then its session."""
        end = "expired" if why is RefusalCode.EXPIRED else "been revoked"
        refusal = Refused(why, f"Enrollment token '{member.state.token_name}' has {end}")
        self._report.warning("session ended", worker=member.name, code=why.value, reason=refusal.message)
        self._leases.token_ended(member.state.mint_id, why)
        member.end(refusal)


def span(span_ms: int) -> str:
    """`3 s`, `4 m`, `2 h`, `5 d`."""
    seconds = max(0, span_ms // 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

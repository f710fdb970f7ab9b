"""The enrollment token as a hypothesis state machine against a naive model, and planted bugs that it must
find.

Two processes change tokens with a store between them: every change is decided on what was read and written
later, so that anything may happen between the two. Verifications answer late and in any order.
"""

import random
from hashlib import sha256
from types import ModuleType
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from planted import planted

from swamp_orch.core import tokens as real
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.ids import MachineId, MintId, TokenName

NAMES = ("single", "fleet")
ALLOWANCE = {"single": 1, "fleet": 2}
MACHINES = ("m0", "m1", "m2", "m3")
PICK = st.integers(0, 5)
LIFE = (
    "enroll",
    "verify",
    "decide",
    "settle",
    "mint",
    "write",
    "revoke",
    "renew",
    "notice",
    "later",
    "back",
    "crash",
)
LIFE_WEIGHTS = (8, 9, 12, 8, 3, 6, 1, 1, 1, 2, 1, 1)


@attrs.define
class Minted:
    """One minting, as a person would describe it."""

    secret: str
    expires_ms: int
    machines: dict[str, str] = attrs.field(factory=dict)  # machine -> member name
    revoked: bool = False
    seen_expired: bool = False  # somebody recorded it

    def dead(self, now_ms: int) -> bool:
        return self.revoked or self.seen_expired or now_ms >= self.expires_ms


@attrs.define(eq=False)
class Attempt:
    """An enrollment under way."""

    name: str
    machine: str
    secret: str
    asked: Any
    answered: bool | None = None
    decided: Any = None
    ideal: Any = None


@attrs.define(eq=False)
class Change:
    """An operator's change that was decided and not yet written."""

    name: str
    what: str
    token: Any
    minted: Minted | None = None


def machine_of(core: ModuleType) -> type[RuleBasedStateMachine]:
    class TokenMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.now_ms = 1_000_000
            self.stored: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
            self.model: dict[str, Minted] = {}
            self.attempts: list[Attempt] = []
            self.changes: list[Change] = []
            self.serial = 0
            self.mints: dict[str, list[str]] = {name: [] for name in NAMES}

        # ── the store ───────────────────────────────────────────────────────────────────────────────────────
        def read(self, name: str) -> Any:
            versions = self.stored[name]
            return core.Token.from_attributes(versions[-1], len(versions)) if versions else None

        def write(self, token: Any) -> bool:
            versions = self.stored[token.name]
            if token.version != len(versions):
                return False
            if versions:
                before, after = versions[-1], token.to_attributes()
                assert after["mintId"] != before["mintId"] or before["state"] != "revoked", (
                    "revoked came back"
                )
                again = before["state"] == "expired" and after["state"] in ("unused", "enrolled")
                assert after["mintId"] != before["mintId"] or not again, "expired came back"
            versions.append(token.to_attributes())
            return True

        # ── operators ───────────────────────────────────────────────────────────────────────────────────────
        @rule(which=PICK, duration_ms=st.sampled_from((1_000, 10_000, 100_000)))
        def decide_to_mint(self, which: int, duration_ms: int) -> None:
            name = NAMES[which % 2]
            self.serial += 1
            secret = f"secret-{self.serial}"
            token = core.mint(
                self.read(name),
                name=TokenName(name),
                now_ms=self.now_ms,
                duration_ms=duration_ms,
                vault_name="v",
                secret_key="k",
                max_enrollments=ALLOWANCE[name],
                mint_id=MintId(f"mint-{self.serial}"),
                secret_hash=sha256(secret.encode()).hexdigest(),
            )
            known = self.model.get(name)
            dead = known is None or known.dead(self.now_ms)
            assert isinstance(token, core.Denied) != dead, "a live name was minted, or a dead one was not"
            if dead:
                self.changes.append(Change(name, "mint", token, Minted(secret, self.now_ms + duration_ms)))

        @precondition(lambda self: self.model)
        @rule(which=PICK)
        def decide_to_revoke(self, which: int) -> None:
            name = sorted(self.model)[which % len(self.model)]
            token = core.revoke(self.read(name), self.now_ms)
            assert (token is None) == self.model[name].revoked
            if token is not None:
                self.changes.append(Change(name, "revoke", token))

        @precondition(lambda self: self.model)
        @rule(which=PICK, duration_ms=st.sampled_from((500, 50_000)))
        def decide_to_renew(self, which: int, duration_ms: int) -> None:
            name = sorted(self.model)[which % len(self.model)]
            known = self.model[name]
            token = core.renew(self.read(name), self.now_ms, duration_ms)
            lawful = not known.dead(self.now_ms) and self.now_ms + duration_ms >= known.expires_ms
            assert isinstance(token, core.Token) == lawful, "renewed what is dead, or made a life shorter"
            if lawful:
                self.changes.append(Change(name, "renew", token))

        @precondition(lambda self: self.model)
        @rule(which=PICK)
        def notice_the_end(self, which: int) -> None:
            name = sorted(self.model)[which % len(self.model)]
            token = core.expire(self.read(name), self.now_ms)
            known = self.model[name]
            due = not known.revoked and not known.seen_expired and self.now_ms >= known.expires_ms
            assert (token is not None) == due
            if token is not None:
                self.changes.append(Change(name, "expire", token))

        @precondition(lambda self: self.changes)
        @rule(which=PICK)
        def change_is_written(self, which: int) -> None:
            change = self.changes.pop(which % len(self.changes))
            if not self.write(change.token):
                return  # somebody was quicker; the operator's process reads and decides again, or gives up
            known = self.model.get(change.name)
            if change.minted is not None:
                mint = change.token.mint_id
                assert mint not in self.mints[change.name], "a mint id came twice"
                self.mints[change.name].append(mint)
                self.model[change.name] = change.minted
            elif known is not None and change.what == "revoke":
                known.revoked = True
            elif known is not None and change.what == "expire":
                known.seen_expired = True
            elif known is not None:
                known.expires_ms = change.token.expires_ms

        # ── enrollments ─────────────────────────────────────────────────────────────────────────────────────
        @rule(which=PICK, machine=st.sampled_from(MACHINES), stale=st.booleans(), wrong=st.integers(0, 9))
        def enroll(self, which: int, machine: str, stale: bool, wrong: int) -> None:
            name = (*NAMES, "unknown")[which % 3]
            known = self.model.get(name)
            secret = known.secret if known is not None and wrong else "guess"
            if stale and self.attempts and self.attempts[-1].name == name:
                secret = self.attempts[-1].secret
            asked = core.challenge(self.read(name) if name in self.stored else None)
            self.attempts.append(Attempt(name, machine, secret, asked))

        def pending(self, *, answered: bool) -> list[Attempt]:
            return [
                one for one in self.attempts if (one.answered is not None) is answered and one.decided is None
            ]

        @precondition(lambda self: self.pending(answered=False))
        @rule(which=PICK)
        def verification_answers(self, which: int) -> None:
            attempt = self.pending(answered=False)[which % len(self.pending(answered=False))]
            attempt.answered = attempt.asked.secret_hash == sha256(attempt.secret.encode()).hexdigest()

        @precondition(lambda self: self.pending(answered=True))
        @rule(which=PICK)
        def decide(self, which: int) -> None:
            attempt = self.pending(answered=True)[which % len(self.pending(answered=True))]
            token = self.read(attempt.name) if attempt.name in self.stored else None
            attempt.decided = core.redeem(
                attempt.name, token, MachineId(attempt.machine), self.now_ms, attempt.asked, attempt.answered
            )
            attempt.ideal = self.ideally(attempt)
            if isinstance(attempt.decided, core.Refuse):
                assert attempt.decided.code is attempt.ideal, f"{attempt.decided.code}, not {attempt.ideal}"
                assert KEYWORDS[attempt.ideal] in attempt.decided.message
                due = attempt.ideal is RefusalCode.EXPIRED and not self.model[attempt.name].seen_expired
                assert (attempt.decided.token is not None) == due, "the end must be recorded by who sees it"
                if attempt.decided.token is None:
                    self.attempts.remove(attempt)
            else:
                assert attempt.ideal is None, f"admitted, not {attempt.ideal}"
                if not attempt.decided.wrote:
                    assert self.model[attempt.name].machines[attempt.machine] == attempt.decided.member
                    self.attempts.remove(attempt)

        def ideally(self, attempt: Attempt) -> RefusalCode | None:
            """What a person would say, knowing everything."""
            known = self.model.get(attempt.name)
            if known is None or attempt.secret != known.secret:
                return RefusalCode.DOES_NOT_MATCH
            if known.revoked:
                return RefusalCode.REVOKED
            if known.dead(self.now_ms):
                return RefusalCode.EXPIRED
            if attempt.machine in known.machines:
                return None
            if len(known.machines) >= ALLOWANCE[attempt.name]:
                return RefusalCode.ALREADY_BOUND
            return None

        @precondition(lambda self: any(one.decided is not None for one in self.attempts))
        @rule(which=PICK)
        def decision_is_written(self, which: int) -> None:
            decided = [one for one in self.attempts if one.decided is not None]
            attempt = decided[which % len(decided)]
            token = attempt.decided.token
            if not self.write(token):
                attempt.decided = None  # compare-and-swap lost: decide again on what is there now
                return
            self.attempts.remove(attempt)
            known = self.model[attempt.name]
            if isinstance(attempt.decided, core.Refuse):
                known.seen_expired = True
                return
            assert not known.revoked and not known.seen_expired, "admitted after the end"
            assert attempt.decided.member not in known.machines.values(), "two machines with one name"
            known.machines[attempt.machine] = attempt.decided.member
            assert len(known.machines) <= ALLOWANCE[attempt.name], "more machines than allowed"
            plain = attempt.decided.member == attempt.name
            assert plain == (attempt.name == "single")

        # ── the world ───────────────────────────────────────────────────────────────────────────────────────
        @rule(by_ms=st.sampled_from((1, 500, 5_000, 200_000)))
        def clock_goes_on(self, by_ms: int) -> None:
            self.now_ms += by_ms

        @rule(by_ms=st.sampled_from((400, 4_000)))
        def clock_steps_back(self, by_ms: int) -> None:
            self.now_ms -= by_ms

        @rule(seed=st.integers(0, 2**64))
        def life(self, seed: int) -> None:
            """A hundred of the things above, the common ones more often."""
            dice = random.Random(seed)
            for what in dice.choices(LIFE, LIFE_WEIGHTS, k=100):
                self.live(what, dice)
                self.the_record_says_what_the_model_says()

        def live(self, what: str, dice: random.Random) -> None:
            pick = dice.randrange(6)
            match what:
                case "enroll":
                    self.enroll(pick, dice.choice(MACHINES), dice.random() < 0.2, dice.randrange(10))
                case "verify" if self.pending(answered=False):
                    self.verification_answers(pick)
                case "decide" if self.pending(answered=True):
                    self.decide(pick)
                case "settle" if any(one.decided is not None for one in self.attempts):
                    self.decision_is_written(pick)
                case "mint":
                    self.decide_to_mint(pick, dice.choice((1_000, 10_000, 100_000)))
                case "write" if self.changes:
                    self.change_is_written(pick)
                case "revoke" if self.model:
                    self.decide_to_revoke(pick)
                case "renew" if self.model:
                    self.decide_to_renew(pick, dice.choice((500, 50_000)))
                case "notice" if self.model:
                    self.notice_the_end(pick)
                case "later":
                    self.clock_goes_on(dice.choice((1, 500, 5_000, 200_000)))
                case "back":
                    self.clock_steps_back(dice.choice((400, 4_000)))
                case "crash":
                    self.crash(dice.randrange(6))

        @rule(luck=st.integers(0, 5))
        def crash(self, luck: int) -> None:
            """What was not written is gone; what was written is read again."""
            if luck == 3:
                self.attempts.clear()
                self.changes.clear()

        @invariant()
        def the_record_says_what_the_model_says(self) -> None:
            for name, known in self.model.items():
                token = self.read(name)
                assert {one.machine_id: one.member for one in token.bindings} == known.machines
                state = core.effective_state(token, self.now_ms).value
                live = "enrolled" if known.machines else "unused"
                dead = "revoked" if known.revoked else "expired"
                assert state == (dead if known.dead(self.now_ms) else live)

    return TokenMachine


KEYWORDS = {
    RefusalCode.DOES_NOT_MATCH: "does not match",
    RefusalCode.REVOKED: "revoked",
    RefusalCode.EXPIRED: "expired",
    RefusalCode.ALREADY_BOUND: "already bound",
}


def storm_of(core: ModuleType) -> type[RuleBasedStateMachine]:
    """Long lives only: fewer decisions for hypothesis, many more happenings a second."""
    machine: Any = machine_of(core)

    class Storm(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.machine = machine()

        @rule(seed=st.integers(0, 2**64))
        def life(self, seed: int) -> None:
            self.machine.life(seed)

    return Storm


def profile(examples: int, steps: int = 60, *, find_only: bool = False) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,) if find_only else (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def test_the_token_machine_keeps_its_rules() -> None:
    run_state_machine_as_test(machine_of(real), settings=profile(60, 40))


def test_every_row_of_the_table_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[object, object]] = set()
    change, minted = real._change, real.mint

    def counted(token: real.Token, what: real.TokenChange, **changes: Any) -> real.Token:
        reached.add((token.state, what))
        return change(token, what, **changes)

    def counted_mint(previous: real.Token | None, **rest: Any) -> Any:
        token = minted(previous, **rest)
        if isinstance(token, real.Token):
            state = None if previous is None else real.effective_state(previous, rest["now_ms"])
            reached.add((state, real.TokenChange.MINTED))
        return token

    monkeypatch.setattr(real, "_change", counted)
    monkeypatch.setattr(real, "mint", counted_mint)
    run_state_machine_as_test(storm_of(real), settings=profile(60, 3))
    assert reached == set(real.TRANSITIONS)


BUGS = {
    "the secret is not checked": ("if not secret_ok or token is None", "if token is None"),
    "an answer about another mint counts": ("or asked.mint_id != token.mint_id:", "or False:"),
    "revoked is not checked": (
        "    if token.state is TokenState.REVOKED:\n        return Refuse(",
        "    if False:\n        return Refuse(",
    ),
    "expiry is not checked": (
        "    if effective_state(token, now_ms) is TokenState.EXPIRED:\n        return Refuse(",
        "    if False:\n        return Refuse(",
    ),
    "only the recorded state counts": (
        "    if token.state in LIVE and now_ms >= token.expires_ms:\n        return TokenState.EXPIRED\n",
        "",
    ),
    "the end is not recorded": ("            expire(token, now_ms),\n", "            None,\n"),
    "one machine too many": (
        "len(self.bindings) < self.max_enrollments",
        "len(self.bindings) <= self.max_enrollments",
    ),
    "a known machine needs a free place": (
        "    if bound is not None:\n        return Admit(token, bound.member, wrote=False)\n",
        "    if bound is not None and token.allowance_left:\n        return Admit(token, bound.member, wrote=False)\n",
    ),
    "compare-and-swap is dropped": ("    version: int = 0  #", "    version: Any = attrs.field(default=0, converter=lambda _: _Any())  #"),
    "a new mint keeps the old machines": (
        "        version=0 if previous is None else previous.version,\n",
        "        version=0 if previous is None else previous.version,\n        bindings=() if previous is None else previous.bindings,\n",
    ),
    "a live name can be minted": ("    if (state, TokenChange.MINTED) not in TRANSITIONS:", "    if False:"),
    "a renewal revives": ("    if (state, TokenChange.RENEWED) not in TRANSITIONS:", "    if token.state is TokenState.REVOKED:"),
    "a renewal may shorten": ("    if now_ms + duration_ms < token.expires_ms:", "    if False:"),
    "members of a fleet share a name": ("    if not token.is_fleet:\n        return WorkerName", "    if True:\n        return WorkerName"),
    "the order is revoked, then secret": (
        "    if not secret_ok or token is None",
        "    if token is not None and token.state is TokenState.REVOKED:\n"
        "        return Refuse(RefusalCode.REVOKED, 'revoked', '')\n    if not secret_ok or token is None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    before, after = BUGS[bug]
    core = planted(
        (real,),
        before,
        after,
        extra="class _Any(int):\n    __ne__ = lambda *_: False\n    __hash__ = int.__hash__\n",
    )
    with pytest.raises((AssertionError, Bug, KeyError, TypeError)):
        run_state_machine_as_test(storm_of(core), settings=profile(100, 3, find_only=True))

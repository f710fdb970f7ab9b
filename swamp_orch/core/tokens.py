"""The enrollment token machine: who is let in, for how long, and what a refusal says.

Rules that hold here:

1. Legality of a change of state is `TRANSITIONS`, nothing else.
2. The order of checks at redemption is fixed: secret, revoked, expired, binding or allowance. Only who holds
   the secret learns anything but "does not match", and an unknown name gets the very same words.
3. Verifying a secret is slow and happens elsewhere. What was verified is a `Challenge` (which mint, which
   hash); the decision is taken on the token *as it is when the answer returns*, and an answer about another
   mint decides nothing.
4. A value remembers the version of the record it was read from. Whoever writes it back must expect exactly
   that version, so two processes can never both win; the loser reads again and decides again.
5. Whoever first sees that the lifetime is over gets the token with state `expired` to write: a clock stepping
   back afterwards does not revive it.

Deliberately unknown here: argon2, vaults, the store, sockets, the clock, randomness.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

import attrs

from swamp_orch.store.bookkeeping import from_iso, iso
from swamp_proto.errors import Bug, RefusalCode
from swamp_proto.ids import NAME_LENGTH_MAX, MachineId, MintId, TokenName, WorkerName, is_name

UNLIMITED: Final = "unlimited"
MEMBER_DIGITS: Final = 8  # hex digits of sha256(machine id) in a fleet member's name
FLEET_LABEL: Final = "fleet"
WARN_FRACTION: Final = 0.1  # of the lifetime left: the first warning
WARN_LAST_MS: Final = 60_000


class TokenState(StrEnum):
    UNUSED = "unused"
    ENROLLED = "enrolled"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TokenChange(StrEnum):
    MINTED = "minted"
    REDEEMED = "redeemed"
    RENEWED = "renewed"
    EXPIRED = "expired"
    REVOKED = "revoked"


TRANSITIONS: Final[Mapping[tuple[TokenState | None, TokenChange], TokenState]] = {
    (None, TokenChange.MINTED): TokenState.UNUSED,
    (TokenState.EXPIRED, TokenChange.MINTED): TokenState.UNUSED,
    (TokenState.REVOKED, TokenChange.MINTED): TokenState.UNUSED,
    (TokenState.UNUSED, TokenChange.REDEEMED): TokenState.ENROLLED,
    (TokenState.ENROLLED, TokenChange.REDEEMED): TokenState.ENROLLED,
    (TokenState.UNUSED, TokenChange.RENEWED): TokenState.UNUSED,
    (TokenState.ENROLLED, TokenChange.RENEWED): TokenState.ENROLLED,
    (TokenState.UNUSED, TokenChange.EXPIRED): TokenState.EXPIRED,
    (TokenState.ENROLLED, TokenChange.EXPIRED): TokenState.EXPIRED,
    (TokenState.UNUSED, TokenChange.REVOKED): TokenState.REVOKED,
    (TokenState.ENROLLED, TokenChange.REVOKED): TokenState.REVOKED,
    (TokenState.EXPIRED, TokenChange.REVOKED): TokenState.REVOKED,
}
"""(state, change) -> state. `None`: the name was never minted. Minting over a dead name takes a new mint
id.
"""

LIVE: Final = frozenset({TokenState.UNUSED, TokenState.ENROLLED})


@attrs.frozen
class Binding:
    """One machine that redeemed the token, and the pool name it has had ever since."""

    machine_id: MachineId
    enrolled_ms: int
    member: WorkerName


@attrs.frozen
class Token:
    """One minting of a token name, as its record says it."""

    name: TokenName
    state: TokenState
    created_ms: int
    expires_ms: int
    vault_name: str
    secret_key: str
    max_enrollments: int | None  # None = unlimited
    mint_id: MintId
    secret_hash: str = attrs.field(repr=False)
    bindings: tuple[Binding, ...] = ()
    revoked_ms: int | None = None
    version: int = 0  # of the record this was read from (0: none yet); what a write must expect

    @property
    def is_fleet(self) -> bool:
        return self.max_enrollments != 1

    @property
    def allowance_left(self) -> bool:
        return self.max_enrollments is None or len(self.bindings) < self.max_enrollments

    def binding(self, machine_id: MachineId) -> Binding | None:
        return next((bound for bound in self.bindings if bound.machine_id == machine_id), None)

    def to_attributes(self) -> dict[str, Any]:
        """The record's attributes, camelCase, wall instants as ISO 8601."""
        found: dict[str, Any] = {
            "name": self.name,
            "state": self.state.value,
            "createdAt": iso(self.created_ms),
            "expiresAt": iso(self.expires_ms),
            "vaultName": self.vault_name,
            "secretKey": self.secret_key,
            "maxEnrollments": UNLIMITED if self.max_enrollments is None else self.max_enrollments,
            "mintId": self.mint_id,
            "secretHash": self.secret_hash,
            "bindings": [
                {"machineId": bound.machine_id, "enrolledAt": iso(bound.enrolled_ms), "member": bound.member}
                for bound in self.bindings
            ],
        }
        if self.revoked_ms is not None:
            found["revokedAt"] = iso(self.revoked_ms)
        return found

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], version: int = 0) -> "Token":
        """Read a record's attributes back. Raises KeyError, TypeError or ValueError on anything else."""
        allowance = attributes["maxEnrollments"]
        if allowance != UNLIMITED and (type(allowance) is not int or allowance < 1):
            raise ValueError(f"maxEnrollments is {allowance!r}")
        revoked = attributes.get("revokedAt")
        return cls(
            name=TokenName(attributes["name"]),
            state=TokenState(attributes["state"]),
            created_ms=from_iso(attributes["createdAt"]),
            expires_ms=from_iso(attributes["expiresAt"]),
            vault_name=attributes["vaultName"],
            secret_key=attributes["secretKey"],
            max_enrollments=None if allowance == UNLIMITED else allowance,
            mint_id=MintId(attributes["mintId"]),
            secret_hash=attributes["secretHash"],
            bindings=tuple(
                Binding(MachineId(row["machineId"]), from_iso(row["enrolledAt"]), WorkerName(row["member"]))
                for row in attributes["bindings"]
            ),
            revoked_ms=None if revoked is None else from_iso(revoked),
            version=version,
        )


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────
@attrs.frozen
class Challenge:
    """What a presented secret is verified against: a hash of one mint, or (both None) the dummy."""

    mint_id: MintId | None
    secret_hash: str | None = attrs.field(repr=False)


@attrs.frozen
class Admit:
    """Let in as `member`. With `wrote`, `token` must be stored (expecting `token.version`) before you
    speak.
    """

    token: Token
    member: WorkerName
    wrote: bool


@attrs.frozen
class Refuse:
    """Not let in. `token`, where there is one, is the expiry that was just seen, to be stored first."""

    code: RefusalCode
    message: str
    hint: str
    token: Token | None = None


@attrs.frozen
class Denied:
    """An operator's change that does not apply."""

    message: str
    hint: str


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────
def effective_state(token: Token, now_ms: int) -> TokenState:
    """The state to show and to act on: the recorded one, accounting for the clock."""
    if token.state in LIVE and now_ms >= token.expires_ms:
        return TokenState.EXPIRED
    return token.state


def mint_over(token: Token | None, mint_id: str, now_ms: int) -> RefusalCode | None:
    """Why what was admitted under `mint_id` must end, given the token of that name as it is now; None: it lives on."""
    if token is None or token.mint_id != mint_id or token.state is TokenState.REVOKED:
        return RefusalCode.REVOKED
    return RefusalCode.EXPIRED if effective_state(token, now_ms) is TokenState.EXPIRED else None


def split_token(text: str) -> tuple[TokenName, str] | None:
    """`<name>.<secret>` at the first dot; None when it does not have that form."""
    name, dot, secret = text.partition(".")
    if not dot or not secret or not is_name(name):
        return None
    return TokenName(name), secret


def warning_instants(token: Token) -> tuple[int, ...]:
    """When a connected worker is warned of the end, wall milliseconds, in order."""
    share = round((token.expires_ms - token.created_ms) * WARN_FRACTION)
    return tuple(sorted({token.expires_ms - share, token.expires_ms - min(WARN_LAST_MS, share)}))


def member_name(token: Token, machine_id: MachineId) -> WorkerName:
    """The pool name of a machine under this token: the token's own name, or `<token>-<8 hex>` in a fleet.

    Stable: it depends on the machine id alone, unless another member has it already; then more digits are
    taken.
    """
    if not token.is_fleet:
        return WorkerName(token.name)
    digest = sha256(machine_id.encode()).hexdigest()
    taken = {bound.member for bound in token.bindings if bound.machine_id != machine_id}
    for digits in range(MEMBER_DIGITS, len(digest) + 1, 4):
        name = WorkerName(f"{token.name}-{digest[:digits]}")
        if name not in taken:
            return name
    raise Bug(f"two machines of token {token.name} have the same digest")


def fleet_labels(token: Token, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a worker: its own, and `fleet=<token>` in a fleet unless it set that one itself."""
    found = dict(labels)
    if token.is_fleet:
        found.setdefault(FLEET_LABEL, token.name)
    return found


# ── redeeming ───────────────────────────────────────────────────────────────────────────────────────────────
def challenge(token: Token | None) -> Challenge:
    """What to verify a presented secret against. Always something: both paths cost one verification."""
    return Challenge(None, None) if token is None else Challenge(token.mint_id, token.secret_hash)


def redeem(
    name: str, token: Token | None, machine_id: MachineId, now_ms: int, asked: Challenge, secret_ok: bool
) -> Admit | Refuse:
    """Decide on an enrollment when the verification of `asked` answered `secret_ok`.

    `token` is the record as it is *now*, `now_ms` the wall clock *now*: verification was slow and the world
    went on. Called again with a fresh token after a lost compare-and-swap.
    """
    if not secret_ok or token is None or asked.mint_id != token.mint_id:
        return Refuse(
            RefusalCode.DOES_NOT_MATCH,
            f"Enrollment token '{name}' does not match",
            "Check for typos in the token value; create a new token if needed.",
        )
    if token.state is TokenState.REVOKED:
        return Refuse(
            RefusalCode.REVOKED,
            f"Enrollment token '{name}' has been revoked",
            f"Create a new token: {_create(name)}",
        )
    if effective_state(token, now_ms) is TokenState.EXPIRED:
        return Refuse(
            RefusalCode.EXPIRED,
            f"Enrollment token '{name}' has expired",
            f"Create a new token: {_create(name)}",
            expire(token, now_ms),
        )
    bound = token.binding(machine_id)
    if bound is not None:
        return Admit(token, bound.member, wrote=False)
    if not token.allowance_left:
        return _exhausted(token)
    member = member_name(token, machine_id)
    bindings = (*token.bindings, Binding(machine_id, now_ms, member))
    return Admit(_change(token, TokenChange.REDEEMED, bindings=bindings), member, wrote=True)


def _exhausted(token: Token) -> Refuse:
    if token.is_fleet:
        message = (
            f"Enrollment token '{token.name}': enrollment allowance exhausted, "
            f"{len(token.bindings)} of {token.max_enrollments} machines are already bound"
        )
        hint = "Create a token with a larger --max-enrollments, or restore the original --cache-dir."
    else:
        message = f"Enrollment token '{token.name}' is already bound to another machine"
        hint = "Use a new token, or restore the original --cache-dir."
    return Refuse(RefusalCode.ALREADY_BOUND, message, hint)


# ── operators' changes and the clock ────────────────────────────────────────────────────────────────────────
def mint(
    previous: Token | None,
    *,
    name: TokenName,
    now_ms: int,
    duration_ms: int,
    vault_name: str,
    secret_key: str,
    max_enrollments: int | None,
    mint_id: MintId,
    secret_hash: str,
) -> Token | Denied:
    """A new mint of `name`; over a revoked or expired one it starts afresh, with no bindings."""
    state = None if previous is None else effective_state(previous, now_ms)
    if (state, TokenChange.MINTED) not in TRANSITIONS:
        return Denied(
            f"Enrollment token '{name}' already exists — revoke it and mint it again, or pick another name",
            f"swamp worker token revoke {name}",
        )
    if previous is not None and previous.mint_id == mint_id:
        raise Bug(f"mint id {mint_id} was used before")
    return Token(
        name=name,
        state=TRANSITIONS[state, TokenChange.MINTED],
        created_ms=now_ms,
        expires_ms=now_ms + duration_ms,
        vault_name=vault_name,
        secret_key=secret_key,
        max_enrollments=max_enrollments,
        mint_id=mint_id,
        secret_hash=secret_hash,
        version=0 if previous is None else previous.version,
    )


def expire(token: Token, now_ms: int) -> Token | None:
    """The token as `expired` when its lifetime is over and that is not recorded yet; else None."""
    if token.state in LIVE and now_ms >= token.expires_ms:
        return _change(token, TokenChange.EXPIRED)
    return None


def revoke(token: Token, now_ms: int) -> Token | None:
    """The revoked token; None when it was revoked already."""
    if token.state is TokenState.REVOKED:
        return None
    return _change(token, TokenChange.REVOKED, revoked_ms=now_ms)


def renew(token: Token, now_ms: int, duration_ms: int) -> Token | Denied:
    """The token with a lifetime of `duration_ms` from now. Only a live one, and never a shorter one."""
    state = effective_state(token, now_ms)
    if (state, TokenChange.RENEWED) not in TRANSITIONS:
        end = "has expired" if state is TokenState.EXPIRED else "has been revoked"
        return Denied(f"Enrollment token '{token.name}' {end} and cannot be renewed", _create(token.name))
    if now_ms + duration_ms < token.expires_ms:
        return Denied(
            f"Enrollment token '{token.name}' already lives until {iso(token.expires_ms)}, longer than that",
            f"swamp worker token revoke {token.name}",
        )
    return _change(token, TokenChange.RENEWED, expires_ms=now_ms + duration_ms)


def name_problem(name: str, max_enrollments: int | None, others: Iterable[Token]) -> str | None:
    """Why `name` can not be minted, or None. Looks ahead at the names its machines would have in the pool."""
    if not is_name(name):
        return (
            f"'{name}' is not a valid token name: lower case letters, digits, '-' and '_', "
            f"starting with a letter or digit, at most {NAME_LENGTH_MAX} characters"
        )
    longest = NAME_LENGTH_MAX - MEMBER_DIGITS - 1
    if max_enrollments != 1 and len(name) > longest:
        return f"'{name}' is too long for a token of several machines: at most {longest} characters"
    for other in others:
        if other.name == name:
            continue
        if other.is_fleet and _could_be_member(name, other.name):
            return f"'{name}' could be the name of a machine of the fleet token '{other.name}'"
        if max_enrollments != 1 and _could_be_member(other.name, name):
            return f"a machine of '{name}' could get the name of the existing token '{other.name}'"
    return None


def _could_be_member(name: str, fleet: str) -> bool:
    rest = name.removeprefix(f"{fleet}-")
    return rest != name and re.fullmatch(rf"[0-9a-f]{{{MEMBER_DIGITS},}}", rest) is not None


def _change(token: Token, change: TokenChange, **changes: Any) -> Token:
    target = TRANSITIONS.get((token.state, change))
    if target is None:
        raise Bug(f"token {token.name}: {change.value} is not lawful in state {token.state.value}")
    return attrs.evolve(token, state=target, **changes)


def _create(name: str) -> str:
    return f"swamp worker token create {name} --duration <duration>"

"""The calls about enrollment tokens and the worker pool: `token.*` and `worker.list`.

Rules that hold here:

1. Every change of a token is a compare-and-swap with a retry: the orchestrator redeems while an operator
   revokes, in another process, and neither overwrites the other.
2. Minting and revoking hold a lock file, because they change two places, the record and the vault. The record
   is first: what the vault holds belongs to a mint that exists.
3. The plaintext of a secret is in the answer of `token.create` and in the vault, nowhere else. A dead token's
   secret is deleted from the vault.

Answers are the documented JSON (docs/reference/enrollment-tokens.md).
"""

import fcntl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import attrs

from swamp_orch.core.tokens import (
    UNLIMITED,
    Denied,
    Token,
    TokenState,
    effective_state,
    expire,
    mint,
    name_problem,
    renew,
    revoke,
)
from swamp_orch.definitions.repository import Repository
from swamp_orch.store.bookkeeping import iso
from swamp_orch.store.interface import Batch, Store
from swamp_orch.tokens.records import read_token, read_tokens, read_workers, token_record
from swamp_orch.tokens.workers import WorkerState, WorkerStatus
from swamp_proto.errors import AlreadyExists, Broken, Bug, Conflict, LocalError, NotFound, UsageError
from swamp_proto.ids import MintId, TokenName
from swamp_proto.limits import TOKEN_LIFETIME_S_MAX

ROUNDS_MAX = 1_000

Answer = TypeVar("Answer")


class Secrets(Protocol):
    """What is needed of one vault."""

    @property
    def name(self) -> str: ...

    def put(self, key: str, value: str, overwrite: bool) -> Any: ...

    def delete(self, key: str) -> Any: ...


class Vaults(Protocol):
    """What is needed of the configured vaults."""

    def choose(self, name: str | None, *, purpose: str = "") -> Secrets: ...


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class TokenService:
    """Thread-safe. `live` gives the connected workers as the running orchestrator knows them; without it
    there is none running, and no worker is connected whatever its record says."""

    def __init__(
        self,
        repository: Repository,
        store: Store,
        vaults: Vaults,
        *,
        clock: Callable[[], int] = wall_ms,
        live: Callable[[], Mapping[str, WorkerState]] | None = None,
    ) -> None:
        self._repository = repository
        self._store = store
        self._vaults = vaults
        self._clock = clock
        self._live = live

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "token.create": self._create,
            "token.list": self._list,
            "token.revoke": self._revoke,
            "token.renew": self._renew,
            "worker.list": self._workers,
        }

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────
    def _create(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        from swamp_orch.tokens.verification import Verifier, new_secret

        name = parameters["name"]
        duration_ms = _duration(parameters["durationMs"])
        allowance = _allowance(parameters.get("maxEnrollments"))
        problem = name_problem(name, allowance, ())
        if problem is not None:
            raise UsageError(problem)
        vault = self._vaults.choose(
            parameters.get("vault"), purpose="the token plaintext must be stored in a vault"
        )
        secret = new_secret()
        secret_hash = Verifier().hash(secret)
        key = f"worker-token-{name}"
        with self._two_places():
            problem = name_problem(name, allowance, read_tokens(self._store))
            if problem is not None:
                raise Conflict(problem, hint="pick another name")

            def minting(previous: Token | None) -> Token:
                token = mint(
                    previous,
                    name=TokenName(name),
                    now_ms=self._clock(),
                    duration_ms=duration_ms,
                    vault_name=vault.name,
                    secret_key=key,
                    max_enrollments=allowance,
                    mint_id=MintId(str(uuid.uuid4())),
                    secret_hash=secret_hash,
                )
                if isinstance(token, Denied):
                    raise AlreadyExists(token.message, hint=token.hint)
                return token

            token = self._change(name, minting)
            try:
                vault.put(key, f"{name}.{secret}", overwrite=True)
            except BaseException:
                # Nobody will ever see this secret: the mint must not stay usable, nor its name taken.
                self._change(
                    name, lambda now: now and now.mint_id == token.mint_id and revoke(now, self._clock())
                )
                raise
        return {
            "name": name,
            "token": f"{name}.{secret}",
            "expiresAt": iso(token.expires_ms),
            "maxEnrollments": _shown(token.max_enrollments),
            "vaultRef": {"vaultName": token.vault_name, "secretKey": token.secret_key},
        }

    def _list(self, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        now_ms = self._clock()
        return [_row(token, now_ms) for token in read_tokens(self._store)]

    def _revoke(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        name = parameters["name"]
        with self._two_places():
            changed = self._change(name, lambda token: revoke(_known(token, name), self._clock()))
            token = _known(changed or read_token(self._store, name), name)
            self._forget_secret(token)
        return {
            "name": name,
            "state": token.state.value,
            "revokedAt": iso(token.revoked_ms or 0),
            "alreadyRevoked": changed is None,
        }

    def _renew(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        name = parameters["name"]
        duration_ms = _duration(parameters["durationMs"])
        before: list[int] = []
        denied: list[Denied] = []

        def renewing(found: Token | None) -> Token | None:
            denied.clear()
            token = _known(found, name)
            renewed = renew(token, self._clock(), duration_ms)
            if isinstance(renewed, Denied):
                denied.append(renewed)
                return expire(token, self._clock())  # who sees the end first records it
            before[:] = [token.expires_ms]
            return renewed

        token = self._change(name, renewing)
        if denied:
            raise Conflict(denied[-1].message, hint=denied[-1].hint)
        return {"name": name, "expiresAt": iso(token.expires_ms), "previousExpiresAt": iso(before[0])}

    def expire_due(self) -> list[Token]:
        """Record the end of every token whose lifetime is over, delete its secret; answers those that ended
        now.

        The orchestrator calls this at start and on its ticks, so that a token ends while nobody redeems it.
        """
        ended = []
        for token in read_tokens(self._store):
            if expire(token, self._clock()) is None:
                continue
            with self._two_places():
                expired = self._change(token.name, lambda now: now and expire(now, self._clock()))
                if expired is not None:
                    self._forget_secret(expired)
                    ended.append(expired)
        return ended

    def _change(self, name: str, decide: "Callable[[Token | None], Token | Any]") -> Any:
        """Read, decide, write what was decided if anything; again when somebody else was quicker."""
        for _ in range(ROUNDS_MAX):
            token = decide(read_token(self._store, name))
            if not isinstance(token, Token):
                return None
            try:
                committed = self._store.commit(Batch(records=(token_record(token),)))
            except Conflict:
                continue
            return attrs.evolve(token, version=committed.records[0].version)
        raise Bug(f"token {name}: {ROUNDS_MAX} compare-and-swaps lost in a row")

    def _forget_secret(self, token: Token) -> None:
        """Delete a dead token's plaintext. A vault or key that is gone already is what was wanted."""
        try:
            self._vaults.choose(token.vault_name).delete(token.secret_key)
        except LocalError:
            return

    @contextmanager
    def _two_places(self) -> Iterator[None]:
        path = self._repository.state / "tokens.lock"
        try:
            lock = path.open("a")
        except OSError as error:
            raise Broken(
                f"{path} can not be written: {error.strerror}",
                hint=f"check the permissions of {self._repository.state}",
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # ── workers ─────────────────────────────────────────────────────────────────────────────────────────────
    def _workers(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        live = self._live() if self._live is not None else {}
        known = {worker.name: attrs.evolve(worker, connected=False) for worker in read_workers(self._store)}
        known.update(live)
        tokens = {token.name: token for token in read_tokens(self._store)}
        rows = [
            _worker_row(known[name], tokens.get(TokenName(known[name].token_name))) for name in sorted(known)
        ]
        shown = [
            row for row in rows if parameters.get("all") or row["status"] != WorkerStatus.DISCONNECTED.value
        ]
        answer: dict[str, Any] = {"workers": shown, "count": len(shown)}
        if len(shown) != len(rows):
            answer["filteredDisconnectedCount"] = len(rows) - len(shown)
        return answer


def _known(token: Token | None, name: str) -> Token:
    if token is None:
        raise NotFound(
            f"Enrollment token '{name}' not found. Use 'swamp worker token list' to see existing tokens.",
            hint="swamp worker token list",
        )
    return token


def _duration(duration_ms: int) -> int:
    if duration_ms <= 0:
        raise UsageError('Invalid --duration value "0": must be positive')
    if duration_ms > TOKEN_LIFETIME_S_MAX * 1000:
        raise UsageError("Invalid --duration value: a token lives at most 10 years")
    return duration_ms


def _allowance(value: object) -> int | None:
    """`n` or `"unlimited"`, as number or text; absent is 1."""
    if value is None:
        return 1
    if value == UNLIMITED:
        return None
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if type(number) is not int or number < 1:
        raise UsageError(
            f'Invalid --max-enrollments value "{value}": must be a positive integer or "unlimited"'
        )
    return number


def _shown(allowance: int | None) -> int | str:
    return UNLIMITED if allowance is None else allowance


def _row(token: Token, now_ms: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": token.name,
        "state": token.state.value,
        "effectiveState": effective_state(token, now_ms).value,
        "createdAt": iso(token.created_ms),
        "expiresAt": iso(token.expires_ms),
        "vaultName": token.vault_name,
        "secretKey": token.secret_key,
        "maxEnrollments": _shown(token.max_enrollments),
        "bindingCount": len(token.bindings),
        "bindings": [
            {"machineId": bound.machine_id, "enrolledAt": iso(bound.enrolled_ms), "worker": bound.member}
            for bound in token.bindings
        ],
        "boundMachine": _bound_machine(token),
    }
    if token.revoked_ms is not None:
        row["revokedAt"] = iso(token.revoked_ms)
    return row


def _bound_machine(token: Token) -> str | None:
    """The BOUND MACHINE column: the machine id, `n / max` for a fleet, None for nobody yet."""
    if token.is_fleet:
        return f"{len(token.bindings)} / {_shown(token.max_enrollments)}"
    return token.bindings[0].machine_id if token.bindings else None


def _worker_row(worker: WorkerState, token: Token | None) -> dict[str, Any]:
    current = token is not None and token.mint_id == worker.mint_id
    row: dict[str, Any] = {
        "name": worker.name,
        "status": worker.status.value,
        "labels": dict(worker.labels),
        "platform": worker.platform,
        "arch": worker.arch,
        "instanceUuid": worker.instance,
        "enrolledAt": iso(worker.enrolled_ms),
        "lastSeenAt": iso(worker.last_seen_ms),
        "capacity": worker.capacity,
        "activeDispatchIds": list(worker.active) if worker.connected else [],
        "tokenName": worker.token_name,
        "tokenState": _token_state(token, current),
        "tokenExpiresAt": iso(token.expires_ms if token is not None and current else worker.token_expires_ms),
        "swampVersion": worker.swamp_version,
        "host": worker.host,
        "pid": worker.pid,
    }
    if worker.draining:
        row["drainReason"] = worker.drain_reason
    if worker.unverified is not None:
        row["verifyFailureReason"] = worker.unverified
    if worker.stuck:
        row["stuckSlots"] = worker.stuck
    if worker.disconnected_ms is not None:
        row["disconnectedAt"] = iso(worker.disconnected_ms)
    return row


def _token_state(token: Token | None, current: bool) -> str | None:
    if token is None:
        return None
    return token.state.value if current else TokenState.REVOKED.value

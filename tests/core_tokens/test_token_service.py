"""token.* and worker.list: documented shapes, texts and refusals; two processes never overwrite each other."""

import threading
from pathlib import Path
from typing import Any

import attrs
import pytest

from swamp_orch.api.services.tokens import TokenService
from swamp_orch.core.tokens import Admit, Refuse
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.store.interface import Batch, Store
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store
from swamp_orch.tokens.records import read_token, token_record, worker_record
from swamp_orch.tokens.redemption import look, settle
from swamp_orch.tokens.verification import Verifier
from swamp_orch.tokens.workers import WorkerState
from swamp_orch.vaults.vault_set import VaultSet
from swamp_proto.errors import AlreadyExists, Conflict, NotFound, RefusalCode, UsageError
from swamp_proto.ids import MachineId

NOON = 1_781_519_657_833  # 2026-06-15T10:34:17.833Z
HOUR = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOON

    def __call__(self) -> int:
        return self.now_ms


class Place:
    """A repository with one vault, a store and the service."""

    def __init__(self, root: Path, store: Store | None = None) -> None:
        init(root)
        self.repository: Repository = find(root)
        self.vaults = VaultSet(self.repository)
        self.vaults.create("local_encryption", "sandbox-vault")
        self.clock = Clock()
        self.store = store or MemoryStore(self.clock)
        self.service = TokenService(self.repository, self.store, self.vaults, clock=self.clock)

    def call(self, name: str, /, **parameters: Any) -> Any:
        return self.service.handlers()[name](parameters)

    def create(self, name: str = "ci-runner", **rest: Any) -> dict[str, Any]:
        return self.call("token.create", name=name, durationMs=24 * HOUR, **rest)

    def enroll(self, text: str, machine: str) -> Admit | Refuse:
        name, _, secret = text.partition(".")
        asked = look(self.store, name)
        return settle(
            self.store, name, MachineId(machine), asked, Verifier().verify(asked, secret), self.clock
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "repo")


# ── the seeds' shapes ───────────────────────────────────────────────────────────────────────────────────────────────
def test_create_answers_name_token_expiry_and_where_it_is_kept(place: Place) -> None:
    made = place.create()
    name, _, secret = made["token"].partition(".")
    assert (name, len(secret)) == ("ci-runner", 64)
    del made["token"]
    assert made == {
        "name": "ci-runner",
        "expiresAt": "2026-06-16T10:34:17.833Z",
        "maxEnrollments": 1,
        "vaultRef": {"vaultName": "sandbox-vault", "secretKey": "worker-token-ci-runner"},
    }


def test_list_has_the_seven_fields_first_and_in_order(place: Place) -> None:
    place.create()
    (row,) = place.call("token.list")
    assert list(row.items())[:7] == [
        ("name", "ci-runner"),
        ("state", "unused"),
        ("effectiveState", "unused"),
        ("createdAt", "2026-06-15T10:34:17.833Z"),
        ("expiresAt", "2026-06-16T10:34:17.833Z"),
        ("vaultName", "sandbox-vault"),
        ("secretKey", "worker-token-ci-runner"),
    ]
    assert row["boundMachine"] is None


def test_list_shows_the_machine_and_the_state_by_the_clock(place: Place) -> None:
    made = place.create()
    assert isinstance(place.enroll(made["token"], "machine-1"), Admit)
    (row,) = place.call("token.list")
    assert (row["state"], row["effectiveState"], row["boundMachine"]) == ("enrolled", "enrolled", "machine-1")
    place.clock.now_ms += 25 * HOUR
    (row,) = place.call("token.list")
    assert (row["state"], row["effectiveState"]) == ("enrolled", "expired")


def test_a_fleet_shows_how_many_of_how_many(place: Place) -> None:
    made = place.create("fleet", maxEnrollments="3")
    place.create("endless", maxEnrollments="unlimited")
    first = place.enroll(made["token"], "machine-1")
    assert isinstance(first, Admit)
    assert first.member.startswith("fleet-")
    rows = {row["name"]: row for row in place.call("token.list")}
    assert rows["fleet"]["boundMachine"] == "1 / 3"
    assert rows["endless"]["boundMachine"] == "0 / unlimited"
    assert list(rows) == ["endless", "fleet"]


def test_revoke_answers_when_and_whether_it_was_already(place: Place) -> None:
    place.create()
    place.clock.now_ms += 1_000
    first = place.call("token.revoke", name="ci-runner")
    place.clock.now_ms += 1_000
    again = place.call("token.revoke", name="ci-runner")
    revoked = {"name": "ci-runner", "state": "revoked", "revokedAt": "2026-06-15T10:34:18.833Z"}
    assert first == {**revoked, "alreadyRevoked": False}
    assert again == {**revoked, "alreadyRevoked": True}


def test_the_plaintext_is_in_the_vault_while_the_token_lives_and_nowhere_else(
    place: Place, tmp_path: Path
) -> None:
    made = place.create()
    vault = place.vaults.choose(None)
    assert vault.get("worker-token-ci-runner") == made["token"]
    token = read_token(place.store, "ci-runner")
    assert token is not None
    secret = made["token"].partition(".")[2]
    assert secret not in str(token.to_attributes())
    assert secret not in repr(token)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
    place.call("token.revoke", name="ci-runner")
    assert vault.keys() == []


def test_renew_extends_a_live_token_only(place: Place) -> None:
    place.create()
    answer = place.call("token.renew", name="ci-runner", durationMs=48 * HOUR)
    assert answer == {
        "name": "ci-runner",
        "expiresAt": "2026-06-17T10:34:17.833Z",
        "previousExpiresAt": "2026-06-16T10:34:17.833Z",
    }
    with pytest.raises(Conflict, match="longer"):
        place.call("token.renew", name="ci-runner", durationMs=HOUR)
    place.clock.now_ms += 72 * HOUR
    with pytest.raises(Conflict, match="has expired"):
        place.call("token.renew", name="ci-runner", durationMs=HOUR)
    place.clock.now_ms -= 72 * HOUR
    (row,) = place.call("token.list")
    assert row["state"] == "expired", "who saw the end recorded it: a clock stepping back revives nothing"


# ── life and death ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_dead_name_can_be_minted_again_with_no_machines(place: Place) -> None:
    first = place.create()
    place.enroll(first["token"], "machine-1")
    with pytest.raises(AlreadyExists, match="already exists"):
        place.create()
    place.call("token.revoke", name="ci-runner")
    second = place.create()
    answer = place.enroll(first["token"], "machine-1")
    assert isinstance(answer, Refuse)
    assert answer.code is RefusalCode.DOES_NOT_MATCH
    assert isinstance(place.enroll(second["token"], "machine-2"), Admit)


@pytest.mark.parametrize(
    ("happening", "code", "words"),
    [
        ("wrong", RefusalCode.DOES_NOT_MATCH, "does not match"),
        ("unknown", RefusalCode.DOES_NOT_MATCH, "does not match"),
        ("revoked", RefusalCode.REVOKED, "revoked"),
        ("expired", RefusalCode.EXPIRED, "expired"),
        ("bound", RefusalCode.ALREADY_BOUND, "already bound to another machine"),
    ],
)
def test_refusals_say_the_troubleshooting_words(
    place: Place, happening: str, code: RefusalCode, words: str
) -> None:
    text = place.create("t")["token"]
    if happening == "wrong":
        text = "t." + "0" * 64
    elif happening == "unknown":
        text = "nobody." + "0" * 64
    elif happening == "revoked":
        place.call("token.revoke", name="t")
    elif happening == "expired":
        place.clock.now_ms += 25 * HOUR
    else:
        place.enroll(text, "other")
    answer = place.enroll(text, "machine")
    assert isinstance(answer, Refuse)
    assert answer.code is code
    assert words in answer.message
    wrong = place.enroll(text.partition(".")[0] + "." + "1" * 64, "machine")
    assert isinstance(wrong, Refuse)
    assert wrong.code is RefusalCode.DOES_NOT_MATCH, "only who holds the secret learns more"


def test_the_end_is_recorded_and_the_secret_deleted_without_anybody_enrolling(place: Place) -> None:
    place.create()
    place.create("other", vault="sandbox-vault")
    place.call("token.renew", name="other", durationMs=100 * HOUR)
    assert place.service.expire_due() == []
    place.clock.now_ms += 25 * HOUR
    assert [token.name for token in place.service.expire_due()] == ["ci-runner"]
    assert place.vaults.choose(None).keys() == ["worker-token-other"]
    assert place.service.expire_due() == []


def test_a_secret_that_can_not_be_kept_leaves_no_usable_token(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        name = "sandbox-vault"

        def put(self, key: str, value: str, overwrite: bool) -> bool:
            raise OSError("disk full")

    monkeypatch.setattr(place.vaults, "choose", lambda name, purpose="": Full())
    with pytest.raises(OSError, match="disk full"):
        place.create()
    monkeypatch.undo()
    token = read_token(place.store, "ci-runner")
    assert token is not None
    assert token.state.value == "revoked"
    place.create()


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["", "Upper", "a.b", "-a", "a" * 65, "a b", "ä"])
def test_improper_names_are_refused(place: Place, name: str) -> None:
    with pytest.raises(UsageError, match="not a valid token name"):
        place.create(name)


@pytest.mark.parametrize("value", [0, -1, "x", "", 1.5, True, "1e3", [], "²"])
def test_improper_allowances_are_refused(place: Place, value: object) -> None:
    with pytest.raises(UsageError, match='must be a positive integer or "unlimited"'):
        place.create(maxEnrollments=value)


def test_improper_lifetimes_are_refused(place: Place) -> None:
    for duration_ms in (0, -5, 11 * 365 * 24 * HOUR):
        with pytest.raises(UsageError, match="--duration"):
            place.call("token.create", name="t", durationMs=duration_ms)


def test_names_of_fleet_members_are_kept_free(place: Place) -> None:
    place.create("fleet", maxEnrollments=5)
    with pytest.raises(Conflict, match="fleet token 'fleet'"):
        place.create("fleet-0a1b2c3d")
    place.create("build-0a1b2c3d")
    with pytest.raises(Conflict, match="existing token"):
        place.create("build", maxEnrollments=2)
    with pytest.raises(UsageError, match="too long"):
        place.create("a" * 60, maxEnrollments=2)


def test_unknown_names_and_vaults_say_what_there_is(place: Place) -> None:
    with pytest.raises(NotFound, match="Enrollment token 'ghost' not found"):
        place.call("token.revoke", name="ghost")
    with pytest.raises(NotFound, match="sandbox-vault"):
        place.create(vault="nope")
    place.vaults.create("local_encryption", "second")
    with pytest.raises(UsageError, match=r"Multiple vaults are configured \(sandbox-vault, second\)"):
        place.create()


# ── two processes ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_revoke_is_never_overwritten_by_a_redemption(place: Place) -> None:
    """The orchestrator has read the token when the operator's process revokes it."""
    made = place.create()
    name, _, secret = made["token"].partition(".")
    asked = look(place.store, name)
    ok = Verifier().verify(asked, secret)
    place.call("token.revoke", name=name)
    answer = settle(place.store, name, MachineId("m"), asked, ok, place.clock)
    assert isinstance(answer, Refuse)
    assert answer.code is RefusalCode.REVOKED


def test_machines_racing_for_one_place(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    try:
        place = Place(tmp_path / "repo", store)
        made = place.create("fleet", maxEnrollments=3)
        answers: list[Admit | Refuse] = []
        threads = [
            threading.Thread(
                target=lambda number=number: answers.append(place.enroll(made["token"], f"m{number}"))
            )
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        admitted = [answer for answer in answers if isinstance(answer, Admit)]
        assert len(answers) == 8
        assert len(admitted) == 3
        assert len({answer.member for answer in admitted}) == 3
        token = read_token(store, "fleet")
        assert token is not None
        assert {bound.member for bound in token.bindings} == {answer.member for answer in admitted}
    finally:
        store.close()


def test_a_stale_value_can_not_be_written(place: Place) -> None:
    place.create()
    token = read_token(place.store, "ci-runner")
    assert token is not None
    place.call("token.renew", name="ci-runner", durationMs=48 * HOUR)
    with pytest.raises(Conflict):
        place.store.commit(Batch((token_record(token),)))


# ── workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def worker(name: str, **changes: Any) -> WorkerState:
    state = WorkerState(
        name=name, token_name=name, mint_id="mint", machine_id="machine", instance=f"i-{name}", boot_id="boot",
        host="host", pid=7, platform="linux", arch="x86_64", labels={"env": "ci"}, swamp_version="0.1.0",
        protocol_version=1, capacity=2, enrolled_ms=NOON, last_seen_ms=NOON, token_expires_ms=NOON + HOUR, link_epoch=1,
    )  # fmt: skip
    return attrs.evolve(state, **changes)


def test_an_empty_pool(place: Place) -> None:
    assert place.call("worker.list") == {"workers": [], "count": 0}


def test_without_an_orchestrator_nobody_is_connected_whatever_the_records_say(place: Place) -> None:
    place.store.commit(Batch((worker_record(worker("a")),)))
    assert place.call("worker.list") == {"workers": [], "count": 0, "filteredDisconnectedCount": 1}
    (row,) = place.call("worker.list", all=True)["workers"]
    assert row["status"] == "disconnected"


def test_the_pool_as_the_running_orchestrator_knows_it(place: Place) -> None:
    place.store.commit(Batch((worker_record(worker("gone", connected=False, disconnected_ms=NOON)),)))
    live = {
        "idle": worker("idle"),
        "busy": worker("busy", active=("d1",)),
        "drained": worker("drained", operator_drain=True, drain_reason="upgrade"),
        "odd": worker("odd", unverified="probe failed"),
    }
    service = TokenService(place.repository, place.store, place.vaults, clock=place.clock, live=lambda: live)
    answer = service.handlers()["worker.list"]({})
    assert [(row["name"], row["status"]) for row in answer["workers"]] == [
        ("busy", "busy"),
        ("drained", "draining"),
        ("idle", "idle"),
        ("odd", "unverified"),
    ]
    assert (answer["count"], answer["filteredDisconnectedCount"]) == (4, 1)
    busy = answer["workers"][0]
    assert list(busy)[:10] == [
        "name", "status", "labels", "platform", "arch", "instanceUuid", "enrolledAt", "lastSeenAt", "capacity",
        "activeDispatchIds",
    ]  # fmt: skip
    assert busy["activeDispatchIds"] == ["d1"]
    assert busy["tokenExpiresAt"] == "2026-06-15T11:34:17.833Z"
    assert answer["workers"][1]["drainReason"] == "upgrade"


@pytest.mark.parametrize(
    "state",
    [
        worker("a"),
        worker("a", connected=False, disconnected_ms=NOON, active=("x", "y"), stuck=1),
        worker("a", operator_drain=True, drain_reason="why", unverified="no"),
        worker("a", announced_drain=True, counter=4),
    ],
)
def test_a_worker_is_read_back_as_it_was_written(place: Place, state: WorkerState) -> None:
    assert WorkerState.from_attributes(state.to_attributes(), state.version) == state

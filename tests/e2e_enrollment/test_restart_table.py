"""The restart table of enrollment tokens, row by row, with real processes: an orchestrator, workers, a proxy that can fall silent.

Each function is one row; docs/reference/enrollment-tokens.md links to them by name.
"""

import json
import re
import signal
import subprocess
import sys

import pytest
from e2e_site import PROJECT, alive, until
from enrollment_site import EnrollmentSite
from weather import Weather

from swamp_proto.errors import ExitCode, RefusalCode
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.shell.voice import TROUBLE


def refused(running: object, code: RefusalCode, exit_code: ExitCode) -> str:
    """The worker ended for good: keyword, cause and fix on stderr, its own exit code. What it said there."""
    ended = running.end()  # type: ignore[attr-defined]
    assert ended.code == exit_code, (ended.code, ended.out, ended.err)
    keyword, cause, fix = TROUBLE[code]
    assert keyword in ended.err
    assert f"Cause: {cause}\nFix:   {fix}" in ended.err
    assert "Traceback" not in ended.err
    return str(ended.err)


# ── getting in ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_first_redemption_binds_the_machine(shared: EnrollmentSite) -> None:
    token = shared.mint("first")
    assert shared.token_row("first")["effectiveState"] == "unused"
    worker = shared.connect(token, shared.machine("first"), "--label", "env=ci", enrolled="first")
    row = shared.token_row("first")
    assert (row["state"], row["effectiveState"]) == ("enrolled", "enrolled")
    assert row["boundMachine"] == (shared.machine("first") / "machine-id").read_text().strip()
    assert token.partition(".")[2] not in json.dumps(row)
    pool = shared.worker_row("first")
    assert (pool["status"], pool["labels"], pool["pid"]) == ("idle", {"env": "ci"}, worker.pid)
    assert worker.interrupt().code == 0
    assert shared.worker_row("first")["status"] == "disconnected"


def test_another_machine_is_refused_for_good(shared: EnrollmentSite) -> None:
    token = shared.mint("bound")
    shared.connect(token, shared.machine("bound"), enrolled="bound").interrupt()
    said = refused(
        shared.connect(token, shared.machine("stranger")), RefusalCode.ALREADY_BOUND, ExitCode.ALREADY_BOUND
    )
    assert "Enrollment token 'bound' is already bound to another machine" in said
    as_json = shared.connect(token, shared.machine("stranger"), "--json").end()
    assert as_json.code == ExitCode.ALREADY_BOUND
    assert json.loads(as_json.err)["code"] == "already_bound"


def test_without_a_stable_cache_directory_a_restart_is_another_machine(shared: EnrollmentSite) -> None:
    token = shared.mint("homeless")
    worker = shared.connect(token, None, enrolled="homeless")
    worker.wait_for("Warning: no --cache-dir: .*different machine.*--cache-dir")
    worker.interrupt()
    refused(shared.connect(token, None), RefusalCode.ALREADY_BOUND, ExitCode.ALREADY_BOUND)


def test_wrong_secret_and_unknown_name_get_the_same_words(shared: EnrollmentSite) -> None:
    shared.mint("guarded")
    said = []
    for name in ("guarded", "no-such-name"):
        worker = shared.connect(f"{name}." + "0" * 64, shared.machine("guesser"))
        found = refused(worker, RefusalCode.DOES_NOT_MATCH, ExitCode.DOES_NOT_MATCH)
        said.append(found.replace(name, "NAME"))
    assert said[0] == said[1]
    assert shared.token_row("guarded")["state"] == "unused"


def test_a_malformed_token_is_refused_before_anything_is_dialled(shared: EnrollmentSite) -> None:
    ended = shared.connect("nodot", shared.machine("malformed")).end()
    assert ended.code == ExitCode.INVALID_TOKEN
    assert "must have the form <name>.<secret>" in ended.err
    assert "Connecting" not in ended.out


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ("version.SWAMP_VERSION = '99.9.9'", "the worker is swamp 99.9.9 (protocol 1)"),
        ("version.PROTOCOL_VERSION = 77", f"the worker is swamp {SWAMP_VERSION} (protocol 77)"),
    ],
    ids=["swamp version", "protocol version"],
)
def test_another_version_is_refused_and_both_are_named(
    shared: EnrollmentSite, patch: str, words: str
) -> None:
    token = shared.mint(f"version-{patch.partition(' ')[0][8:].lower()}")
    worker = shared.connect(token, shared.machine("version"), patch=patch)
    ended = worker.end()
    assert ended.code == ExitCode.PROTOCOL_MISMATCH
    assert words in ended.err
    assert f"the orchestrator is swamp {SWAMP_VERSION} (protocol {PROTOCOL_VERSION})" in ended.err


# ── coming back ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_socket_blip_is_unnoticed(shared: EnrollmentSite) -> None:
    worker = shared.connect(shared.mint("blip"), shared.machine("blip"), enrolled="blip")
    before = shared.worker_row("blip")
    gate = shared.gate("blip-step", "blip")
    shared.weather.cut()
    worker.wait_for("Disconnected")
    until(lambda: worker.said.count("Enrolled as blip") >= 2, "it is back")
    gate.open()
    gate.ended("succeeded")
    assert gate.beginnings == 1
    after = shared.worker_row("blip")
    assert (after["instanceUuid"], after["enrolledAt"]) == (before["instanceUuid"], before["enrolledAt"])
    assert worker.interrupt().code == 0


def test_a_restarted_process_is_the_same_member(shared: EnrollmentSite) -> None:
    """It reaped its predecessor and says so: the step that had not written is placed again at once, not after the grace."""
    token = shared.mint("phoenix")
    worker = shared.connect(token, shared.machine("phoenix"), enrolled="phoenix")
    gate = shared.gate("phoenix-step", "phoenix")
    worker.kill()
    again = shared.connect(token, shared.machine("phoenix"), enrolled="phoenix")
    until(lambda: gate.beginnings == 2, "the step begins again")
    (ended,) = [lease for lease in gate.leases() if lease["state"] != "active"]
    assert (ended["state"], ended["reason"]) == ("expired", "worker_restarted"), ended
    gate.open()
    gate.ended("succeeded")
    assert shared.worker_row("phoenix")["pid"] == again.pid
    assert again.interrupt().code == 0


def test_a_reboot_is_a_restart(shared: EnrollmentSite) -> None:
    token = shared.mint("reboot")
    worker = shared.connect(token, shared.machine("reboot"), enrolled="reboot")
    gate = shared.gate("reboot-step", "reboot")
    worker.kill()
    patch = "registry.boot_id = lambda: '0b007000-0000-4000-8000-000000000002'"
    again = shared.connect(token, shared.machine("reboot"), patch=patch, enrolled="reboot")
    until(lambda: gate.beginnings == 2, "the step begins again")
    gate.open()
    gate.ended("succeeded")
    assert again.interrupt().code == 0


def test_a_half_open_socket_does_not_lock_its_own_process_out(brief: EnrollmentSite) -> None:
    worker = brief.connect(brief.mint("silent"), brief.machine("silent"), enrolled="silent")
    gate = brief.gate("silent-step", "silent")
    brief.weather.silence()
    worker.wait_for("Disconnected: no heartbeat was answered")
    until(lambda: worker.said.count("Enrolled as silent") >= 2, "it is back")
    gate.open()
    gate.ended("succeeded")
    assert gate.beginnings == 1
    assert worker.interrupt().code == 0


def test_a_half_open_socket_does_not_lock_a_new_process_out(brief: EnrollmentSite) -> None:
    """The old link looks alive; probed, it is found dead, and the new process has proved that it reaped the old one."""
    token = brief.mint("buried")
    worker = brief.connect(token, brief.machine("buried"), enrolled="buried")
    gate = brief.gate("buried-step", "buried")
    brief.weather.silence()
    worker.kill()
    again = brief.connect(token, brief.machine("buried"), enrolled="buried")
    until(lambda: gate.beginnings == 2, "the step begins again")
    gate.open()
    gate.ended("succeeded")
    assert "Error:" not in again.said
    assert again.interrupt().code == 0


def test_without_proof_the_new_process_waits_until_the_old_one_must_be_dead(brief: EnrollmentSite) -> None:
    token = brief.mint("doubt")
    worker = brief.connect(token, brief.machine("doubt"), enrolled="doubt")
    gate = brief.gate("doubt-step", "doubt")
    copy = brief.copy_machine("doubt", "doubt-copy")
    door = Weather(brief.site.port)
    door.open.clear()
    again = brief.connect(token, copy, url=door.url)
    until(door.waiting.is_set, "it stands at the door")
    brief.weather.silence()
    worker.kill()
    door.open.set()
    again.wait_for(
        "Disconnected: identity_busy: an earlier process of worker 'doubt' may still run its steps"
    )
    assert gate.beginnings == 1
    until(lambda: "Enrolled as doubt" in again.said, "it is let in")
    until(lambda: gate.beginnings == 2, "the step begins again")
    gate.open()
    gate.ended("succeeded")
    assert again.interrupt().code == 0


def test_a_second_live_process_is_refused(shared: EnrollmentSite) -> None:
    token = shared.mint("twin")
    worker = shared.connect(token, shared.machine("twin"), enrolled="twin")
    second = shared.connect(token, shared.machine("twin")).end()
    assert second.code == ExitCode.FAILED
    assert f"is in use by pid {worker.pid}" in second.err
    copy = shared.copy_machine("twin", "twin-copy")
    said = refused(shared.connect(token, copy), RefusalCode.ALREADY_CONNECTED, ExitCode.ALREADY_CONNECTED)
    assert re.search(rf"\(already_connected\): host \S+, pid {worker.pid}, since 20\d\d-\S+Z", said)
    assert shared.worker_row("twin")["pid"] == worker.pid
    assert worker.interrupt().code == 0


def test_an_orchestrator_that_was_killed_finds_its_workers_again(own: EnrollmentSite) -> None:
    worker = own.connect(own.mint("loyal"), own.machine("loyal"), enrolled="loyal")
    gate = own.gate("loyal-step", "loyal")
    own.serve.kill()
    worker.wait_for(r"Reconnecting in \d+\.\ds")
    own.serve_again()
    until(lambda: worker.said.count("Enrolled as loyal") >= 2, "it is back")
    gate.open()
    gate.ended("succeeded")
    assert gate.beginnings == 1
    attempts = [int(n) for n in re.findall(r"\(attempt (\d+)\)", worker.said)]
    assert attempts == list(range(1, len(attempts) + 1))
    assert worker.interrupt().code == 0


# ── the end of a token ──────────────────────────────────────────────────────────────────────────────────────────────
def test_expiry_while_connected_is_a_hard_deadline_with_warnings_and_renew_moves_it(
    shared: EnrollmentSite,
) -> None:
    short, longer = shared.mint("mayfly"), shared.mint("renewed")
    worker = shared.connect(short, shared.machine("mayfly"))
    other = shared.connect(longer, shared.machine("renewed"))
    worker.wait_for("Enrolled as mayfly")
    other.wait_for("Enrolled as renewed")
    shared.call("token.renew", name="renewed", durationMs=7_200_000)
    gate = shared.gate("mayfly-step", "mayfly")
    shared.age("mayfly", left_s=50)
    worker.wait_for("Warning: token 'mayfly' expires in [45]. s.*swamp worker token renew mayfly")
    assert "Error:" not in worker.said
    shared.age("mayfly", left_s=0)
    refused(worker, RefusalCode.EXPIRED, ExitCode.EXPIRED)
    assert shared.token_row("mayfly")["state"] == "expired"
    refused(shared.connect(short, shared.machine("mayfly")), RefusalCode.EXPIRED, ExitCode.EXPIRED)
    (lease,) = gate.leases()
    assert (lease["state"], lease["reason"]) == ("expired", "token_expired")
    other.wait_for("token 'renewed' was renewed: it lives until")
    assert shared.worker_row("renewed")["status"] == "idle"
    assert other.interrupt().code == 0
    shared.call("run.cancel", runId=gate.run)


def test_expiry_while_the_orchestrator_is_down(own: EnrollmentSite) -> None:
    token = own.mint("overdue")
    worker = own.connect(token, own.machine("overdue"), enrolled="overdue")
    gate = own.gate("overdue-step", "overdue")
    own.serve.kill()
    own.age("overdue", left_s=0)
    own.serve_again()
    refused(worker, RefusalCode.EXPIRED, ExitCode.EXPIRED)
    until(lambda: own.token_row("overdue")["state"] == "expired", "its end is recorded")
    until(lambda: gate.leases()[0]["state"] == "expired", "its lease ends")
    assert gate.leases()[0]["reason"] == "token_expired"
    own.call("run.cancel", runId=gate.run)


def test_revoke_from_the_command_line_cuts_at_once(shared: EnrollmentSite) -> None:
    token = shared.mint("doomed")
    worker = shared.connect(token, shared.machine("doomed"), enrolled="doomed")
    gate = shared.gate("doomed-step", "doomed")
    pid = int(gate._began.read_text().split()[1])
    assert shared.site.ok("worker", "token", "revoke", "doomed").out.startswith("✓ Token doomed revoked.\n")
    refused(worker, RefusalCode.REVOKED, ExitCode.REVOKED)
    assert not alive(pid), "what it held was killed and reaped before it left"
    (lease,) = gate.leases()
    assert (lease["state"], lease["reason"]) == ("expired", "token_revoked")
    shared.call("run.cancel", runId=gate.run)


REVOKE_PAST_SERVE = """
import sys
from pathlib import Path
from swamp_orch.api.application import Application
from swamp_orch.definitions.repository import find
from swamp_orch.store.sqlite import open_store
repository = find(Path(sys.argv[1]))
store = open_store(repository.data)
Application(repository, store).call("token.revoke", {"name": sys.argv[2]})
store.close()
"""


def test_revoke_by_a_process_that_does_not_speak_to_serve_cuts_its_worker(
    shared: EnrollmentSite,
) -> None:
    token = shared.mint("backdoor")
    worker = shared.connect(token, shared.machine("backdoor"), enrolled="backdoor")
    subprocess.run(
        [sys.executable, "-c", REVOKE_PAST_SERVE, str(shared.site.root), "backdoor"],
        env={**shared.site.env, "PYTHONPATH": str(PROJECT)},
        check=True,
        timeout=90,
    )
    refused(worker, RefusalCode.REVOKED, ExitCode.REVOKED)


def test_a_dead_name_is_minted_again_and_the_old_secret_is_worth_nothing(shared: EnrollmentSite) -> None:
    old = shared.mint("again")
    worker = shared.connect(old, shared.machine("again"), enrolled="again")
    shared.call("token.revoke", name="again")
    new = shared.mint("again")
    ended = worker.end()
    assert ended.code in (ExitCode.REVOKED, ExitCode.DOES_NOT_MATCH), ended
    said = refused(
        shared.connect(old, shared.machine("again")), RefusalCode.DOES_NOT_MATCH, ExitCode.DOES_NOT_MATCH
    )
    assert "Enrollment token 'again' does not match" in said
    fresh = shared.connect(new, shared.machine("again-elsewhere"), enrolled="again")
    assert fresh.interrupt().code == 0


# ── fleets ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_fleet_token_has_members_with_stable_names(shared: EnrollmentSite) -> None:
    token = shared.mint("fleet", machines=2)
    names = []
    for machine in ("fleet-a", "fleet-b"):
        worker = shared.connect(token, shared.machine(machine))
        names.append(worker.wait_for(r"Enrolled as (fleet-[0-9a-f]{8})$")[1])
        assert shared.worker_row(names[-1])["labels"] == {"fleet": "fleet"}
        worker.interrupt()
    assert len(set(names)) == 2
    listed = shared.site.ok("worker", "token", "list").out
    assert re.search(r"^fleet +enrolled +\S+ +2 / 2$", listed, re.MULTILINE)
    said = refused(
        shared.connect(token, shared.machine("fleet-c")), RefusalCode.ALREADY_BOUND, ExitCode.ALREADY_BOUND
    )
    assert "allowance exhausted, 2 of 2 machines are already bound" in said
    again = shared.connect(token, shared.machine("fleet-a"), enrolled=names[0])
    assert again.interrupt().code == 0


# ── what does not last ──────────────────────────────────────────────────────────────────────────────────────────────
def test_nobody_there_is_retried_for_ever_and_without_reconnection_it_is_a_failure(
    shared: EnrollmentSite,
) -> None:
    token = shared.mint("patient")
    worker = shared.connect(token, shared.machine("patient"), url="ws://127.0.0.1:9")
    worker.wait_for(r"\(attempt 3\)")
    assert re.search(r"Disconnected: nobody answers at 127\.0\.0\.1:9: .*refused", worker.said)
    worker.wait_for(r"Warning: is the orchestrator running there\? start it with: swamp serve")
    worker.send(signal.SIGINT)
    assert worker.end().code == 0
    once = shared.connect(token, shared.machine("patient"), "--no-reconnect", url="ws://127.0.0.1:9").end()
    assert once.code == ExitCode.NOT_CONNECTED

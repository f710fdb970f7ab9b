"""The frames that the golden vectors are made of: at least one per message, made to look like real traffic.

Order matters: it is the order of the files in a listing, and of the byte examples in `docs/protocol.md`.
"""

from collections.abc import Iterator
from typing import Final

from swamp_proto.envelope import Cancel, Event, Failure, FailureBody, Frame, Request, Response
from swamp_proto.errors import RefusalCode
from swamp_proto.messages import capability as c
from swamp_proto.messages import dispatch as d
from swamp_proto.messages import enrollment as e

DISPATCH: Final = "0b9c1f6e-6f0e-4f0a-9a55-2f1f6c3f7a10"
OTHER_DISPATCH: Final = "5d0e1c9a-3c55-4b1e-8a2b-7d2c64b0e8f3"
RUN: Final = "c7c0a4b2-0d6d-4e0c-8a43-0a4f8b1d2e3f"
WORKFLOW: Final = "1c8f6a0e-52c4-4f3e-b9f8-6d1a7b2c3d4e"
MODEL: Final = "a4d0b6c2-8e1f-4a3b-9c5d-0e7f1a2b3c4d"
MACHINE: Final = "f3b1c2d4-e5f6-4789-8abc-def012345678"
BOOT: Final = "7e57ab1e-0000-4000-8000-00000000b007"
INSTANCE: Final = "11111111-2222-4333-8444-555555555555"
EARLIER: Final = "66666666-7777-4888-9999-aaaaaaaaaaaa"
ORCHESTRATOR: Final = "0f0e0d0c-0b0a-4908-8706-050403020100"
NOW_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z

ENROLL: Final = e.Enroll(
    protocol_version=1,
    swamp_version="0.1.0",
    token="remote-worker." + "5e" * 32,
    machine_id=MACHINE,
    boot_id=BOOT,
    instance=INSTANCE,
    counter=1,
    host="builder-7",
    pid=4711,
    platform="linux",
    arch="x86_64",
    labels={"gpu": "true", "site": "zürich"},
    capacity=2,
    draining=False,
    predecessor=None,
    held=(),
)
ENROLL_AGAIN: Final = e.Enroll(
    protocol_version=1,
    swamp_version="0.1.0",
    token="remote-worker." + "5e" * 32,
    machine_id=MACHINE,
    boot_id=BOOT,
    instance=INSTANCE,
    counter=2,
    host="builder-7",
    pid=4711,
    platform="linux",
    arch="x86_64",
    labels={},
    capacity=2,
    draining=True,
    predecessor=e.Predecessor(instance=EARLIER, boot_id=BOOT, reaped=True),
    held=(
        e.HeldDispatch(dispatch=DISPATCH, fence=3, phase=e.HeldPhase.RUNNING, last_line=128),
        e.HeldDispatch(dispatch=OTHER_DISPATCH, fence=1, phase=e.HeldPhase.FINISHED, last_line=0),
    ),
)
START: Final = d.Dispatch(
    dispatch=DISPATCH,
    fence=3,
    attempt=2,
    attempt_key="c7c0a4b2.hello.2",
    place=d.Place(run=RUN, workflow="remote-demo", workflow_id=WORKFLOW, job="main", step="hello"),
    model_type="command/shell",
    model_name="remote-echo",
    model_id=MODEL,
    model_version=1,
    model_tags={"team": "infra"},
    method="execute",
    program=None,
    global_arguments={},
    arguments={
        "run": 'echo "executed on a worker"',
        "timeout": 1500,
        "ratio": 0.5,
        "ignoreExitCode": False,
        "env": {"GREETING": "hello"},
        "list": [1, -1, None, [True]],
        "blob": b"\x00\xff",
    },
    environment={"LANG": "C.UTF-8", "AWS_REGION": "eu-central-1"},
    bindings={"SWAMP_VALUE_1": "it's data"},
    display='echo "executed on a worker"',
    secrets=("hunter2-hunter2",),
    timeout_s=90.0,
    credential="c1" * 32,
)
START_PROGRAM: Final = d.Dispatch(
    dispatch=OTHER_DISPATCH,
    fence=1,
    attempt=1,
    attempt_key="c7c0a4b2.probe.1",
    place=d.Place(run=RUN, workflow="inventory", workflow_id=WORKFLOW, job="main", step="probe"),
    model_type="@acme/inventory",
    model_name="hosts",
    model_id=MODEL,
    model_version=3,
    model_tags={},
    method="probe",
    program=d.Program(
        bundle="b5" * 32, entry="inventory.py:Inventory", checks=("reachable",), reports=("@acme/inventory",)
    ),
    global_arguments={"region": "eu"},
    arguments={"hosts": ["127.0.0.1"]},
    environment={},
    bindings={},
    display=None,
    secrets=(),
    timeout_s=None,
    credential="c2" * 32,
)
FINISHED: Final = d.Finished(
    dispatch=DISPATCH,
    fence=3,
    outcome=d.Outcome.SUCCEEDED,
    error=None,
    outputs=(
        d.Output.of(
            "result",
            "result",
            "resource",
            "application/json",
            b'{"exitCode":0,"stdout":"executed on a worker"}',
        ),
        d.Output.of("note", "note", "file", "text/plain", b"executed on a worker\n"),
        d.Output(
            spec="dump",
            name="dump",
            kind="file",
            content_type="application/octet-stream",
            tags={"host": "a"},
            staged=2,
            sha256="d1" * 32,
            size=5_000_000_000,
            content=b"",
        ),
    ),
    last_line=1,
    lines_lost=0,
    left=0,
    started_ms=NOW_MS,
    duration_ms=12,
)
FINISHED_BADLY: Final = d.Finished(
    dispatch=DISPATCH,
    fence=3,
    outcome=d.Outcome.TIMED_OUT,
    error="the step ran longer than 90 s",
    outputs=(),
    last_line=0,
    lines_lost=7,
    left=None,
    started_ms=NOW_MS,
    duration_ms=90_012,
)

VALID: Final[dict[str, Frame]] = {
    "worker.enroll.request": Request(1, ENROLL),
    "worker.enroll.request.again": Request(1, ENROLL_AGAIN),
    "worker.enroll.response": Response(
        1,
        e.Enrolled(
            worker="remote-worker",
            orchestrator=ORCHESTRATOR,
            link=1,
            session_credential="5c" * 32,
            session_expires_ms=NOW_MS + 900_000,
            token_expires_ms=NOW_MS + 86_400_000,
            grace_s=60.0,
            heartbeat_s=5.0,
            silence_s=15.0,
            verdicts=(),
        ),
        "worker.enroll",
    ),
    "worker.enroll.response.verdicts": Response(
        1,
        e.Enrolled(
            worker="fleet-1a2b3c4d",
            orchestrator=ORCHESTRATOR,
            link=9,
            session_credential="5c" * 32,
            session_expires_ms=NOW_MS + 900_000,
            token_expires_ms=NOW_MS + 86_400_000,
            grace_s=4.0,
            heartbeat_s=1 / 3,
            silence_s=1.0,
            verdicts=(
                e.HeldVerdict(dispatch=DISPATCH, verdict=e.Verdict.KEEP),
                e.HeldVerdict(dispatch=OTHER_DISPATCH, verdict=e.Verdict.DROP),
            ),
        ),
        "worker.enroll",
    ),
    "worker.session.refresh.request": Request(2, e.RefreshSession()),
    "worker.session.refresh.response": Response(
        2,
        e.SessionRefreshed(session_credential="5d" * 32, session_expires_ms=NOW_MS + 1_500_000),
        "worker.session.refresh",
    ),
    "worker.drain.request": Request(3, e.AnnounceDrain(draining=True, reason="signal SIGTERM")),
    "worker.drain.response": Response(3, e.DrainNoted(draining=True), "worker.drain"),
    "link.heartbeat.request": Request(4, e.Heartbeat(number=1)),
    "link.heartbeat.response": Response(4, e.HeartbeatAnswer(number=1), "link.heartbeat"),
    "link.farewell.event": Event(
        e.Farewell(code=RefusalCode.RESTARTING, message="the orchestrator is restarting", retry_after_s=2.5)
    ),
    "worker.notice.event": Event(e.Notice(level="warn", message="token 'remote-worker' expires in 1 minute")),
    "dispatch.start.request": Request(1, START),
    "dispatch.start.request.program": Request(2, START_PROGRAM),
    "dispatch.start.response": Response(1, d.Accepted(dispatch=DISPATCH), "dispatch.start"),
    "dispatch.log.event": Event(
        d.LogLines(
            dispatch=DISPATCH,
            fence=3,
            first=1,
            blocks=(
                d.LogBlock(stream=d.Stream.STDOUT, text="executed on a worker\nin two lines"),
                d.LogBlock(stream=d.Stream.STDERR, text=""),
            ),
        )
    ),
    "dispatch.log.noted.event": Event(d.LogNoted(dispatch=DISPATCH, through=3)),
    "dispatch.finished.request": Request(5, FINISHED),
    "dispatch.finished.request.failed": Request(6, FINISHED_BADLY),
    "dispatch.finished.response": Response(
        5, d.FinishNoted(dispatch=DISPATCH, accepted=True), "dispatch.finished"
    ),
    "dispatch.cancel.request": Request(
        2, d.CancelDispatch(dispatch=DISPATCH, fence=3, reason="the run was cancelled", term_s=10.0)
    ),
    "dispatch.cancel.response": Response(2, d.CancelNoted(dispatch=DISPATCH, known=True), "dispatch.cancel"),
    "dispatch.call.request": Request(
        7,
        c.Call(
            dispatch=OTHER_DISPATCH,
            fence=1,
            number=4,
            verb=c.Verb.LATEST,
            arguments={"model": "config", "name": "settings"},
        ),
    ),
    "dispatch.call.response": Response(
        7,
        c.CallAnswer(
            dispatch=OTHER_DISPATCH,
            number=4,
            code=None,
            message="",
            value={"found": True, "record": {"name": "settings", "version": 2}, "content": b'{"a":1}'},
        ),
        "dispatch.call",
    ),
    "dispatch.call.response.refused": Response(
        8,
        c.CallAnswer(
            dispatch=OTHER_DISPATCH,
            number=5,
            code=c.CallCode.FORBIDDEN,
            message="no expression of this step names the secret prod/api-key",
            value={},
        ),
        "dispatch.call",
    ),
    "cancel": Cancel(4),
    "cancel.large": Cancel(2**63 - 1),
}


def _refusals() -> Iterator[tuple[str, Frame]]:
    """A failure for every code, of the request it belongs to."""
    of_dispatch = {RefusalCode.BUSY, RefusalCode.DRAINING}
    of_finished = {RefusalCode.LEASE_ENDED, RefusalCode.UNKNOWN_DISPATCH}
    waits = {RefusalCode.IDENTITY_BUSY: 30.0, RefusalCode.OVERLOADED: 1.5, RefusalCode.RESTARTING: 2.5}
    for code in RefusalCode:
        name = "worker.enroll"
        if code in of_dispatch:
            name = "dispatch.start"
        if code in of_finished:
            name = "dispatch.finished"
        body = FailureBody(code, f"an example of {code.value}", waits.get(code))
        yield f"failure.{code.value}", Failure(1, name, body)


VALID.update(_refusals())

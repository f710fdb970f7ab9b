"""`Access` of a worker: capability calls over the control link, bytes over the data plane.

Rules that hold here:

- What is asked is checked before it leaves (the table of verbs, the size of a frame), and what comes is checked again.
- Numbers are the executor's; this module says a number as often as needed and never makes one up.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swamp_proto import codec, dataplane
from swamp_proto.capabilities import CallRefused, check_arguments, check_value
from swamp_proto.errors import RemoteError, Unsupported
from swamp_proto.limits import CONTROL_FRAME_MAX, KIB, MIB, WRITE_BODY_MAX
from swamp_proto.messages.capability import Call, CallCode, Verb, WriteBatch, Written
from swamp_proto.messages.dispatch import Dispatch, Output
from swamp_worker.execution.access import Sent
from swamp_worker.shell.calls import StepCalls
from swamp_worker.shell.dataplane import DataPlane

_FRAME_ROOM: Final = 4 * KIB  # of a call's frame, for everything but its arguments


class RemoteAccess:
    """Implements `execution.access.Access` for one worker."""

    def __init__(self, step_calls: StepCalls, plane: DataPlane) -> None:
        self._calls = step_calls
        self._plane = plane

    async def call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        given = dict(arguments)
        check_arguments(verb, given)
        try:
            size = len(codec.pack_value(given))
        except Unsupported as error:
            raise CallRefused(CallCode.INVALID, f"{verb.value}: {error.message}") from None
        if size > CONTROL_FRAME_MAX - _FRAME_ROOM:
            raise CallRefused(
                CallCode.TOO_LARGE,
                f"{verb.value}: its arguments are larger than {CONTROL_FRAME_MAX // MIB} MiB",
            )
        answer = await self._calls.ask(Call(dispatch.dispatch, dispatch.fence, number, verb, given))
        if answer.code is not None:
            raise CallRefused(answer.code, answer.message)
        try:
            check_value(verb, answer.value)
        except CallRefused as refused:
            raise CallRefused(CallCode.INTERNAL, f"the orchestrator's answer: {refused.message}") from None
        return answer.value

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        try:
            body = codec.encode_body(WriteBatch(records))
        except Unsupported as error:
            raise CallRefused(CallCode.INVALID, f"a write: {error.message}") from None
        if len(body) > WRITE_BODY_MAX:
            raise CallRefused(
                CallCode.TOO_LARGE,
                f"records of one write are larger than {WRITE_BODY_MAX // MIB} MiB together",
            )
        path = dataplane.write_path(dispatch.dispatch, number)
        answer = await self._plane.put(dispatch, path, body, dataplane.BODY_TYPE)
        try:
            written = codec.decode_body(answer, Written, WRITE_BODY_MAX)
        except RemoteError as error:
            raise CallRefused(
                CallCode.INTERNAL, f"the orchestrator's answer to a write: {error.message}"
            ) from None
        if len(written.records) != len(records):
            raise CallRefused(CallCode.INTERNAL, "the orchestrator answered for another number of records")
        return written

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        path = dataplane.upload_path(dispatch.dispatch, number)
        return await self._plane.upload(dispatch, path, file, sha256, sent)

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        await self._plane.download(dispatch, dataplane.record_path(record), into)

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        await self._plane.download(dispatch, dataplane.bundle_path(sha256), into, sha256)

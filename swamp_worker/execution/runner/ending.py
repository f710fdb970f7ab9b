"""What became of a runner, from what it said and how its process ended: outcome, error, outputs.

Rules that hold here:

- How the method ended is settled once it was said (`ended`), before the first report begins. What happens to the process after that
  (it dies, it never ends, it says what is no message) is the fault of a report, and changes nothing but that report. Only who has
  the step ended from outside, by a cancel or as its holder, ends all of it.
- Every report that was asked for leaves something: itself, or what stands for one that was not made, with the reason.
"""

from typing import Any

import attrs
import trio

from swamp_proto.capabilities import CallRefused
from swamp_proto.limits import COMPLETION_OUTPUTS_MAX, REPORT_S
from swamp_proto.messages.dispatch import Dispatch, Outcome, Output, Program
from swamp_worker.execution.course import Course, Host, signal_name
from swamp_worker.execution.interface import Control
from swamp_worker.execution.requests import Requests
from swamp_worker.sdk.report_forms import JSON, failed_form, json_name, tags_of


@attrs.define
class Said:
    """What a runner said of its end so far."""

    ended: dict[str, Any] | None = None  # how the method ended, where reports come after it
    reports: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    done: dict[str, Any] | None = None
    broken: str = ""  # what it sent that is no message

    def take(self, message: dict[str, Any]) -> bool:
        """Whether the message is one of these."""
        if message.get("done"):
            self.done = message
        elif message.get("ended"):
            self.ended = message
        elif "report" in message:
            self.reports[str(message["report"])] = message
        else:
            return False
        return True


async def outcome_of(
    said: Said,
    course: Course,
    requests: Requests,
    dispatch: Dispatch,
    program: Program,
    control: Control,
    host: Host,
) -> tuple[Outcome, str | None, tuple[Output, ...]]:
    """Outcome, error, outputs."""
    what = "Method" if dispatch.method else "Report"
    if said.broken and said.ended is None:
        return Outcome.FAILED, f"The {what.lower()} failed: {said.broken}", ()
    interrupted = course.interruption(what, dispatch.timeout_s or 0.0)
    late = interrupted is not None and interrupted[0] is Outcome.TIMED_OUT
    if interrupted is not None and not (late and said.ended is not None):
        return *interrupted, ()
    end = said.ended or said.done
    if end is None:
        return Outcome.FAILED, f"The {what.lower()}'s process {_death(course, host, what.lower())}", ()
    try:
        with trio.CancelScope() as scope:
            control.on_ask = scope.cancel
            if control.cancel_asked.is_set():
                scope.cancel()
            outputs = await requests.outputs(end["outputs"])
            if said.ended is not None:
                why = said.broken or (_LATE if late else f"its process {_death(course, host, 'report')}")
                outputs += await _reports(program.reports, said.reports, why, requests, outputs)
        if scope.cancelled_caught:
            outcome = Outcome.ABANDONED if control.abandon else Outcome.CANCELLED
            return outcome, f"Cancelled: {control.reason or 'asked to'}", ()
    except (CallRefused, OSError, KeyError, TypeError) as error:
        return Outcome.FAILED, f"The outputs of the {what.lower()} could not be stored: {error}", ()
    finally:
        control.on_ask = None
    if end["error"] is not None:
        return Outcome.FAILED, end["error"], outputs
    if end["cancelled"]:  # TERM from elsewhere: nobody here asked for it
        return Outcome.FAILED, f"The {what.lower()} was ended by a SIGTERM that swamp did not send", ()
    return Outcome.SUCCEEDED, None, outputs


_LATE = f"it did not end: reports have {REPORT_S:g} s after the method, and what is left of the step's time"


def _death(course: Course, host: Host, what: str) -> str:
    if course.signal:
        return f"was killed by {signal_name(course.signal)}{host.kill_cause(course.signal)}"
    return f"ended with code {course.exit_code} before the {what} did"


async def _reports(
    wanted: tuple[str, ...],
    made: dict[str, dict[str, Any]],
    why: str,
    requests: Requests,
    outputs: tuple[Output, ...],
) -> tuple[Output, ...]:
    """The records of all of `wanted`; `why` the first that is missing is so."""
    found: list[Output] = []
    missing = ""
    for name in wanted:
        message = made.get(name)
        if message is None:
            found.append(_failed(name, f"not made: the report {missing} came before it" if missing else why))
            missing = missing or name
        elif message.get("error"):
            found.append(_failed(name, str(message["error"])))
        else:
            room = COMPLETION_OUTPUTS_MAX - sum(len(each.content) for each in (*outputs, *found))
            try:
                found += await requests.outputs(message["outputs"], room)
            except (CallRefused, OSError, KeyError, TypeError) as error:
                found.append(_failed(name, f"it could not be stored: {error}"))
    return tuple(found)


def _failed(name: str, message: str) -> Output:
    content = failed_form(name, "method", message)
    return Output.of(name, json_name(name), "report", JSON, content, tags_of(name, "method", failed=True))

"""The course of one step in Python: arguments, pre-flight checks, the method, its follow-ups, its reports.

    build        the class is made, global arguments and arguments become their classes
    checks       those that were asked for, all of them; one error lists every failure, and nothing else runs
    method       and after it the follow-up actions, one after another, in the order they were asked for
    reports      also after a method that failed; what the method came to stands by then: a report that fails is stored as a failed one,
                 said in the log, and changes nothing else

Rules that hold here:

- Nothing an author's code raises gets out: it becomes the error of the `Performance`, one sentence with file and line, and its
  traceback (without our own frames) goes to the step's log.
- Who hears (`Hearer`) is told how the method ended before its first report begins, and of every report as it is made: a process that
  dies over a report takes nothing back.
- The reports of a run (`Order.run`) are made without a method; there, one that fails is the error.
- Where code runs and how its questions travel is the `House`'s business: a runner process, or the test harness.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import attrs

from swamp_proto.limits import FRAME_DEPTH_MAX
from swamp_worker.sdk.context import AsyncPort, Context, PlainContext, Port
from swamp_worker.sdk.conversations import Ask, Conversation, Situation, put_away, record_of
from swamp_worker.sdk.declarations import Declared, Method, Resource, declared
from swamp_worker.sdk.errors import (
    Cancelled,
    CheckFailed,
    DeclarationError,
    InvalidArguments,
    SdkError,
    StepFailed,
)
from swamp_worker.sdk.report_forms import JSON, MARKDOWN, failed_form, json_name, record_name, tags_of
from swamp_worker.sdk.shapes import encoded, from_json
from swamp_worker.sdk.values import Findings, Report, RunFindings, Stage

T = TypeVar("T")

_ERROR_MAX: Final = 2_000  # characters of an error's sentence
_OWN: Final = Path(__file__).resolve().parents[1]
_OWN_MODELS: Final = _OWN / "models"
_TRIO: Final = re.compile(r"[/\\](trio|outcome)[/\\][^/\\]*|[/\\]trio[/\\]_core[/\\]")


class House(Protocol):
    """Where method code runs. Each raises what the code raised, and `Cancelled` when the step was cancelled meanwhile."""

    def run_async(self, make: Callable[[AsyncPort], Any]) -> Any:
        """Run the coroutine that `make` gives, in trio."""
        ...

    def run_plain(self, make: Callable[[Port], Any]) -> Any: ...

    def pause(self, seconds: float) -> None: ...


@attrs.frozen
class Order:
    """What is to be done."""

    method: str
    arguments: Mapping[str, Any]
    global_arguments: Mapping[str, Any]
    checks: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    run: RunFindings | None = None  # what the reports are of, where there is no method


@attrs.define
class Performance:
    """How it went. `outputs` are records to store with the end of the step, as `conversations.record_of` makes them; `reports` the same,
    by report."""

    error: str | None = None
    cancelled: bool = False
    outputs: list[Ask] = attrs.field(factory=list)
    reports: dict[str, list[Ask]] = attrs.field(factory=dict)


class Hearer:
    """Who is told how it goes while it goes. This one does not listen."""

    def ended(self, found: Performance) -> None:
        """The method has ended so; its reports are still to be made."""

    def report(self, name: str, records: list[Ask]) -> None:
        """One is made, or failed."""


class _Over(Exception):
    """The step can not go on; the performance says why."""

    cause: BaseException | None = None


def perform(
    cls: type[Any], order: Order, situation: Situation, house: House, hearer: Hearer | None = None
) -> Performance:
    """Do it. Never raises for anything the author's code does."""
    actor = _Actor(cls, order, situation, house, hearer or Hearer())
    return actor.perform() if order.run is None else actor.report_on(order.run)


class _Actor:
    def __init__(
        self, cls: type[Any], order: Order, situation: Situation, house: House, hearer: Hearer
    ) -> None:
        said = declared(cls)
        assert said is not None
        self._cls = cls
        self._declared: Declared = said
        self._order = order
        self._situation = situation
        self._house = house
        self._hearer = hearer
        self._found = Performance()
        self._returned: dict[str, Ask] = {}
        self._instance: Any = None
        self._arguments: Any = None

    def perform(self) -> Performance:
        try:
            method = self._build()
            if method.mark.mutates:
                self._check(method)
            self._act(method)
        except _Over:
            pass
        if not self._found.cancelled:
            self._found.outputs += self._returned.values()
        if not self._found.cancelled and self._instance is not None and self._order.reports:
            self._hearer.ended(self._found)
            self._report()
        return self._found

    def report_on(self, run: RunFindings) -> Performance:
        self._situation.stage = Stage.REPORT
        try:
            self._instance = self._guard(self._cls)
            for name in self._order.reports:
                self._found.outputs += self._guard(self._made, name, run, "workflow")
        except _Over:
            pass
        return self._found

    # ── build ───────────────────────────────────────────────────────────────────────────────────────────────
    def _build(self) -> Method:
        method = self._declared.methods.get(self._order.method)
        if method is None:
            raise self._over(f"{self._declared.name} has no method {self._order.method!r}")
        asked = self._declared.global_arguments
        given = self._order.global_arguments
        try:
            self._situation.global_arguments = (
                from_json(asked, dict(given), "") if asked is not None else None
            )
        except InvalidArguments as error:
            raise self._over(
                f"The global arguments are not what {self._declared.name} takes: {error}"
            ) from None
        self._arguments = self._structured(method, self._order.arguments)
        self._instance = self._guard(self._cls)
        return method

    def _structured(self, method: Method, given: Mapping[str, Any]) -> Any:
        if method.arguments is None:
            if given:
                raise self._over(
                    f"{method.name} takes no arguments, but was given {', '.join(map(repr, given))}"
                )
            return None
        try:
            return from_json(method.arguments, dict(given), "")
        except InvalidArguments as error:
            raise self._over(f"The arguments are not what {method.name} takes: {error}") from None

    # ── checks, method, follow-ups ──────────────────────────────────────────────────────────────────────────
    def _check(self, method: Method) -> None:
        self._situation.stage = Stage.CHECK
        failures = []
        for name in self._order.checks:
            check = self._declared.checks.get(name)
            if check is None:
                raise self._over(f"{self._declared.name} has no pre-flight check {name!r}")
            applies_to = check.mark.applies_to
            if applies_to and method.name not in applies_to:
                continue
            try:
                self._run(check, self._arguments)
            except CheckFailed as error:
                failures.append(f"{name}: {error}")
            except Exception as error:  # a check that breaks has not passed
                self._tell(error)
                failures.append(f"{name}: {self._sentence(error)}")
            except Cancelled:
                raise self._cancelled() from None
        if failures:
            raise self._over(f"Pre-flight checks failed: {'; '.join(failures)}")

    def _act(self, method: Method) -> None:
        self._situation.stage = Stage.METHOD
        self._call(method, self._arguments)
        while self._situation.follow_ups:
            following = self._situation.follow_ups.pop(0)
            if following.after_s:
                self._guard(self._house.pause, following.after_s)
            method = self._declared.methods[following.method]
            arguments = self._structured(method, following.arguments)
            self._call(method, arguments)

    def _call(self, method: Method, arguments: Any) -> None:
        try:
            returned = self._guard(self._run, method, arguments)
        except _Over as over:
            if isinstance(over.cause, StepFailed) and over.cause.result is not None:
                self._keep(method, over.cause.result)
            raise
        self._keep(method, returned)

    def _keep(self, method: Method, returned: Any) -> None:
        """What a method returned, or failed with, becomes its declared output; the last one of a name counts."""
        spec = method.mark.returns
        if spec is None:
            if returned is not None:
                name = type(returned).__name__
                text = f"{method.name} returned {name}, which goes nowhere: declare it by @method(returns=…)"
                raise self._over(text)
            return
        schema = getattr(spec, "schema", None)
        try:
            content = encoded(returned, schema, f"what {method.name} returned is no {spec.name!r}")
        except InvalidArguments as error:
            raise self._over(str(error)) from None
        if isinstance(spec, Resource) and spec.hides:
            content = self._guard(self._house.run_plain, partial(_hold, put_away(spec, spec.name, content)))
        record = record_of(self._situation, spec.name, spec.name, "resource", spec.content_type, content)
        self._returned[spec.name] = record

    # ── reports ─────────────────────────────────────────────────────────────────────────────────────────────
    def _report(self) -> None:
        self._situation.stage = Stage.REPORT
        findings = Findings(
            method=self._order.method,
            succeeded=self._found.error is None,
            error=self._found.error or "",
            records=tuple(self._situation.written),
            outputs=tuple(record["name"] for record in self._found.outputs),
            follow_ups=self._situation.follow_ups_made,
        )
        for name in self._order.reports:
            try:
                records = self._made(name, findings, "method")
            except Cancelled:
                return
            except (
                BaseException
            ) as error:  # SystemExit and the like, too: it is said and stored as what it is
                self._tell(error)
                text = self._sentence(error)[:_ERROR_MAX]
                self._situation.say(f"swamp: the report {name} failed: {text}", True)
                records = [self._failed(name, text)]
            self._found.reports[name] = records
            self._hearer.report(name, records)

    def _made(self, name: str, findings: Findings | RunFindings, scope: str) -> list[Ask]:
        """The records of a report. Raises what the author's code raises, and `StepFailed` for what is no report."""
        found = self._declared.reports.get(name)
        if found is None or found.mark.scope != scope:
            raise StepFailed(f"{self._declared.name} has no report {name!r} of {scope} scope")
        made = self._run(found, findings)
        report = made if isinstance(made, Report) else Report(made)
        if not isinstance(report.markdown, str):
            raise StepFailed(f"the report {name} returns Markdown or a Report, not {type(made).__name__}")
        data = encoded(report.data, None, f"the data of the report {name}")
        forms = [
            (record_name(name), MARKDOWN, report.markdown.encode("utf-8", "backslashreplace")),
            (json_name(name), JSON, data),
        ]
        tags = tags_of(name, scope)
        return [
            record_of(self._situation, name, record, "report", content_type, content, tags)
            for record, content_type, content in forms
            if content
        ]

    def _failed(self, name: str, message: str) -> Ask:
        tags = tags_of(name, "method", failed=True)
        content = failed_form(name, "method", message)
        return record_of(self._situation, name, json_name(name), "report", JSON, content, tags)

    # ── calling ─────────────────────────────────────────────────────────────────────────────────────────────
    def _run(self, method: Method, arguments: Any) -> Any:
        function = getattr(self._instance, method.attribute)
        more = (arguments,) if method.takes_arguments else ()
        if inspect.iscoroutinefunction(function):
            return self._house.run_async(lambda port: function(Context(self._situation, port), *more))
        return self._house.run_plain(lambda port: function(PlainContext(self._situation, port), *more))

    def _guard(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it; what it raises ends the step."""
        try:
            return function(*arguments)
        except _Over:
            raise
        except Cancelled:
            raise self._cancelled() from None
        except BaseException as error:  # SystemExit and the like are the method's doing, too
            if not isinstance(_leaves(error)[0], StepFailed):
                self._tell(error)
            over = self._over(self._sentence(error))
            over.cause = _leaves(error)[0]
            raise over from None

    def _over(self, error: str) -> _Over:
        self._found.error = error[:_ERROR_MAX]
        return _Over()

    def _cancelled(self) -> _Over:
        self._found.cancelled = True
        return _Over()

    def _sentence(self, error: BaseException) -> str:
        return sentence(error, self._situation.folder)

    def _tell(self, error: BaseException) -> None:
        for line in story(error, self._situation.folder):
            self._situation.say(line, True)


def _hold(conversation: Conversation[T], port: Port) -> T:
    """Hold a conversation to its end."""
    try:
        question = next(conversation)
        while True:
            question = conversation.send(port.ask(question))
    except StopIteration as end:
        found: T = end.value
        return found


# ── what went wrong, for people ─────────────────────────────────────────────────────────────────────────────


def sentence(error: BaseException, folder: Path) -> str:
    """One sentence: what, and the last place in the author's code it came through."""
    leaves = _leaves(error)
    text = _what(leaves[0])
    place = _place(leaves[0], folder)
    more = f", and {len(leaves) - 1} more" if len(leaves) > 1 else ""
    return f"{text[:_ERROR_MAX]}{f' ({place})' if place else ''}{more}"


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors of a group, as a nursery raises it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ended by sys.exit({error.code!r})"
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception whose text can not be made
        text = ""
    if isinstance(error, StepFailed | DeclarationError) and text:
        return text
    name = type(error).__name__
    if isinstance(error, SdkError) and text:
        return text
    return f"{name}: {text}" if text else name


def _place(error: BaseException, folder: Path) -> str:
    frames = _own_frames(error.__traceback__, folder)
    if not frames:
        return ""
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def _own_frames(trace: Any, folder: Path) -> list[traceback.FrameSummary]:
    """Frames of the author's code and what it uses, without ours; files of the extension by their names in it."""
    found = []
    for frame in traceback.extract_tb(trace):
        path = Path(frame.filename)
        if (path.is_relative_to(_OWN) and not path.is_relative_to(_OWN_MODELS)) or _TRIO.search(
            frame.filename
        ):
            continue
        if frame.filename.startswith("<frozen importlib"):
            continue
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else frame.filename
        found.append(traceback.FrameSummary(name, frame.lineno, frame.name, line=frame.line))
    return found


def story(error: BaseException, folder: Path, depth: int = 0) -> list[str]:
    """A traceback without our own frames, line by line."""
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth < FRAME_DEPTH_MAX and not isinstance(cause, Cancelled):
        lines += story(cause, folder, depth + 1)
        lines += ["", "The above led to:", ""]
    frames = _own_frames(error.__traceback__, folder)
    if frames:
        lines.append("Traceback (most recent call last):")
        lines += [line for each in traceback.format_list(frames) for line in each.rstrip("\n").split("\n")]
    try:
        lines += [
            line for each in traceback.format_exception_only(error) for line in each.rstrip("\n").split("\n")
        ]
    except Exception:  # an exception whose text can not be made
        lines.append(type(error).__name__)
    if isinstance(error, BaseExceptionGroup) and depth < FRAME_DEPTH_MAX:
        for each in error.exceptions:
            lines += ["", *(f"  {line}" for line in story(each, folder, depth + 1))]
    return lines

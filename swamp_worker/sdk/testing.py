"""Trying a type without an orchestrator: a method in this process, its data in memory, and everything that came of it.

    from swamp_worker.sdk.testing import run_method

    def test_a_host_that_answers() -> None:
        run = run_method(Inventory, "probe", {"hosts": ["127.0.0.1:80"]}, secrets={"ops/token": "x"})
        assert run.error is None
        assert run.latest("127.0.0.1:80").json()["up"] is True

Arguments, checks, schemas, scopes, masking, follow-ups and reports go through the very code that a step goes through; what stands
behind it is `MemoryAccess`. Left out is what a process of its own brings: its environment, its directory as the working directory,
what is printed in the log (only what `context.log` says is), cancels and time-outs. Pauses before follow-ups are not waited for.
"""

import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from swamp_proto.capabilities import CallRefused
from swamp_proto.messages.capability import Verb
from swamp_proto.messages.dispatch import Dispatch, Output, Place, Program
from swamp_proto.redaction import Mask
from swamp_worker.execution.requests import Requests
from swamp_worker.sdk import values
from swamp_worker.sdk.context import AsyncPort, Port
from swamp_worker.sdk.conversations import Ask, Situation
from swamp_worker.sdk.declarations import Declared, declared
from swamp_worker.sdk.errors import DeclarationError, call_failed
from swamp_worker.sdk.memory import MemoryAccess, StoredRecord
from swamp_worker.sdk.performance import Order, perform
from swamp_worker.sdk.report_forms import record_name

__all__ = [
    "MemoryAccess",
    "MethodRun",
    "StoredRecord",
    "run_method",
    "run_method_async",
    "run_report",
    "run_report_async",
]


@attrs.frozen
class MethodRun:
    """What became of it."""

    error: str | None  # as the step's error would be, masked
    log: tuple[str, ...]  # what `context.log` and tracebacks said, masked
    outputs: Mapping[str, Output]  # what the end would store, by name: return values and reports
    records: tuple[StoredRecord, ...]  # what was written while it ran, in order
    calls: tuple[tuple[Verb, Mapping[str, Any]], ...]  # what was asked of the orchestrator
    follow_ups: int
    access: MemoryAccess

    @property
    def succeeded(self) -> bool:
        return self.error is None

    def latest(self, name: str) -> StoredRecord:
        """The newest version of a record of the model. Raises KeyError when there is none."""
        found = self.access.latest(name)
        if found is None:
            raise KeyError(name)
        return found

    def report(self, name: str) -> str:
        """The Markdown of a report. Raises KeyError where it is none, or failed."""
        return self.outputs[record_name(name)].content.decode()


def run_method(cls: type[Any], method: str, arguments: Any = None, **more: Any) -> MethodRun:
    """`run_method_async` for tests that are not in trio."""
    return trio.run(partial(run_method_async, cls, method, arguments, **more))


async def run_method_async(
    cls: type[Any],
    method: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    global_arguments: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    access: MemoryAccess | None = None,
    checks: tuple[str, ...] | None = None,
    reports: tuple[str, ...] | None = None,
    model: str = "model",
) -> MethodRun:
    """Run a method of `cls` with arguments as a definition would give them (JSON-shaped).

    `secrets` (`vault/key` -> value) exist, and are what the type may use as far as it declares them; `access` is for everything else
    that should be there. `checks` and `reports` default to all that the class declares.
    """
    said = declared(cls)
    if said is None:
        raise DeclarationError(f"{cls.__name__} is no type: put @model(…) above it")
    kind = said.model_type("test")
    if access is None:
        access = MemoryAccess(kind.outputs, model, said.reads, may_use=said.secrets)
    access.secrets.update(secrets or {})
    if checks is None:
        checks = tuple(said.checks)
    if reports is None:
        reports = tuple(name for name, each in said.reports.items() if each.mark.scope == "method")
    order = Order(method, arguments or {}, global_arguments or {}, checks, reports)
    return await _run(cls, said, _dispatch(kind.name, model, method), order, access)


def run_report(cls: type[Any], report: str, run: values.RunFindings, **more: Any) -> MethodRun:
    """`run_report_async` for tests that are not in trio."""
    return trio.run(partial(run_report_async, cls, report, run, **more))


async def run_report_async(
    cls: type[Any],
    report: str,
    run: values.RunFindings,
    *,
    secrets: Mapping[str, str] | None = None,
    access: MemoryAccess | None = None,
) -> MethodRun:
    """Make a report of workflow scope of a run. `access` holds what the run's steps left, as that of a method run before does."""
    said = declared(cls)
    if said is None:
        raise DeclarationError(f"{cls.__name__} is no type: put @model(…) above it")
    if access is None:
        access = MemoryAccess({}, run.workflow, said.reads, may_use=said.secrets)
    access.secrets.update(secrets or {})
    order = Order("", {}, {}, reports=(report,), run=run)
    return await _run(cls, said, _dispatch("workflow", run.workflow, ""), order, access)


async def _run(
    cls: type[Any], said: Declared, dispatch: Dispatch, order: Order, access: MemoryAccess
) -> MethodRun:
    before = len(access.records)
    directory = Path(tempfile.mkdtemp(prefix="swamp-test-"))
    mask = Mask()
    log: list[str] = []
    place = dispatch.place
    try:
        requests = Requests(dispatch, access, mask, directory)
        situation = Situation(
            declared=said,
            model=values.ModelInfo(dispatch.model_name, dispatch.model_id, dispatch.model_type, 1),
            place=values.Place(place.run, place.workflow, place.job, place.step),
            fence=1,
            attempt=1,
            attempt_key=dispatch.attempt_key,
            global_arguments=None,
            folder=_folder(cls),
            directory=directory,
            say=lambda line, _: log.append(line),
        )
        house = _TestHouse(requests)
        found = await trio.to_thread.run_sync(perform, cls, order, situation, house)
        made = [record for records in found.reports.values() for record in records]
        outputs = await requests.outputs([*found.outputs, *made])
    finally:
        await trio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
    return MethodRun(
        error=mask(found.error) if found.error is not None else None,
        log=tuple(mask(line) for line in log),
        outputs={each.name: each for each in outputs},
        records=tuple(access.records[before:]),
        calls=tuple(access.calls),
        follow_ups=situation.follow_ups_made,
        access=access,
    )


def _folder(cls: type[Any]) -> Path:
    """Where `extension_file` looks: the folder of the top-level package, or of the module."""
    module = sys.modules[cls.__module__]
    place = Path(module.__file__ or ".").resolve()
    return place.parents[cls.__module__.count(".")] if "." in cls.__module__ else place.parent


def _dispatch(model_type: str, model: str, method: str) -> Dispatch:
    return Dispatch(
        dispatch=str(uuid.uuid4()),
        fence=1,
        attempt=1,
        attempt_key="test",
        place=Place("run", "workflow", "workflow", "job", "step"),
        model_type=model_type,
        model_name=model,
        model_id=str(uuid.uuid4()),
        model_version=1,
        model_tags={},
        method=method,
        program=Program("", "test", (), ()),
        global_arguments={},
        arguments={},
        environment={},
        bindings={},
        display=None,
        secrets=(),
        timeout_s=None,
        credential="",
    )


class _TestHouse:
    """Implements `swamp_worker.sdk.performance.House`: it runs in a thread beside the loop that answers."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def run_async(self, make: Callable[[AsyncPort], Any]) -> Any:
        async def run() -> Any:
            return await make(_DirectPort(self._requests))

        return trio.from_thread.run(run)

    def run_plain(self, make: Callable[[Port], Any]) -> Any:
        return make(_ThreadPort(self._requests))

    def pause(self, seconds: float) -> None:
        """Not waited for."""


async def _answer(requests: Requests, question: Ask) -> dict[str, Any]:
    try:
        return await requests.answer(question)
    except CallRefused as refused:
        raise call_failed(refused.call_code.value, refused.message) from None


class _DirectPort:
    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def ask(self, question: Ask) -> dict[str, Any]:
        return await _answer(self._requests, question)


class _ThreadPort:
    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def ask(self, question: Ask) -> dict[str, Any]:
        return trio.from_thread.run(_answer, self._requests, question)

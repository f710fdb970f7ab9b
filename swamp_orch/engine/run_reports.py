"""The built-in reports of a run, as they are stored with its end.

Rules that hold here:

1. Nothing is stored before the run's end: the records join its transaction, so that a report costs no step anything and no commit.
2. One `@swamp/method-summary` per model and method: of the last execution. Only its newest five versions are kept anyway.
3. What an argument holds of secrets, of sensitive inputs, or under a name its schema calls sensitive is `***`.
4. A report that the definition or the workflow skips is not made. A workflow's word comes after the definition's.
5. What a summary says of an execution beside its step is in the record of the step's end (`Given`), masked: a process that takes the run
   over summarises what ended before it, too. What is long is not kept there.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.core.runplan import ENDS
from swamp_orch.definitions.inputs import mask_inputs
from swamp_orch.definitions.selection import is_chosen
from swamp_orch.engine.orders import Order
from swamp_orch.expressions.secret import mask_tree
from swamp_orch.reports import method_summary, workflow_summary
from swamp_orch.reports.report import WORKFLOW_TYPE, Report, report_records
from swamp_orch.store.interface import NewRecord, Owner, OwnerType
from swamp_proto.redaction import Mask

GIVEN_MAX: Final = 4_096  # bytes of a step's record

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Run, RunRequest
    from swamp_orch.engine.steps import StepState


def summary_of(request: "RunRequest", document: dict[str, Any]) -> Report | None:
    """A workflow run's summary; None for a run of one method, and where the workflow skips it."""
    if request.kind != "workflow" or not is_chosen(workflow_summary.NAME, request.workflow.reports):
        return None
    return workflow_summary.workflow_summary(document)


def summary_records(request: "RunRequest", report: Report) -> tuple[NewRecord, ...]:
    """A workflow's reports belong to the model type `workflow`."""
    workflow = request.workflow
    return report_records(
        report,
        model_type=WORKFLOW_TYPE,
        model_id=workflow.id,
        model_name=workflow.name,
        owner=Owner(
            OwnerType.WORKFLOW_STEP,
            ref=workflow.id,
            workflow_id=workflow.id,
            workflow=workflow.name,
            run=request.id,
        ),
        tags={**workflow.tags, **request.tags},
    )


@attrs.frozen(slots=False)
class Given:
    """What an execution was given, as it may be shown."""

    model_id: str
    tags: Mapping[str, str]  # of the model
    kinds: Mapping[str, str]  # of the type's outputs
    arguments: Mapping[str, Any]
    global_arguments: Mapping[str, Any]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """As a step's record holds it: long arguments by their size only."""
        found = {
            "modelId": self.model_id,
            "kinds": dict(self.kinds),
            "arguments": _shortened(self.arguments),
            "globalArguments": _shortened(self.global_arguments),
        }
        return found | ({"tags": dict(self.tags)} if self.tags else {})


def given_of(attributes: Mapping[str, Any]) -> Given:
    return Given(
        attributes["modelId"],
        attributes.get("tags", {}),
        attributes["kinds"],
        attributes["arguments"],
        attributes["globalArguments"],
    )


class Performed:
    """Of each model and method of a run, the execution that ended last."""

    def __init__(self, request: "RunRequest") -> None:
        self._request = request
        self._last: dict[tuple[str, str], StepState] = {}
        self._given: dict[tuple[str, str], tuple[Order, Given]] = {}  # of calls that are all the same

    def note(self, order: Order, state: "StepState") -> None:
        """Before the record of the step's end is made: what it was given is in there, unless nobody wants to know."""
        if is_chosen(method_summary.NAME, order.model.reports, self._request.workflow.reports):
            state.given = self._of(order)

    def _of(self, order: Order) -> Given:
        key = (order.model.id, order.method)
        known = self._given.get(key)
        if known is not None and known[0].arguments is order.arguments:
            return known[1]
        shared = _shown(order, order.model_type.global_arguments, order.global_arguments)
        kinds = {name: spec.kind for name, spec in order.model_type.outputs.items()}
        found = Given(order.model.id, order.model.tags, kinds, _shown_arguments(order), shared)
        self._given[key] = (order, found)
        return found

    def ended(self, state: "StepState") -> None:
        """A step has ended, in this process or in one before."""
        if state.given is not None and state.dispatch and state.status in ENDS:
            key = (state.given.model_id, state.method)
            self._last.pop(key, None)  # what ends last stands last
            self._last[key] = state

    def records(self, run: "Run") -> Iterator[NewRecord]:
        """The summaries."""
        for state in self._last.values():
            assert state.given is not None
            yield from _method_records(run, state.given, state)


def _method_records(run: "Run", given: Given, state: "StepState") -> tuple[NewRecord, ...]:
    origin = run.origin(state)
    document = state.document()
    document["dataArtifacts"] = [
        {**made, "kind": given.kinds.get(made["specName"], "report")} for made in document["dataArtifacts"]
    ]
    report = method_summary.method_summary(
        document,
        model_id=given.model_id,
        method_arguments=given.arguments,
        global_arguments=given.global_arguments,
    )
    return report_records(
        report,
        model_type=state.model_type,
        model_id=given.model_id,
        model_name=state.model,
        owner=Owner(
            OwnerType.WORKFLOW_STEP if origin.kind == "workflow" else OwnerType.MODEL_METHOD,
            ref=given.model_id,
            workflow_id=origin.workflow_id,
            workflow=origin.workflow,
            run=origin.run,
            job=origin.job,
            step=origin.step,
        ),
        tags={**given.tags, **origin.tags},
    )


def _shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {key: len(json.dumps(value)) for key, value in arguments.items()}
    most = GIVEN_MAX if sum(sizes.values()) <= GIVEN_MAX else GIVEN_MAX // max(16, len(sizes))
    return {key: value if sizes[key] <= most else f"({sizes[key]} bytes)" for key, value in arguments.items()}


def _shown_arguments(order: Order) -> dict[str, Any]:
    """As the author wrote them: shell text without the variables that stand for its expressions."""
    given = dict(order.arguments)
    if order.shell is not None:
        given.update((name, order.shell.display) for name in order.model_type.shell_arguments & given.keys())
    return _shown(order, order.model_type.methods[order.method].arguments, given)


def _shown(order: Order, schema: Any, values: Any) -> dict[str, Any]:
    found: dict[str, Any] = Mask(order.sensitive).value(mask_inputs(schema, mask_tree(dict(values))))
    return found

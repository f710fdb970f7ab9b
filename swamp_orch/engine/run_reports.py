"""The built-in reports of a run, as they are stored with its end.

Rules that hold here:

1. Nothing is stored before the run's end: the records join its transaction, so that a report costs no step anything and no commit.
2. One `@swamp/method-summary` per model and method: of the last execution. Only its newest five versions are kept anyway.
3. What an argument holds of secrets, of sensitive inputs, or under a name its schema calls sensitive is `***`.
4. A report that the definition or the workflow skips is not made. A workflow's word comes after the definition's.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from swamp_orch.core.runplan import ENDS
from swamp_orch.definitions.inputs import mask_inputs
from swamp_orch.definitions.selection import is_chosen
from swamp_orch.engine.orders import Order
from swamp_orch.expressions.secret import mask_tree
from swamp_orch.reports import method_summary, workflow_summary
from swamp_orch.reports.report import WORKFLOW_TYPE, Report, report_records
from swamp_orch.store.interface import NewRecord, Owner, OwnerType
from swamp_proto.redaction import Mask

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


def method_records(run: "Run", performed: Iterable[tuple[Order, "StepState"]]) -> Iterator[NewRecord]:
    """Those of what the run executed: each with the order it was, last one last."""
    last = {
        (order.model.id, order.method): (order, state)
        for order, state in performed
        if state.dispatch and state.status in ENDS
    }
    for order, state in last.values():
        if is_chosen(method_summary.NAME, order.model.reports, run.request.workflow.reports):
            yield from _method_records(run, order, state)


def _method_records(run: "Run", order: Order, state: "StepState") -> tuple[NewRecord, ...]:
    model, origin = order.model, run.origin(state)
    outputs = order.model_type.outputs
    document = state.document()
    document["dataArtifacts"] = [
        {**made, "kind": outputs[made["specName"]].kind if made["specName"] in outputs else "report"}
        for made in document["dataArtifacts"]
    ]
    report = method_summary.method_summary(
        document,
        model_id=model.id,
        method_arguments=_shown_arguments(order),
        global_arguments=_shown(order, order.model_type.global_arguments, order.global_arguments),
    )
    return report_records(
        report,
        model_type=model.type,
        model_id=model.id,
        model_name=model.name,
        owner=Owner(
            OwnerType.WORKFLOW_STEP if origin.kind == "workflow" else OwnerType.MODEL_METHOD,
            ref=model.id,
            workflow_id=origin.workflow_id,
            workflow=origin.workflow,
            run=origin.run,
            job=origin.job,
            step=origin.step,
        ),
        tags={**model.tags, **origin.tags},
    )


def _shown_arguments(order: Order) -> dict[str, Any]:
    """As the author wrote them: shell text without the variables that stand for its expressions."""
    given = dict(order.arguments)
    if order.shell is not None:
        given.update((name, order.shell.display) for name in order.model_type.shell_arguments & given.keys())
    return _shown(order, order.model_type.methods[order.method].arguments, given)


def _shown(order: Order, schema: Any, values: Any) -> dict[str, Any]:
    found: dict[str, Any] = Mask(order.sensitive).value(mask_inputs(schema, mask_tree(dict(values))))
    return found

"""Orders: what a step asks to have executed, from definitions, inputs and expressions; secrets last.

Rules that hold here:

1. Only text of definition files is parsed for expressions; inputs and results are values and are never parsed (SPEC §6).
2. A run keeps the model definitions it started with: each is read once per run.
3. Secrets are read for one dispatch, when it is made, and are in nothing else: an `Order` holds `Secret`s, not their values.
4. swamp's own secrets (enrollment tokens) can not be read by any expression.
5. What an input declared `sensitive` holds is masked in everything the step prints and returns, as secrets are.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.core.runplan import StepStatus
from swamp_orch.core.scheduler import Requirement
from swamp_orch.definitions.inputs import (
    check_arguments,
    mask_inputs,
    method_arguments,
    resolve_inputs,
    sensitive_texts,
)
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.types import TypeRegistry
from swamp_orch.definitions.values import (
    AssertTask,
    Job,
    ModelDefinition,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Step,
    Workflow,
)
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.expressions.evaluate import evaluate, evaluate_tree
from swamp_orch.expressions.scope import Scope
from swamp_orch.expressions.secret import SecretRef, mask_tree, resolve_tree
from swamp_orch.expressions.shell import ShellText, evaluate_shell
from swamp_orch.expressions.template import OPEN, Template, literal_tree, parse, parse_tree
from swamp_orch.store.bookkeeping import iso
from swamp_proto.errors import LocalError, OperationFailed, Unsupported
from swamp_proto.messages.dispatch import Dispatch, Place
from swamp_worker.models.interface import MethodSpec, ModelType

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Run, RunRequest
    from swamp_orch.engine.steps import StepState

METHOD_JOB: Final = "method"  # the only job of a run of one method
INFRASTRUCTURE_SECRETS: Final = ("worker-token-", "server-token-")

ReadSecret = Callable[[SecretRef], str]


@attrs.frozen
class Order:
    """One step, ready to be dispatched as often as needed."""

    place: Place
    model: ModelDefinition
    model_type: ModelType
    method: str
    arguments: Mapping[str, Any] = attrs.field(repr=False)  # may hold `Secret`s
    shell: ShellText | None = attrs.field(repr=False)
    placement: Placement
    timeout_s: float | None
    on_worker_lost: OnWorkerLost
    environment: Mapping[str, str] = attrs.field(repr=False)
    read_secret: ReadSecret = attrs.field(repr=False)
    sensitive: tuple[str, ...] = attrs.field(repr=False, default=())  # values of sensitive inputs

    @property
    def requirement(self) -> str:
        """`target=x, k=v`, for people."""
        placement = self.placement
        return Requirement(
            placement.target, tuple(sorted(placement.labels.items())), placement.platform
        ).text()

    def dispatch(
        self, dispatch: str, *, attempt: int, fence: int, credential: str = "", resolve: bool = True
    ) -> Dispatch:
        """The message, with every secret in it read now; without `resolve`, only what identifies it. Raises what reading a secret
        raises."""
        values: dict[SecretRef, str] = {}

        def read(reference: SecretRef) -> str:
            if reference not in values:
                values[reference] = self.read_secret(reference)
            return values[reference]

        arguments = resolve_tree(self.arguments, read) if resolve else {}
        bindings: dict[str, str] = {}
        display = None
        if self.shell is not None and resolve:
            bindings = self.shell.resolve(read)
            display = self.shell.display
        return Dispatch(
            dispatch=dispatch,
            fence=fence,
            attempt=attempt,
            attempt_key=str(
                uuid.uuid5(uuid.UUID(self.place.run), f"{self.place.job}/{self.place.step}/{attempt}")
            ),
            place=self.place,
            model_type=self.model.type,
            model_name=self.model.name,
            model_id=self.model.id,
            model_version=self.model.version,
            model_tags=dict(self.model.tags),
            method=self.method,
            program=None,
            global_arguments={},
            arguments=arguments,
            environment=dict(self.environment),
            bindings=bindings,
            display=display,
            secrets=tuple(dict.fromkeys((*values.values(), *self.sensitive))) if resolve else (),
            timeout_s=self.timeout_s,
            credential=credential,
        )


@attrs.frozen
class _Method:
    """A model's method as a run uses it."""

    definition: ModelDefinition
    type: ModelType
    spec: MethodSpec
    plain_arguments: (
        Mapping[str, Any] | None
    )  # merged and checked, where nothing in the definition needs evaluating


class Orders:
    """Makes run requests from calls, and orders from steps."""

    def __init__(
        self,
        types: TypeRegistry,
        models: Models,
        workflows: Workflows,
        *,
        functions: Mapping[str, Callable[..., Any]],
        read_secret: ReadSecret,
        environment: Mapping[str, str],
    ) -> None:
        self._types = types
        self._models = models
        self._workflows = workflows
        self._functions = functions
        self._read_secret = read_secret
        self._environment = environment
        self._env = dict(os.environ)  # `env.NAME`: this process's, as it was at the start
        self._methods: dict[tuple[str, str, str], _Method] = {}  # (run, model, method)

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def workflow_request(self, parameters: Mapping[str, Any], owner: Mapping[str, Any]) -> "RunRequest":
        """What `workflow.run` asks for, checked against the workflow's inputs."""

        workflow = self._workflows.find(parameters["name"])
        inputs = resolve_inputs(workflow.inputs, parameters.get("inputs") or {}, coerce=True)
        text = self._workflows.path(workflow).read_text(encoding="utf-8")
        request = _workflow_request(workflow, text, inputs, owner)
        timeout_s = parameters.get("timeoutS") or workflow.timeout_s
        return attrs.evolve(request, tags=dict(parameters.get("tags") or {}), timeout_s=timeout_s)

    def recovered_request(
        self, run_id: str, attributes: Mapping[str, Any], owner: Mapping[str, Any]
    ) -> "RunRequest":
        """What a run of a previous process was asked for, from its record. Raises SwampError when that can not be known."""
        stored = attributes["inputs"]
        if "***" in stored.values():
            raise OperationFailed(
                "the orchestrator restarted, and the run has sensitive inputs, which are not stored",
                hint="run it again",
            )
        if attributes["kind"] == "method":
            step = {"name": attributes["workflowId"], "method": attributes["methodName"], "inputs": stored}
            request = self.method_request(step, owner)
        else:
            workflow = self._workflows.parse_recorded(attributes["definition"], attributes["workflowName"])
            request = _workflow_request(workflow, attributes["definition"], stored, owner)
        return attrs.evolve(request, id=run_id, tags=attributes["tags"], timeout_s=attributes.get("timeoutS"))

    def method_request(self, parameters: Mapping[str, Any], owner: Mapping[str, Any]) -> "RunRequest":
        """What `model.method_run` asks for: a workflow of one step around the method."""
        from swamp_orch.engine.runs import RunRequest

        definition = self._models.find(parameters["name"])
        model_type = self._models.type_of(definition)
        method = self._types.method(model_type, parameters["method"])
        given = dict(parameters.get("inputs") or {})
        method_arguments(model_type, method, definition, given, coerce=True)
        step = Step(method.name, ModelMethodTask(definition.name, method.name, {}))
        workflow = Workflow(
            id=definition.id,
            name=definition.name,
            description="",
            jobs=(Job(METHOD_JOB, (step,)),),
            version=definition.version,
            tags={},
            inputs={},
            concurrency=0,
            timeout_s=None,
            trigger={},
            reports={},
            source=definition.source,
        )
        return RunRequest(
            id=str(uuid.uuid4()),
            kind="method",
            workflow=workflow,
            definition="",
            inputs=given,
            stored_inputs={
                key: "***" if _is_sensitive(method, definition, key) else value
                for key, value in given.items()
            },
            tags=dict(parameters.get("tags") or {}),
            timeout_s=parameters.get("timeoutS"),
            owner=owner,
        )

    def forget(self, run_id: str) -> None:
        """The run is over: its definitions are not needed any more."""
        for key in [key for key in self._methods if key[0] == run_id]:
            del self._methods[key]

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def expand(self, run: "Run", job: str, step: Step) -> dict[str, Any]:
        """The items of a forEach step by concrete name, in order."""
        assert step.for_each is not None
        where = run.where(job, step)
        text = step.for_each.expression
        found = evaluate(
            parse(text if OPEN in text else f"${{{{ {text} }}}}", where), self._scope(run, step, None)
        )
        if isinstance(found, Mapping):
            rows = [(str(key), {"key": key, "value": value}) for key, value in found.items()]
        elif isinstance(found, list):
            rows = [
                (item if isinstance(item, str) and item else str(index), item)
                for index, item in enumerate(found)
            ]
        else:
            raise LocalError(
                f"{where}: forEach.in of step {step.name!r} must be a list or a map", code="expression"
            )
        items: dict[str, Any] = {}
        for label, item in rows:
            scope = self._scope(run, step, item)
            name = (
                str(evaluate(parse(step.name, where), scope)) if OPEN in step.name else f"{step.name}-{label}"
            )
            if name in items:
                raise LocalError(
                    f"{where}: two items of step {step.name!r} have the name {name!r}",
                    hint="put something unique into the step's name: ${{ self." + step.for_each.item + " }}",
                    code="expression",
                )
            items[name] = item
        return items

    def make(self, run: "Run", state: "StepState") -> Order | None:
        """The order of a step that may start; None when it has ended already (a true guard, a passed assertion), which
        `state` then says. Raises SwampError when it can not be made: the step fails."""
        step = state.step
        plain = self._plain_order(run, state)
        if plain is not None:
            return plain
        scope = self._scope(run, step, state.item)
        where = run.where(state.key.job, step)
        if step.guard is not None and self._truth(step.guard, scope, where, "guard"):
            state.status, state.reason = StepStatus.SKIPPED, "guarded"
            return None
        match step.task:
            case ModelMethodTask() as task:
                return self._method_order(run, state, task, scope, where)
            case AssertTask() as task:
                if not self._truth(f"${{{{ {task.expr} }}}}", scope, where, "assertion"):
                    raise OperationFailed(
                        task.message or f"assertion failed: {task.expr}", code="assertion_failed"
                    )
                state.status = StepStatus.SUCCEEDED
                return None
            case _:
                raise Unsupported(
                    f"tasks of step {step.name!r}'s kind are not executed by this version of swamp"
                )

    def _truth(self, text: str, scope: Scope, where: str, what: str) -> bool:
        found = evaluate(parse(text, where), scope)
        if not isinstance(found, bool):
            raise LocalError(
                f"{where}: a {what} must be true or false, and is {mask_tree(found)!r}", code="expression"
            )
        return found

    def _method_order(
        self, run: "Run", state: "StepState", task: ModelMethodTask, scope: Scope, where: str
    ) -> Order:
        method = self._method(run.id, task.model, task.method)
        definition, spec = method.definition, method.spec
        state.model, state.model_type, state.method = definition.name, definition.type, spec.name
        literal = run.request.kind == "method"
        given: Mapping[str, Any]
        if literal:
            given = run.request.inputs
        elif isinstance(task.inputs, str):
            found = evaluate(parse(task.inputs, where), scope)
            if not isinstance(found, Mapping):
                raise LocalError(
                    f"{where}: the inputs of step {state.key.step!r} must be a map", code="expression"
                )
            given, literal = found, True
        else:
            given = task.inputs
        merged = method_arguments(method.type, spec, definition, given, coerce=literal)
        inputs = self._inputs(merged.inputs, given, scope, where, literal=literal)
        own = self._own_scope(scope, definition, inputs)
        declared = definition.inputs.get("properties", {})
        arguments: dict[str, Any] = {}
        shell: ShellText | None = None
        for key, value in merged.arguments.items():
            if key in given and key not in declared:
                tree, its_scope = (literal_tree(value) if literal else parse_tree(value, where)), scope
            else:
                tree, its_scope = (
                    parse_tree(value, definition.source.at("methods", spec.name, "arguments", key)),
                    own,
                )
            if key in method.type.shell_arguments and isinstance(tree, Template):
                shell = evaluate_shell(tree, its_scope)
                arguments[key] = shell.script
            else:
                arguments[key] = evaluate_tree(tree, its_scope)
        check_arguments(spec, mask_tree(arguments), evaluated=True)
        sensitive = (
            *sensitive_texts(run.request.workflow.inputs, run.request.inputs),
            *sensitive_texts(definition.inputs, inputs),
            *sensitive_texts(spec.arguments, arguments),
        )
        placement = self._placement(state.step.placement, scope, where)
        return self._order(run, state, method, arguments, shell, placement, sensitive)

    def _plain_order(self, run: "Run", state: "StepState") -> Order | None:
        """The order of a step without inputs, of a method without expressions: made from the arguments found once per run."""
        step, task = state.step, state.step.task
        if step.guard is not None or not isinstance(task, ModelMethodTask) or task.inputs:
            return None
        if run.request.kind == "method" and run.request.inputs:
            return None
        if _has_expression(step.placement.target) or _has_expression(dict(step.placement.labels)):
            return None
        method = self._method(run.id, task.model, task.method)
        if method.plain_arguments is None:
            return None
        definition = method.definition
        state.model, state.model_type, state.method = definition.name, definition.type, method.spec.name
        return self._order(run, state, method, method.plain_arguments, None, step.placement)

    def _order(
        self,
        run: "Run",
        state: "StepState",
        method: _Method,
        arguments: Mapping[str, Any],
        shell: ShellText | None,
        placement: Placement,
        sensitive: tuple[str, ...] = (),
    ) -> Order:
        workflow = run.request.workflow
        return Order(
            place=Place(run.id, workflow.name, workflow.id, state.key.job, state.key.step),
            model=method.definition,
            model_type=method.type,
            method=method.spec.name,
            arguments=arguments,
            shell=shell,
            placement=placement,
            timeout_s=state.step.timeout_s,
            on_worker_lost=state.step.on_worker_lost,
            environment=self._environment,
            read_secret=self._secret,
            sensitive=sensitive,
        )

    def _method(self, run_id: str, model: str, method: str) -> _Method:
        key = (run_id, model, method)
        found = self._methods.get(key)
        if found is None:
            definition = self._models.find(model)
            model_type = self._models.type_of(definition)
            spec = self._types.method(model_type, method)
            merged = method_arguments(model_type, spec, definition, {}) if _is_plain(definition) else None
            plain = None if merged is None else merged.arguments
            if plain is not None:
                check_arguments(spec, plain, evaluated=True)
            found = self._methods[key] = _Method(definition, model_type, spec, plain)
        return found

    def _inputs(
        self, inputs: Mapping[str, Any], given: Mapping[str, Any], scope: Scope, where: str, *, literal: bool
    ) -> dict[str, Any]:
        """Values for the definition's own `inputs`: those of the step evaluated where they were written."""
        found: dict[str, Any] = {}
        for key, value in inputs.items():
            found[key] = (
                evaluate_tree(parse_tree(value, where), scope) if key in given and not literal else value
            )
        return found

    def _placement(self, placement: Placement, scope: Scope, where: str) -> Placement:
        """Placement may hold expressions (a fan-out over workers)."""
        texts = (placement.target or "", *placement.labels.values())
        if not any(OPEN in text for text in texts):
            return placement
        labels = {
            key: str(evaluate_tree(parse_tree(value, where), scope))
            for key, value in placement.labels.items()
        }
        target = (
            None
            if placement.target is None
            else str(evaluate_tree(parse_tree(placement.target, where), scope))
        )
        return attrs.evolve(placement, target=target, labels=labels)

    # ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _scope(self, run: "Run", step: Step, item: Any) -> Scope:
        """The names in a workflow's text."""
        request = run.request
        about = {
            "id": run.id,
            "workflowId": request.workflow.id,
            "workflowName": request.workflow.name,
            "startedAt": iso(run.started_ms),
            "tags": dict(request.tags),
        }
        own = {step.for_each.item: item} if step.for_each is not None and item is not None else {}
        values = {"inputs": dict(request.inputs), "run": about, "self": own, "env": self._env}
        return Scope(values=values, functions=self._functions, model=self._model)

    def _own_scope(self, scope: Scope, definition: ModelDefinition, inputs: Mapping[str, Any]) -> Scope:
        """The names in a definition's text."""
        about = {
            "id": definition.id,
            "name": definition.name,
            "version": definition.version,
            "tags": dict(definition.tags),
            "globalArguments": dict(definition.global_arguments),
        }
        where = definition.source.at("globalArguments")
        first = scope.with_values(inputs=dict(inputs), self=about)
        if definition.global_arguments:
            about["globalArguments"] = evaluate_tree(
                parse_tree(dict(definition.global_arguments), where), first
            )
        return scope.with_values(inputs=dict(inputs), self=about)

    def _model(self, name: str) -> dict[str, Any]:
        definition = self._models.find(name)
        about = {
            "id": definition.id,
            "name": definition.name,
            "type": definition.type,
            "tags": dict(definition.tags),
        }
        return {"definition": about, "input": dict(definition.global_arguments)}

    def _secret(self, reference: SecretRef) -> str:
        if reference.key.startswith(INFRASTRUCTURE_SECRETS):
            raise LocalError(
                f"secret {reference.key!r} of vault {reference.vault!r} is swamp's own and can not be read by a step",
                code="forbidden",
            )
        return self._read_secret(reference)


def _workflow_request(
    workflow: Workflow, text: str, inputs: Mapping[str, Any], owner: Mapping[str, Any]
) -> "RunRequest":
    from swamp_orch.engine.runs import RunRequest

    return RunRequest(
        id=str(uuid.uuid4()),
        kind="workflow",
        workflow=workflow,
        definition=text,
        inputs=inputs,
        stored_inputs=mask_inputs(workflow.inputs, inputs),
        tags={},
        timeout_s=workflow.timeout_s,
        owner=owner,
    )


def _has_expression(value: Any) -> bool:
    if isinstance(value, str):
        return OPEN in value
    if isinstance(value, Mapping):
        return any(_has_expression(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_has_expression(item) for item in value)


def _is_plain(definition: ModelDefinition) -> bool:
    """Whether a method of it can be called without inputs and without evaluating anything."""
    if definition.inputs.get("properties"):
        return False
    return not _has_expression(dict(definition.methods)) and not _has_expression(
        dict(definition.global_arguments)
    )


def _is_sensitive(method: MethodSpec, definition: ModelDefinition, key: str) -> bool:
    schemas = (definition.inputs.get("properties", {}), method.arguments.get("properties", {}))
    return any(isinstance(one.get(key), Mapping) and one[key].get("sensitive") is True for one in schemas)

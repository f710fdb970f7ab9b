"""Orders: what a step asks to have executed, from definitions, inputs and expressions; secrets last.

Rules that hold here:

1. Only text of definition files is parsed for expressions; inputs and results are values and are never parsed (SPEC §6).
2. A run keeps the model definitions it started with: each is read once per run.
3. Secrets are read for one dispatch, when it is made, and are in nothing else: an `Order` holds `Secret`s, not their values.
4. swamp's own secrets (enrollment tokens) can not be read by any expression.
5. What an input declared `sensitive` holds is masked in everything the step prints and returns, as secrets are.
6. A run keeps the code of an extension it started with (`run_code`).
"""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.core.runplan import StepStatus
from swamp_orch.core.scheduler import Requirement
from swamp_orch.definitions.inputs import (
    InvalidInput,
    check_arguments,
    mask_inputs,
    method_arguments,
    resolve_inputs,
    sensitive_texts,
    with_defaults,
)
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.selection import Selection, checks_of, reports_of
from swamp_orch.definitions.types import TypeRegistry
from swamp_orch.definitions.values import (
    AssertTask,
    Job,
    ManualApprovalTask,
    ModelDefinition,
    ModelMethodTask,
    OnWorkerLost,
    Placement,
    Step,
    Workflow,
    WorkflowTask,
)
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.engine.access_scope import AccessScope, scope_of
from swamp_orch.engine.approvals import ApprovalOrder
from swamp_orch.engine.children import NestedOrder
from swamp_orch.engine.lineage import Parent, parent_of
from swamp_orch.engine.overrides import OutputOverride, overrides_of
from swamp_orch.engine.run_code import RunCode
from swamp_orch.expressions.evaluate import evaluate, evaluate_tree
from swamp_orch.expressions.scope import Scope
from swamp_orch.expressions.secret import Secret, SecretRef, mask_tree, resolve_tree
from swamp_orch.expressions.shell import ShellText, evaluate_shell
from swamp_orch.expressions.template import (
    OPEN,
    ExpressionError,
    Template,
    Tree,
    literal_tree,
    parse,
    parse_tree,
    templates,
)
from swamp_orch.store.bookkeeping import iso
from swamp_orch.vaults.interface import is_infrastructure_key
from swamp_proto.errors import LocalError, OperationFailed, SwampError
from swamp_proto.ids import is_name
from swamp_proto.limits import APPROVAL_S_DEFAULT
from swamp_proto.messages.dispatch import Dispatch, Place, Program
from swamp_proto.schema_check import check_value
from swamp_worker.models.interface import MethodSpec, ModelType

if TYPE_CHECKING:
    from swamp_orch.engine.runs import Run, RunRequest
    from swamp_orch.engine.steps import StepState

METHOD_JOB: Final = "method"  # the only job of a run of one method

ReadSecret = Callable[[SecretRef], str]


@attrs.frozen
class Order:
    """One step, ready to be dispatched as often as needed."""

    place: Place
    model: ModelDefinition
    model_type: ModelType
    method: str
    arguments: Mapping[str, Any] = attrs.field(repr=False)  # may hold `Secret`s
    global_arguments: Mapping[str, Any] = attrs.field(repr=False)  # may hold `Secret`s
    scope: AccessScope  # what its running code may see
    program: Program | None  # the code that runs it; None: the executor knows how
    shell: ShellText | None = attrs.field(repr=False)
    placement: Placement
    timeout_s: float | None
    on_worker_lost: OnWorkerLost
    environment: Mapping[str, str] = attrs.field(repr=False)
    read_secret: ReadSecret = attrs.field(repr=False)
    sensitive: tuple[str, ...] = attrs.field(repr=False, default=())  # values of sensitive inputs
    overrides: tuple[OutputOverride, ...] = ()  # of what it stores

    @property
    def requirement(self) -> str:
        """`target=x, k=v`, for people."""
        placement = self.placement
        return Requirement(
            placement.target, tuple(sorted(placement.labels.items())), placement.platform
        ).text()

    def dispatch(
        self,
        dispatch: str,
        *,
        attempt: int,
        fence: int,
        credential: str = "",
        resolve: bool = True,
        told: Callable[[SecretRef], object] = lambda reference: None,
    ) -> Dispatch:
        """The message, with every secret in it read now; without `resolve`, only what identifies it. Raises what reading a secret
        raises."""
        values: dict[SecretRef, str] = {}

        def read(reference: SecretRef) -> str:
            if reference not in values:
                values[reference] = self.read_secret(reference)
                told(reference)
            return values[reference]

        arguments = resolve_tree(self.arguments, read) if resolve else {}
        shared = resolve_tree(self.global_arguments, read) if resolve else {}
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
            program=self.program,
            global_arguments=shared,
            arguments=arguments,
            environment=dict(self.environment),
            bindings=bindings,
            display=display,
            secrets=tuple(dict.fromkeys((*values.values(), *self.sensitive))) if resolve else (),
            timeout_s=self.timeout_s,
            credential=credential,
        )

    def secrets(
        self, unreadable: Callable[[SecretRef, SwampError], None], told: Iterable[SecretRef] = ()
    ) -> tuple[str, ...]:
        """What has to be masked in all that comes from a dispatch of this order, read now; `told` are secrets that its code was
        told. `unreadable` hears of what can not be read."""
        values = list(self.sensitive)

        def read(reference: SecretRef) -> str:
            try:
                values.append(self.read_secret(reference))
            except SwampError as error:
                unreadable(reference, error)
                return ""
            return values[-1]

        resolve_tree((self.arguments, self.global_arguments), read)
        for reference in told:
            read(reference)
        if self.shell is not None:
            resolve_tree(self.shell.bindings, read)
        return tuple(dict.fromkeys(values))


class TypeNotFixed(Exception):
    """The run has not used this type yet: `RunCode.fix` says which code of it the run keeps. It may take a while, and belongs into a
    thread."""

    def __init__(self, definition: ModelDefinition) -> None:
        super().__init__(definition.type)
        self.definition = definition


@attrs.frozen
class _Plain:
    """What needs no evaluating: merged and checked."""

    arguments: Mapping[str, Any]
    global_arguments: Mapping[str, Any]
    sensitive: tuple[str, ...]
    scope: AccessScope | None = None  # where that is the definition's business alone


@attrs.frozen
class _Method:
    """A model's method as a run uses it."""

    definition: ModelDefinition
    type: ModelType
    spec: MethodSpec
    plain: _Plain | None


@attrs.frozen
class Lent:
    """A definition that is no file, for one run: its type, and what its steps are given beside the usual."""

    definition: ModelDefinition
    type: ModelType
    environment: Mapping[str, str] = attrs.field(repr=False, factory=dict)
    read_secret: ReadSecret | None = attrs.field(repr=False, default=None)


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
        # `env.NAME`: this process's, as it was at the start. What is swamp's own is nobody's to read.
        self._env = {
            name: value for name, value in os.environ.items() if not name.upper().startswith("SWAMP_")
        }
        self._methods: dict[tuple[str, str, str], _Method] = {}  # (run, model, method)
        self._lent: dict[tuple[str, str], Lent] = {}  # (run, model)
        self.code = RunCode(types, models)

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
        self,
        run_id: str,
        attributes: Mapping[str, Any],
        owner: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> "RunRequest":
        """What a run of a previous process was asked for, from its record and `given`: the inputs that are not stored. Raises
        SwampError when that can not be known."""
        stored = {**attributes["inputs"], **given}
        hidden = [key for key, value in stored.items() if value == "***"]
        if hidden:
            more = " ".join(f"--input {key}=…" for key in hidden)
            raise OperationFailed(
                f"the run has sensitive inputs, which are not stored: {', '.join(hidden)}",
                hint=f"swamp workflow resume {attributes['workflowName']} --run {run_id} {more}",
            )
        if attributes["kind"] == "method":
            step = {"name": attributes["workflowId"], "method": attributes["methodName"], "inputs": stored}
            request = self.method_request(step, owner)
        else:
            workflow = self.recorded_workflow(attributes)
            if given:
                shown = resolve_inputs(workflow.inputs, mask_tree(stored), coerce=True)
                stored = {
                    **shown,
                    **{key: value for key, value in stored.items() if _holds_secret(value, ())},
                }
            request = _workflow_request(workflow, attributes["definition"], stored, owner)
        return attrs.evolve(
            request,
            id=run_id,
            tags=attributes["tags"],
            timeout_s=attributes.get("timeoutS"),
            parent=parent_of(attributes),
        )

    def recorded_workflow(self, attributes: Mapping[str, Any]) -> Workflow:
        """The workflow of a run as it was when it started."""
        return self._workflows.parse_recorded(attributes["definition"], attributes["workflowName"])

    def method_request(self, parameters: Mapping[str, Any], owner: Mapping[str, Any]) -> "RunRequest":
        """What `model.method_run` asks for: a workflow of one step around the method."""
        from swamp_orch.engine.runs import RunRequest

        definition = self._models.find(parameters["name"])
        model_type = self._models.type_of(definition)
        run_id = str(uuid.uuid4())
        self.code.keep(run_id, model_type)
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
            id=run_id,
            kind="method",
            workflow=workflow,
            definition="",
            inputs=given,
            stored_inputs=mask_inputs(definition.inputs, mask_inputs(method.arguments, given)),
            tags=dict(parameters.get("tags") or {}),
            timeout_s=parameters.get("timeoutS"),
            owner=owner,
        )

    def nested_request(self, run: "Run", order: NestedOrder, parent: Parent) -> "RunRequest":
        """The run of a nested workflow. What its inputs hold of secrets is masked there too, and stored as `***`."""
        workflow = self._workflows.find(order.workflow)
        parent.check(workflow.name)
        checked = resolve_inputs(workflow.inputs, mask_tree(order.inputs))
        text = self._workflows.path(workflow).read_text(encoding="utf-8")
        request = _workflow_request(workflow, text, {**checked, **order.inputs}, run.request.owner)
        return _below(request, run, parent)

    def run_model_request(
        self,
        run: "Run",
        parent: Parent,
        model: str,
        method: str,
        inputs: Mapping[str, Any],
        secrets: tuple[str, ...],
    ) -> tuple["RunRequest", bool]:
        """The run of a method that running code asked for, and whether it changes anything."""
        definition = self._models.find(model)
        spec = self._types.method(self._models.type_of(definition), method)
        parent.check(f"{definition.name}.{spec.name}")
        given = {"name": definition.name, "method": spec.name, "inputs": inputs}
        request = self.method_request(given, run.request.owner)
        self.code.move(request.id, definition.type, parent.child_id)
        return _below(request, run, parent, secrets), spec.mutates

    def forget(self, run_id: str) -> None:
        """The run is over: its definitions are not needed any more."""
        for key in [key for key in self._methods if key[0] == run_id]:
            del self._methods[key]
        for lent in [lent for lent in self._lent if lent[0] == run_id]:
            del self._lent[lent]
        self.code.forget(run_id)

    def lend(self, run_id: str, lent: Lent) -> None:
        """A run may use this definition, until it is over."""
        self._lent[run_id, lent.definition.name] = lent

    def report_order(self, **parts: Any) -> Order:
        """A report of a run, with what every execution here is given."""
        return Order(shell=None, environment=self._environment, read_secret=self._secret, **parts)

    def reports_of(self, run_id: str, model: str) -> Selection:
        """What the definition of a model that a run used says of reports: as the run knows it, or, after a restart, as it is now."""
        known = [found for (run, _, _), found in tuple(self._methods.items()) if run == run_id]
        found = next((one for one in known if one.definition.name == model), None)
        try:
            return self._models.find(model).reports if found is None else found.definition.reports
        except SwampError:
            return {}

    def _type_of(self, run_id: str, definition: ModelDefinition) -> ModelType:
        found = self.code.found(run_id, definition.type)
        if found is None:
            raise TypeNotFixed(definition)
        return found

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

    def make(self, run: "Run", state: "StepState") -> Order | NestedOrder | ApprovalOrder | None:
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
            case WorkflowTask() as task:
                return self._nested_order(step, task, scope, where)
            case ManualApprovalTask() as task:
                return self._approval_order(task, scope, where)

    def _nested_order(self, step: Step, task: WorkflowTask, scope: Scope, where: str) -> NestedOrder:
        """A nested workflow, with its inputs evaluated here."""
        found = evaluate_tree(parse_tree(task.inputs, where), scope)
        if not isinstance(found, Mapping):
            raise LocalError(f"{where}: the inputs of step {step.name!r} must be a map", code="expression")
        name = evaluate_tree(parse_tree(task.workflow, where), scope)
        if not isinstance(name, str):
            raise LocalError(f"{where}: the workflow of step {step.name!r} must be a name", code="expression")
        return NestedOrder(name, found, step.timeout_s)

    def _approval_order(self, task: ManualApprovalTask, scope: Scope, where: str) -> ApprovalOrder:
        prompt = mask_tree(evaluate_tree(parse_tree(task.prompt, where), scope))
        return ApprovalOrder(str(prompt), APPROVAL_S_DEFAULT if task.timeout_s is None else task.timeout_s)

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
        shared = self._global_arguments(method.type, definition, own.values["self"]["globalArguments"])
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

        def place(argument: str) -> str:
            if argument in given:
                return "" if run.request.kind == "method" else where
            stored = definition.methods.get(spec.name, {})
            part = ("methods", spec.name, "arguments") if argument in stored else ("globalArguments",)
            return definition.source.at(*part, argument)

        check_arguments(spec, mask_tree(arguments), evaluated=True, place=place)
        sensitive = (
            *run.request.sensitive,
            *sensitive_texts(run.request.workflow.inputs, run.request.inputs),
            *sensitive_texts(definition.inputs, inputs),
            *sensitive_texts(spec.arguments, arguments),
            *sensitive_texts(method.type.global_arguments, shared),
        )
        placement = self._placement(state.step.placement, scope, where)
        written = parse_tree(task.inputs, where) if run.request.kind == "workflow" else literal_tree(None)
        values = _Plain(arguments, shared, sensitive)
        return self._order(run, state, method, values, shell, placement, (written,), inputs)

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
        definition = method.definition
        if method.plain is None:
            if not _is_plain(definition):
                return None
            method = self._with_plain((run.id, task.model, task.method), method)
            assert method.plain is not None
        state.model, state.model_type, state.method = definition.name, definition.type, method.spec.name
        return self._order(run, state, method, method.plain, None, step.placement)

    def _order(
        self,
        run: "Run",
        state: "StepState",
        method: _Method,
        values: _Plain,
        shell: ShellText | None,
        placement: Placement,
        written: tuple[Tree, ...] = (),
        inputs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Order:
        workflow, definition, model_type = run.request.workflow, method.definition, method.type
        state.bundle = model_type.bundle
        lent = self._lent.get((run.id, definition.name))
        more = {} if lent is None else lent.environment
        return Order(
            place=Place(run.id, workflow.name, workflow.id, state.key.job, state.key.step),
            model=definition,
            model_type=model_type,
            method=method.spec.name,
            arguments=values.arguments,
            global_arguments=values.global_arguments,
            scope=values.scope or self._access(definition, model_type, method.spec.name, written),
            program=_program(model_type, method.spec, definition, workflow),
            shell=shell,
            placement=placement,
            timeout_s=state.step.timeout_s,
            on_worker_lost=state.step.on_worker_lost,
            environment={**self._environment, **more} if more else self._environment,
            read_secret=(None if lent is None else lent.read_secret) or self._secret,
            sensitive=values.sensitive,
            overrides=self._overrides(run, state, model_type, values, inputs) if state.step.overrides else (),
        )

    def _overrides(
        self,
        run: "Run",
        state: "StepState",
        model_type: ModelType,
        values: _Plain,
        inputs: Mapping[str, Any],
    ) -> tuple[OutputOverride, ...]:
        request, step = run.request, state.step
        own = {step.for_each.item: state.item} if step.for_each is not None else {}
        dimensions = {**request.inputs, **own, **values.arguments, **inputs}
        hidden = (
            *values.sensitive,
            *request.sensitive,
            *sensitive_texts(request.workflow.inputs, request.inputs),
        )
        where = run.where(state.key.job, step)
        return overrides_of(step.overrides, model_type, dimensions, hidden, where)

    def _access(
        self, definition: ModelDefinition, model_type: ModelType, method: str, written: tuple[Tree, ...]
    ) -> AccessScope:
        """From what was written, never from what it became: see `access_scope`."""
        own = (dict(definition.global_arguments), dict(definition.methods.get(method, {})))
        trees = (*(parse_tree(part) for part in own if _has_expression(part)), *written)
        found = scope_of(
            definition, model_type, (found for tree in trees for found in templates(tree)), self._name_of
        )
        named = map(self._name_of, _models_named(model_type, method, definition, written))
        return attrs.evolve(found, models=found.models.union(named))

    def _name_of(self, model: str) -> str:
        if is_name(model):
            return model
        try:
            return self._models.find(model).name
        except SwampError:
            return model  # evaluating it says what is wrong

    def _global_arguments(
        self, model_type: ModelType, definition: ModelDefinition, evaluated: Mapping[str, Any]
    ) -> dict[str, Any]:
        """With the type's defaults. Raises `LocalError` naming file and line of what does not fit; a type without code has none."""
        if not model_type.entry:
            return {}
        shared = with_defaults(model_type.global_arguments, evaluated)
        problems = check_value(model_type.global_arguments, mask_tree(shared))
        if problems:
            where = definition.source.at("globalArguments")
            listed = "\n".join(f"  {found}" for found in problems)
            raise InvalidInput(
                f"{where}: the global arguments of {definition.name} do not fit {model_type.name}:\n{listed}",
                hint=f"swamp model validate {definition.name}",
            )
        return shared

    def _method(self, run_id: str, model: str, method: str) -> _Method:
        key = (run_id, model, method)
        found = self._methods.get(key)
        if found is None:
            lent = self._lent.get((run_id, model))
            definition = self._models.find(model) if lent is None else lent.definition
            model_type = self._type_of(run_id, definition) if lent is None else lent.type
            spec = self._types.method(model_type, method)
            found = self._methods[key] = _Method(definition, model_type, spec, None)
        return found

    def _with_plain(self, key: tuple[str, str, str], method: _Method) -> _Method:
        """With the arguments of a call without inputs. Raises SwampError when they are not enough."""
        definition, spec = method.definition, method.spec
        arguments = method_arguments(method.type, spec, definition, {}).arguments
        check_arguments(spec, arguments, evaluated=True)
        shared = self._global_arguments(method.type, definition, definition.global_arguments)
        sensitive = (
            *sensitive_texts(spec.arguments, arguments),
            *sensitive_texts(method.type.global_arguments, shared),
        )
        named = any(True for _ in _models_named(method.type, spec.name, definition, ()))
        scope = None if named else self._access(definition, method.type, spec.name, ())
        plain = _Plain(arguments, shared, sensitive, scope)
        found = self._methods[key] = attrs.evolve(method, plain=plain)
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

    def _model(self, name: str, within: tuple[str, ...] = ()) -> dict[str, Any]:
        """What `model.<name>` is. Its global arguments are evaluated in its own text's scope, with the defaults of its inputs; one that
        needs more than that is absent. `within`: the models whose arguments are being evaluated, so that a circle is an error."""
        definition = self._models.find(name)
        if definition.name in within:
            shown = " -> ".join((*within, definition.name))
            raise LocalError(f"global arguments of models refer to each other: {shown}", code="expression")
        about = {
            "id": definition.id,
            "name": definition.name,
            "type": definition.type,
            "version": definition.version,
            "tags": dict(definition.tags),
        }
        scope = Scope(
            values={
                "inputs": with_defaults(definition.inputs, {}),
                "self": {**about, "globalArguments": dict(definition.global_arguments)},
                "env": self._env,
            },
            functions=self._functions,
            model=partial(self._model, within=(*within, definition.name)),
        )
        given: dict[str, Any] = {}
        for key, value in definition.global_arguments.items():
            tree = parse_tree(value, definition.source.at("globalArguments", key))
            with suppress(ExpressionError):
                given[key] = evaluate_tree(tree, scope)
        return {"definition": about, "input": given}

    def _secret(self, reference: SecretRef) -> str:
        if is_infrastructure_key(reference.key):
            raise LocalError(
                f"secret {reference.key!r} of vault {reference.vault!r} is swamp's own and can not be read by a step",
                code="forbidden",
            )
        return self._read_secret(reference)


def _models_named(
    model_type: ModelType, method: str, definition: ModelDefinition, written: tuple[Tree, ...]
) -> Iterator[str]:
    """What stands, written out and not computed, in arguments whose schema says that they name a model."""
    spec = model_type.methods.get(method)
    properties = spec.arguments.get("properties", {}) if spec is not None else {}
    keys = [key for key, schema in properties.items() if schema.get("namesModel") is True]
    own = (definition.global_arguments, definition.methods.get(method, {}))
    for key in keys:
        for part in own:
            value = part.get(key)
            if isinstance(value, str) and OPEN not in value:
                yield value
        for tree in written:
            leaf = tree.get(key) if isinstance(tree, dict) else None
            if isinstance(leaf, tuple) and isinstance(leaf[0], str):
                yield leaf[0]


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


def _below(request: "RunRequest", run: "Run", parent: Parent, secrets: tuple[str, ...] = ()) -> "RunRequest":
    """`request` as a child of `run`: what is secret there stays so here."""
    above = run.request
    hidden = (*above.sensitive, *sensitive_texts(above.workflow.inputs, above.inputs), *secrets)
    sensitive = tuple(dict.fromkeys(text for text in hidden if text))
    stored = {
        key: "***" if _holds_secret(request.inputs[key], sensitive) else value
        for key, value in request.stored_inputs.items()
    }
    return attrs.evolve(
        request,
        id=parent.child_id,
        parent=parent,
        tags=dict(above.tags),
        stored_inputs=stored,
        sensitive=sensitive,
    )


def _holds_secret(value: Any, sensitive: tuple[str, ...]) -> bool:
    if isinstance(value, str):
        return any(text in value for text in sensitive)
    if isinstance(value, Mapping):
        return any(_holds_secret(item, sensitive) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_secret(item, sensitive) for item in value)
    return isinstance(value, Secret)


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


def _program(
    model_type: ModelType, method: MethodSpec, definition: ModelDefinition, workflow: Workflow
) -> Program | None:
    if not model_type.entry:
        return None
    return Program(
        bundle=model_type.bundle,
        entry=model_type.entry,
        checks=checks_of(model_type, method, definition.checks),
        reports=reports_of(model_type, definition.reports, workflow.reports),
    )

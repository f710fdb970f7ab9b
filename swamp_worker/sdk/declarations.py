"""How an author declares a type: a class, its outputs, its methods, its checks, its reports.

    @model("@example/inventory", version="2026.02.09.1", reads=["network"], secrets=["ops/api-token"])
    class Inventory:
        \"\"\"Hosts, and whether they answer.\"\"\"

        host = resource(Host, "One host as it was last seen", keep=5)
        listing = file("text/csv", "Every host on a line")

        @method
        async def probe(self, context: Context, arguments: Probe) -> None:
            \"\"\"Look at every host.\"\"\"

Rules that hold here:

- Declaring is all this does: nothing runs, and what is wrong is a `DeclarationError` at import, with its line.
- A method is async (it runs in trio) or plain. It takes the context, and its arguments as an attrs class, or no arguments.
- What is not declared does not exist: a method can write the specs of its class and no other.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar, overload

import attrs

from swamp_proto.schema_check import problems_of
from swamp_proto.sensitive import holds_sensitive
from swamp_worker.models.interface import CheckSpec, MethodSpec, ModelType, OutputSpec, ReportSpec
from swamp_worker.sdk.errors import DeclarationError
from swamp_worker.sdk.shapes import schema_of

T = TypeVar("T")
C = TypeVar("C", bound=type)
M = TypeVar("M", bound=Callable[..., Any])

_TYPE_NAME: Final = re.compile(r"@?[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)+")
_VERSION: Final = re.compile(r"\d{4}\.\d{1,2}\.\d{1,2}(\.\d+)?")
_LIFETIME: Final = re.compile(r"infinite|ephemeral|job|workflow|\d+(mo|[smhdwy])")
_SECRET: Final = re.compile(r"[^/\s]+/\S+")
_SPEC_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
_REPORT_NAME_MAX: Final = 128  # its records are named after it
_DECLARED: Final = "__swamp_model__"
_MARK: Final = "__swamp_mark__"


# ── outputs ─────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.define(eq=False)
class Spec:
    """A declared output. `name` is the attribute it is assigned to, unless said."""

    description: str
    content_type: str
    lifetime: str
    keep: int | None
    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name = name


@attrs.define(eq=False)
class Resource(Spec, Generic[T]):
    """A JSON record with a schema. Made by `resource`. `hides`: something in it is sensitive."""

    schema: Mapping[str, Any]
    hides: bool = attrs.field(init=False)

    @hides.default
    def _hides(self) -> bool:
        return holds_sensitive(self.schema)


@attrs.define(eq=False)
class File(Spec):
    """A file artefact. Made by `file`."""


@overload
def resource(
    content: type[T], description: str = "", *, lifetime: str = ..., keep: int | None = ..., name: str = ...
) -> Resource[T]: ...
@overload
def resource(
    content: Mapping[str, Any],
    description: str = "",
    *,
    lifetime: str = ...,
    keep: int | None = ...,
    name: str = ...,
) -> Resource[Mapping[str, Any]]: ...
def resource(
    content: Any,
    description: str = "",
    *,
    lifetime: str = "infinite",
    keep: int | None = 10,
    name: str = "",
) -> Resource[Any]:
    """A resource whose content is an attrs class, or what a JSON Schema describes.

    `lifetime` is how long a version is kept (`30d`, `infinite`, …), `keep` how many versions (None: all).
    """
    if isinstance(content, Mapping):
        problems = problems_of(content)
        if problems:
            raise DeclarationError(f"a resource's schema: {problems[0]}", _line())
        schema = content
    else:
        schema = _located(schema_of, content)
    _check_kept(lifetime, keep)
    return Resource(description, "application/json", lifetime, keep, name, schema)


def file(
    content_type: str,
    description: str = "",
    *,
    lifetime: str = "infinite",
    keep: int | None = 10,
    name: str = "",
) -> File:
    """A file artefact of one type of content (`text/csv`)."""
    if "/" not in content_type:
        raise DeclarationError(f"{content_type!r} is no type of content; one looks like text/plain", _line())
    _check_kept(lifetime, keep)
    return File(description, content_type, lifetime, keep, name)


def _check_kept(lifetime: str, keep: int | None) -> None:
    if _LIFETIME.fullmatch(lifetime) is None:
        raise DeclarationError(
            f"the lifetime {lifetime!r} is none; one looks like 30d, 12h or infinite", _line()
        )
    if keep is not None and keep < 1:
        raise DeclarationError(f"keep={keep}: at least one version is kept", _line())


# ── methods, checks, reports ────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class _Mark:
    """What a decorator said about a function."""

    kind: str  # method, check, report
    name: str
    description: str
    line: int
    mutates: bool = True
    returns: Spec | None = None
    labels: tuple[str, ...] = ()
    applies_to: tuple[str, ...] = ()
    scope: str = "method"


@overload
def method(function: M, /) -> M: ...
@overload
def method(
    *, name: str = ..., description: str = ..., mutates: bool = ..., returns: Resource[Any] | None = ...
) -> Callable[[M], M]: ...
def method(
    function: Any = None,
    /,
    *,
    name: str = "",
    description: str = "",
    mutates: bool = True,
    returns: Resource[Any] | None = None,
) -> Any:
    """A method of the type: `(self, context)` or `(self, context, arguments)`.

    `mutates=False` says that it only looks: pre-flight checks are not run before it. `returns` is the resource that its return
    value becomes when it has ended; not a write, so that a step with nothing else may be repeated.
    """

    def mark(function: M) -> M:
        return _mark(function, "method", name, description, mutates=mutates, returns=returns)

    return mark(function) if function is not None else mark


@overload
def check(function: M, /) -> M: ...
@overload
def check(
    *, name: str = ..., description: str = ..., labels: Iterable[str] = ..., applies_to: Iterable[str] = ...
) -> Callable[[M], M]: ...
def check(
    function: Any = None,
    /,
    *,
    name: str = "",
    description: str = "",
    labels: Iterable[str] = (),
    applies_to: Iterable[str] = (),
) -> Any:
    """A pre-flight check: `(self, context)` or `(self, context, arguments)`, where the method runs and before it does. It passes
    by returning and fails by raising `CheckFailed`. `applies_to` names methods; none: all that mutate.
    """

    def mark(function: M) -> M:
        given = {"labels": tuple(labels), "applies_to": tuple(applies_to)}
        return _mark(function, "check", name, description, **given)

    return mark(function) if function is not None else mark


@overload
def report(function: M, /) -> M: ...
@overload
def report(
    *, name: str = ..., description: str = ..., labels: Iterable[str] = ..., scope: str = ...
) -> Callable[[M], M]: ...
def report(
    function: Any = None,
    /,
    *,
    name: str = "",
    description: str = "",
    labels: Iterable[str] = (),
    scope: str = "method",
) -> Any:
    """A report: `(self, context, findings)`; it returns Markdown, or a `Report`. That of a method is made after it, also after a failed
    one, from `Findings`; that of a workflow (`scope="workflow"`) after the last step of a run, from `RunFindings`.
    """

    def mark(function: M) -> M:
        if scope not in ("method", "workflow"):
            raise DeclarationError(f"a report's scope is method or workflow, not {scope!r}", _line())
        return _mark(function, "report", name, description, labels=tuple(labels), scope=scope)

    return mark(function) if function is not None else mark


def _mark(function: M, kind: str, name: str, description: str, **more: Any) -> M:
    line = function.__code__.co_firstlineno if hasattr(function, "__code__") else 0
    if not inspect.isfunction(function):
        raise DeclarationError(f"@{kind} stands above a function", line)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DeclarationError(f"{function.__name__}: a {kind} returns, it does not yield", line)
    called = name or function.__name__
    if kind == "report" and len(called) > _REPORT_NAME_MAX:
        raise DeclarationError(f"a report's name has at most {_REPORT_NAME_MAX} characters", line)
    text = description or inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    setattr(function, _MARK, _Mark(kind, called, text, line, **more))
    return function


# ── the class ───────────────────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Method:
    """A declared method, check or report, ready to be called."""

    name: str
    attribute: str  # what the class calls it
    arguments: type | None
    takes_arguments: bool
    mark: _Mark = attrs.field(repr=False)


@attrs.frozen
class Declared:
    """Everything a class says about its type."""

    name: str
    version: str
    description: str
    line: int
    global_arguments: type | None
    reads: frozenset[str]
    secrets: frozenset[str]
    outputs: Mapping[str, Spec]
    methods: Mapping[str, Method]
    checks: Mapping[str, Method]
    reports: Mapping[str, Method]
    shell_arguments: frozenset[str] = frozenset()

    def model_type(self, entry: str, bundle: str = "") -> ModelType:
        """As the orchestrator knows it."""
        return ModelType(
            name=self.name,
            version=self.version,
            description=self.description,
            global_arguments=_schema(self.global_arguments),
            methods={
                each.name: MethodSpec(
                    each.name,
                    each.mark.description,
                    _schema(each.arguments),
                    each.mark.mutates,
                    each.mark.returns.name if each.mark.returns is not None else "",
                )
                for each in self.methods.values()
            },
            outputs={each.name: _output(each) for each in self.outputs.values()},
            shell_arguments=self.shell_arguments,
            bundle=bundle,
            entry=entry,
            reads=self.reads,
            secrets=self.secrets,
            checks={
                each.name: CheckSpec(each.name, each.mark.description, each.mark.labels, each.mark.applies_to)
                for each in self.checks.values()
            },
            reports={
                each.name: ReportSpec(each.name, each.mark.description, each.mark.scope, each.mark.labels)
                for each in self.reports.values()
            },
        )


def _schema(cls: type | None) -> Mapping[str, Any]:
    return schema_of(cls) if cls is not None else _NO_ARGUMENTS


def _output(spec: Spec) -> OutputSpec:
    kind, schema = ("resource", spec.schema) if isinstance(spec, Resource) else ("file", None)
    return OutputSpec(spec.name, kind, spec.content_type, spec.description, schema, spec.lifetime, spec.keep)


def model(
    name: str,
    *,
    version: str,
    arguments: type | None = None,
    reads: Iterable[str] = (),
    secrets: Iterable[str] = (),
) -> Callable[[C], C]:
    """Declares a type. `arguments` is the attrs class of its global arguments; `reads` names other models whose data it may read,
    `secrets` the secrets it may use, each as `vault/key`; both beyond what a definition names.
    """
    line = _line()

    def declare(cls: C) -> C:
        if _TYPE_NAME.fullmatch(name) is None:
            raise DeclarationError(f"{name!r} is no name of a type; one looks like @example/inventory", line)
        if _VERSION.fullmatch(version) is None:
            raise DeclarationError(f"{version!r} is no version; one looks like 2026.02.09.1", line)
        if isinstance(reads, str) or isinstance(secrets, str):
            raise DeclarationError("`reads` and `secrets` are lists of text", line)
        for secret in secrets:
            if _SECRET.fullmatch(secret) is None:
                raise DeclarationError(f"{secret!r} names no secret; one looks like vault/key", line)
        outputs, methods, checks, reports = _members(cls, line)
        _check_made(cls, line)
        declared = Declared(
            name=name,
            version=version,
            description=inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
            line=line,
            global_arguments=arguments,
            reads=frozenset(reads),
            secrets=frozenset(secrets),
            outputs=outputs,
            methods=methods,
            checks=checks,
            reports=reports,
        )
        if arguments is not None:
            _located(schema_of, arguments)
        setattr(cls, _DECLARED, declared)
        return cls

    return declare


def declared(cls: type) -> Declared | None:
    """What `@model` above this very class said; None for any other class."""
    found = vars(cls).get(_DECLARED)
    return found if isinstance(found, Declared) else None


def _members(
    cls: type, line: int
) -> tuple[dict[str, Spec], dict[str, Method], dict[str, Method], dict[str, Method]]:
    outputs: dict[str, Spec] = {}
    found: dict[str, dict[str, Method]] = {"method": {}, "check": {}, "report": {}}
    attributes = {name: value for each in reversed(cls.__mro__) for name, value in vars(each).items()}
    for attribute, value in attributes.items():
        if isinstance(value, Spec):
            if _SPEC_NAME.fullmatch(value.name) is None:
                raise DeclarationError(f"{value.name!r} is no name of an output", line)
            if value.name == "log":
                raise DeclarationError(
                    "an output can not be named 'log': that is what the method prints", line
                )
            if value.name in outputs:
                raise DeclarationError(f"the output {value.name!r} is declared twice", line)
            outputs[value.name] = value
        mark = getattr(value, _MARK, None)
        if isinstance(mark, _Mark):
            if mark.name in found[mark.kind]:
                raise DeclarationError(f"the {mark.kind} {mark.name!r} is declared twice", mark.line)
            found[mark.kind][mark.name] = _method(attribute, value, mark)
    reports_on_runs = any(each.mark.scope == "workflow" for each in found["report"].values())
    if not found["method"] and not reports_on_runs:
        raise DeclarationError(
            f'{cls.__name__} has no method: put @method above one, or @report(scope="workflow")', line
        )
    for each in found["method"].values():
        returns = each.mark.returns
        if returns is not None and not any(returns is spec for spec in outputs.values()):
            raise DeclarationError(
                f"{each.name} returns an output that the class does not declare", each.mark.line
            )
    for each in found["check"].values():
        for name in each.mark.applies_to:
            if name not in found["method"]:
                raise DeclarationError(
                    f"the check {each.name} applies to {name!r}, which is no method", each.mark.line
                )
    return outputs, found["method"], found["check"], found["report"]


def _method(attribute: str, function: Any, mark: _Mark) -> Method:
    """Its arguments' class, from the annotation of its third parameter."""
    code = function.__code__  # not inspect.signature: it takes longer than all the rest of a declaration
    more = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    wanted = (3,) if mark.kind == "report" else (2, 3)
    if code.co_argcount not in wanted or code.co_kwonlyargcount or code.co_flags & more:
        third = "findings" if mark.kind == "report" else "arguments"
        raise DeclarationError(f"the {mark.kind} {mark.name} takes (self, context, {third})", mark.line)
    if code.co_argcount == 2 or mark.kind == "report":
        return Method(mark.name, attribute, None, code.co_argcount == 3, mark)
    third = code.co_varnames[2]
    annotation = function.__annotations__.get(third)
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, function.__globals__)  # noqa: S307 - the author's own annotation
        except Exception as error:  # whatever it is, it is the annotation's fault
            raise DeclarationError(
                f"{mark.name}: the type of its arguments, {annotation!r}, is not known ({error})", mark.line
            ) from None
    if mark.kind == "check" and annotation in (Any, object, None):
        return Method(mark.name, attribute, None, True, mark)
    if not (isinstance(annotation, type) and attrs.has(annotation)):
        raise DeclarationError(
            f"{mark.name}: say the attrs class of its arguments (self, context, {third}: SomeClass)",
            mark.line,
        )
    try:
        schema_of(annotation)
    except DeclarationError as error:
        raise DeclarationError(f"{mark.name}: {error}", mark.line) from None
    return Method(mark.name, attribute, annotation, True, mark)


def _check_made(cls: type, line: int) -> None:
    """That an instance can be made without arguments."""
    if "__init__" not in vars(cls) and cls.__mro__[1:] == (object,) and "__new__" not in vars(cls):
        return
    try:
        signature = inspect.signature(cls)
    except (ValueError, TypeError):
        return
    for each in signature.parameters.values():
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise DeclarationError(
                f"{cls.__name__}() needs {each.name!r}; a model is made without arguments", line
            )


def _located(function: Callable[[Any], Mapping[str, Any]], argument: Any) -> Mapping[str, Any]:
    try:
        return function(argument)
    except DeclarationError as error:
        raise DeclarationError(str(error), error.line or _line()) from None


def _line() -> int:
    """Where the author's file calls this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_lineno

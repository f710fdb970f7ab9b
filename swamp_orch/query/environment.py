"""The one CEL dialect: predicates, `--select`, and `${{ … }}` are compiled and evaluated here and nowhere
else.

Rules:
1. The engine is Google's own. What the dialect adds to the standard is listed in `_LIBRARIES` (optionals,
   strings, lists, sets, math, encoders, bindings, regular expressions; all of them in the engine, none needs
   another file) and in `_NUMBERS`: integers and doubles compare and calculate with each other.
2. An expression is type-checked when it is compiled; a name nobody declared is an error that lists the names
   there are.
3. An evaluation that fails raises `CelError`; it never answers something else instead.
4. Everything here may be used from several threads at once. Environments are cached by what they declare, and
   evaluation shares nothing.

Deliberately unknown here: records, fields, models, where values come from.
"""

import datetime
import difflib
import functools
import itertools
import math
import operator
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import attrs

from swamp_orch.query import syntax
from swamp_orch.query.optionals import misplaced
from swamp_proto.errors import SwampError
from swamp_proto.limits import CEL_RANGE_MAX, PREDICATE_LENGTH_MAX

if TYPE_CHECKING:
    from cel_expr_python import cel


class CelType(StrEnum):
    """The type a variable, parameter or result is declared with. DYN is checked when it is evaluated."""

    DYN = "dyn"
    BOOL = "bool"
    INT = "int"
    DOUBLE = "double"
    STRING = "string"
    BYTES = "bytes"
    LIST = "list"  # of anything
    MAP = "map"  # string -> anything
    STRINGS = "strings"  # map: string -> string
    TIMESTAMP = "timestamp"
    DURATION = "duration"


class CelError(SwampError):
    """An expression that is not CEL, uses what does not exist, or failed. The text has a caret line where
    there is a place."""

    code = "expression"


class UnknownName(CelError):
    """An identifier nobody declared."""

    code = "unknown_name"

    def __init__(self, message: str, name: str, available: Sequence[str]) -> None:
        near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
        super().__init__(message, hint=f"did you mean {near[0]}?" if near else None)
        self.name = name
        self.available = tuple(available)


class MissingKey(CelError):
    """The evaluation asked a map for a key it does not have."""

    code = "missing_key"


@attrs.frozen
class Function:
    """A function an expression may call, possibly with dots in its name (`data.latest`). DYN parameters take
    any value. What it does is given at evaluation."""

    name: str
    parameters: tuple[CelType, ...]
    result: CelType = CelType.DYN


_LIBRARIES: Final = ("bindings", "encoders", "lists", "math", "optional", "regex", "sets", "strings")
NAMESPACES: Final = frozenset({"base64", "cel", "lists", "math", "optional", "regex", "sets", "strings"})
TYPE_NAMES: Final = frozenset(
    {
        "bool",
        "bytes",
        "double",
        "int",
        "list",
        "map",
        "null_type",
        "optional_type",
        "string",
        "type",
        "uint",
        "google",
    }
)
_SAME: Final = ("bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration")
_NUMBERS: Final = ("int", "uint", "double")
_Kind = str | tuple[str, ...]
_A: Final = "A"
_B: Final = "B"
"""In `_overloads`: type parameters; the same type wherever one stands."""


ENGINE_ERRORS: Final = (RuntimeError, TypeError, ValueError, SystemError, MemoryError)
"""What the engine's binding raises instead of answering."""


@attrs.frozen
class Compiled:
    """A checked expression. `names` are the declared names it uses, sorted; `tree` is what it was parsed
    to."""

    text: str
    names: tuple[str, ...]
    result: str  # static type of the result as CEL writes it, `DYN` when only the evaluation can tell
    tree: syntax.Tree = attrs.field(repr=False)
    _program: "cel.Expression" = attrs.field(repr=False)
    _place: str = attrs.field(repr=False, default="expression")

    @property
    def run(self) -> Callable[..., Any]:
        """The engine's own evaluation, for loops over many rows: `run(data=row).value()` is the value, or a
        text that starts with the kind of failure when `type()` is ERROR. `failure` makes an error of it."""
        run: Callable[..., Any] = self._program.eval
        return run

    def evaluate(
        self, data: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> Any:
        """The value as plain Python: None, bool, int, float, str, bytes, list, dict, aware datetime,
        timedelta. `data` is JSON-shaped (dict, list, str, …). Functions may raise `SwampError`s; they leave
        as they are. Raises `CelError`."""
        calls = _Calls(functions or {}, _calls.current)
        _calls.current = calls
        try:
            value = self._program.eval(data=data if type(data) is dict else dict(data))
            plain = _plain(value.value())
            failed = value.type().name() == "ERROR"
        except ENGINE_ERRORS as error:
            # Text that is not Unicode, a value Python has no form for.
            raise self.failure(str(error)) from None
        finally:
            _calls.current = calls.outer
        if calls.raised is not None and failed:
            raise calls.raised
        if failed:
            raise self.failure(str(plain))
        return plain

    def failure(self, text: str) -> CelError:
        """The engine's words about a failed evaluation as an error."""
        kind, _, problem = text.partition(": ")
        if kind == "NOT_FOUND":
            return MissingKey(f"{self._place} `{self.text}` failed: {_lower(problem)}", hint=_MISSING_HINT)
        if not kind.isupper():
            problem = text
        if "function return value to a Python type" in problem:
            problem = "the result is an optional; end it with .orValue(…)"
        return CelError(f"{self._place} `{self.text}` failed: {_lower(_operators(problem))}")


_MISSING_HINT: Final = "`a.?b.orValue(x)` and `has(a.b)` ask without failing"


def compile_expression(
    text: str,
    variables: Mapping[str, CelType],
    functions: Sequence[Function] = (),
    *,
    place: str = "expression",
    noun: str = "name",
) -> Compiled:
    """Parse and check `text`. `place` and `noun` word the errors: `Unknown {noun} "x" in {place}.` Raises
    `CelError`, `UnknownName`."""
    if len(text) > PREDICATE_LENGTH_MAX:
        raise CelError(f"{place} is {len(text)} characters long; {PREDICATE_LENGTH_MAX} is the most")
    if not text.strip():
        raise CelError(f"{place} is empty")
    environment = _environment(tuple(sorted(variables.items())), tuple(functions))
    parsed = _compile(environment, text, place, check=False)
    try:
        tree = syntax.decode(parsed.serialize())
    except RecursionError:
        raise CelError(f"{place} is nested too deeply") from None
    called = frozenset(function.name for function in functions)
    namespaces = NAMESPACES.union(name.partition(".")[0] for name in called if "." in name)
    used: set[str] = set()
    for found in syntax.free_names(tree.root, namespaces - frozenset(variables)):
        if found.name in variables:
            used.add(found.name)
        elif found.name not in TYPE_NAMES:
            available = sorted(variables)
            message = f'Unknown {noun} "{found.name}" in {place}.\nAvailable: {", ".join(available)}'
            raise UnknownName(message, found.name, available)
    for node in syntax.walk(tree.root):
        if isinstance(node, syntax.Call) and node.function == "range" and _is_name(node.target, "lists"):
            _check_range(node, text, tree, place)
    program = _compile(environment, text, place, check=True)
    try:
        checked = syntax.decode_checked(program.serialize())
        wrong = misplaced(checked) if checked is not None else None
        result = program.return_type().name()
    except RecursionError:
        raise CelError(f"{place} is nested too deeply") from None
    except RuntimeError as error:  # a map whose keys are of a type no map can have
        raise _translated(str(error), place) from None
    if wrong is not None:
        raise CelError(
            f"invalid {place} at {_pointed(text, tree.positions.get(wrong.id, 0))}an optional may not stand here",
            hint="end it with .orValue(…), or write {?key: …} and [?…]",
        )
    if result.startswith("optional_type") or _is_lookup(tree.root):
        # An optional has no plain value; an absent one answers null.
        program = _compile(
            environment, f"({text}\n).hasValue() ? dyn(({text}\n).value()) : dyn(null)", place, check=True
        )
        result = "DYN"
    return Compiled(text, tuple(sorted(used)), result, tree, program, place)


def _is_lookup(node: syntax.Node) -> bool:
    """`a.?b`, `a[?"b"]`: optionals, whatever the checker takes them for."""
    return isinstance(node, syntax.Call) and node.function in (syntax.OPTIONAL_SELECT, syntax.OPTIONAL_INDEX)


def _is_name(node: syntax.Node | None, name: str) -> bool:
    return isinstance(node, syntax.Name) and node.name == name


def _check_range(node: syntax.Call, text: str, tree: syntax.Tree, place: str) -> None:
    """The engine makes the whole list in memory, whatever its length: so the length is written down and
    bounded."""
    match node.arguments:
        case (syntax.Constant(value=int() as count),) if count <= CEL_RANGE_MAX:
            return
    raise CelError(
        f"invalid {place} at {_pointed(text, tree.positions.get(node.id, 0))}"
        f"lists.range takes a number up to {CEL_RANGE_MAX}, written as such"
    )


def _pointed(text: str, at: int) -> str:
    """`line:column: ` of a place in the text."""
    line = text.count("\n", 0, at) + 1
    return f"{line}:{at - (text.rfind(chr(10), 0, at) + 1) + 1}: "


def json_value(value: Any) -> Any:
    """A value of `evaluate` as JSON has it: instants as ISO 8601, durations as `1.5s`, bytes as base64, map
    keys as text; doubles that JSON cannot say are texts (`NaN`, `Infinity`)."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isfinite(value):
                return value
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        case list():
            return [json_value(item) for item in value]
        case dict():
            return {_key(key): json_value(item) for key, item in value.items()}
        case bytes():
            import base64

            return base64.b64encode(value).decode()
        case datetime.datetime():
            text = value.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
            return text.replace("+00:00", "Z")
        case datetime.timedelta():
            return f"{value.total_seconds():.9f}".rstrip("0").rstrip(".") + "s"
        case _:
            return str(value)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


# ── environments ────────────────────────────────────────────────────────────────────────────────────────────


class _Calls:
    """What the functions of one evaluation do, and the first error one of them raised."""

    __slots__ = ("functions", "outer", "raised")

    def __init__(self, functions: Mapping[str, Callable[..., Any]], outer: "_Calls | None") -> None:
        self.functions = functions
        self.outer = outer  # an evaluation inside a function of another
        self.raised: Exception | None = None


class _Current(threading.local):
    current: _Calls | None = None


_calls: Final = _Current()
_making: Final = threading.Lock()


def _invoke(name: str, *arguments: Any) -> Any:
    calls = _calls.current
    found = calls.functions.get(name) if calls is not None else None
    if calls is None or found is None:
        raise RuntimeError(f"{name}() is not available here")
    try:
        return found(*(_plain(argument) for argument in arguments))
    except Exception as error:  # raised again where the expression was evaluated
        if calls.raised is None:
            calls.raised = error
        raise RuntimeError(str(error)) from None


@functools.lru_cache(maxsize=64)
def _environment(variables: tuple[tuple[str, CelType], ...], functions: tuple[Function, ...]) -> "cel.Env":
    from cel_expr_python import cel

    types = _types()
    declared = [
        cel.FunctionDecl(
            name,
            [
                cel.Overload(
                    f"{name}_{'_'.join(kind.value for kind in kinds)}",
                    return_type=types[function.result],
                    parameters=[types[kind] for kind in kinds],
                    is_member=False,
                    impl=functools.partial(_invoke, name),
                )
                for function in functions
                if function.name == name
                for kinds in _expanded(function.parameters)
            ],
        )
        for name in dict.fromkeys(function.name for function in functions)
    ]
    with _making:
        return cel.NewEnv(
            config=cel.NewEnvConfigFromYaml(_configuration()),
            variables={name: types[kind] for name, kind in variables},
            extensions=[_arithmetic()],
            functions=declared or None,
        )


_KINDS: Final = tuple(kind for kind in CelType if kind not in (CelType.DYN, CelType.STRINGS))


def _expanded(parameters: tuple[CelType, ...]) -> list[tuple[CelType, ...]]:
    """The engine finds a Python function by the exact kinds of its arguments, so `dyn` is declared as each
    kind there is."""
    choices = [_KINDS if kind is CelType.DYN else (kind,) for kind in parameters]
    return list(itertools.product(*choices))


@functools.cache
def _types() -> "dict[CelType, cel.Type]":
    from cel_expr_python import cel

    kinds = cel.Type
    return {
        CelType.DYN: kinds.DYN,
        CelType.BOOL: kinds.BOOL,
        CelType.INT: kinds.INT,
        CelType.DOUBLE: kinds.DOUBLE,
        CelType.STRING: kinds.STRING,
        CelType.BYTES: kinds.BYTES,
        CelType.LIST: kinds.LIST,
        CelType.MAP: kinds.MAP,
        CelType.STRINGS: kinds.Map(kinds.STRING, kinds.STRING),
        CelType.TIMESTAMP: kinds.TIMESTAMP,
        CelType.DURATION: kinds.DURATION,
    }


def _overloads() -> dict[str, list[tuple[tuple[_Kind, ...], str]]]:
    """Function -> (parameters, result). The engine *evaluates* comparisons across number types, but its
    checker does not know them unless they are declared; a declaration replaces the standard one, so the
    standard overloads are here again."""
    mixed = [(left, right) for left in _NUMBERS for right in _NUMBERS if left != right]
    found: dict[str, list[tuple[tuple[_Kind, ...], str]]] = {
        "@in": [((_A, ("list", _A)), "bool"), ((_A, ("map", _A, _B)), "bool")],
        "_?_:_": [(("bool", _A, _A), _A)],
    }
    found["@in"] += [((left, ("list", right)), "bool") for left, right in mixed]
    found["_?_:_"] += [(("bool", left, right), "dyn") for left, right in mixed]
    for name in ("_==_", "_!=_"):
        found[name] = [((_A, _A), "bool"), *((pair, "bool") for pair in mixed)]
    for name in ("_<_", "_<=_", "_>_", "_>=_"):
        found[name] = [(pair, "bool") for pair in ((kind, kind) for kind in _SAME)]
        found[name] += [(pair, "bool") for pair in mixed]
    return found


@functools.cache
def _configuration() -> str:
    """The environment as the engine's own configuration text (JSON is YAML)."""
    import json

    def declared(kind: _Kind) -> dict[str, Any]:
        if isinstance(kind, tuple):
            return {"type_name": kind[0], "params": [declared(parameter) for parameter in kind[1:]]}
        return {"type_name": kind, "is_type_param": True} if kind in (_A, _B) else {"type_name": kind}

    overloads = _overloads()
    return json.dumps(
        {
            "extensions": [{"name": name} for name in _LIBRARIES],
            "stdlib": {"exclude_functions": [{"name": name} for name in overloads]},
            "functions": [
                {
                    "name": name,
                    "overloads": [
                        {
                            "id": f"{name} {number}",
                            "args": [declared(kind) for kind in kinds],
                            "return": declared(result),
                        }
                        for number, (kinds, result) in enumerate(found)
                    ],
                }
                for name, found in overloads.items()
            ],
        }
    )


@functools.cache
def _arithmetic() -> "cel.CelExtension":
    """`+ - * /` between integers and doubles: the result is a double."""
    from cel_expr_python import cel

    kinds = cel.Type
    operators: tuple[tuple[str, Callable[[float, float], float]], ...] = (
        ("_+_", operator.add),
        ("_-_", operator.sub),
        ("_*_", operator.mul),
        ("_/_", _divide),
    )
    pairs = [
        (left, right)
        for left, right in itertools.product((kinds.INT, kinds.UINT, kinds.DOUBLE), repeat=2)
        if (left == kinds.DOUBLE) != (right == kinds.DOUBLE)
    ]

    def calculate(function: Callable[[float, float], float], left: Any, right: Any) -> float:
        return function(float(left), float(right))

    return cel.CelExtension(
        "swamp.numbers",
        [
            cel.FunctionDecl(
                name,
                [
                    cel.Overload(
                        f"swamp{name}{left.name()}_{right.name()}",
                        return_type=kinds.DOUBLE,
                        parameters=[left, right],
                        is_member=False,
                        impl=functools.partial(calculate, function),
                    )
                    for left, right in pairs
                ],
            )
            for name, function in operators
        ],
    )


def _divide(left: float, right: float) -> float:
    """As doubles divide in CEL: by zero it is an infinity or not a number, not an error."""
    if right:
        return left / right
    if not left or math.isnan(left):
        return math.nan
    return math.copysign(math.inf, left) * math.copysign(1.0, right)


def _compile(environment: "cel.Env", text: str, place: str, *, check: bool) -> "cel.Expression":
    try:
        return environment.compile(text, disable_check=not check)
    except RuntimeError as error:
        raise _translated(str(error), place) from None
    except (UnicodeEncodeError, TypeError):  # the binding says either for half a surrogate pair
        raise CelError(f"{place} is not Unicode text") from None


_NOISE: Final = re.compile(r"^[A-Z_]+: (?=ERROR: |[A-Z])|(?: \[[A-Z_]+\])$")
_AT: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): ")


def _translated(text: str, place: str) -> CelError:
    """The engine's message without its own status words; the caret lines stay."""
    text = _NOISE.sub("", _NOISE.sub("", text))
    text = _AT.sub(lambda match: f"{match[1]}:{match[2]}: ", text)
    return CelError(
        f"invalid {place} at {_operators(text)}"
        if _AT_START.match(text)
        else f"invalid {place}: {_operators(text)}"
    )


_AT_START: Final = re.compile(r"\d+:\d+: ")
_OPERATOR: Final = re.compile(r"'(?:@(in)|_?([-+*/%<>=!&|?:_\[\].]+?)_?)'(?= applied)")


def _operators(text: str) -> str:
    """`'_==_'` as people write it."""
    return _OPERATOR.sub(lambda match: "'" + (match[1] or match[2]).replace("_", "") + "'", text)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _plain(value: Any) -> Any:
    """What the engine answered as plain Python. Its own `plain_value` is not used: it ends the process for a
    map with an optional in it; its layers one by one raise instead."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_plain(item if type(item) in _PLAIN else _layer(item)) for item in value]
    if kind is dict:
        return {key: _plain(item if type(item) in _PLAIN else _layer(item)) for key, item in value.items()}
    if kind is bytearray:
        return bytes(value)
    name = getattr(value, "name", None)
    return str(name()).lower() if callable(name) else value


def _layer(item: Any) -> Any:
    """A nested value of the engine, one layer further; what it gave to a function is plain already."""
    return item.value() if hasattr(item, "value") else item


_PLAIN: Final = frozenset({str, int, bool, float, type(None), datetime.datetime, datetime.timedelta})

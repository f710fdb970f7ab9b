"""The exact meaning of `Term`, in plain Python: the authority both stores answer by.

Rules: types are never mixed (`1`, `true`, `"1"` are three different things) except that integers and floats compare as
numbers; what is missing or of another type matches nothing, `!=` included; text compares by code points; `false < true`.
JSON integers beyond 64 bits are floats. A duplicate JSON key means its last value.

Attributes are the parsed content of a JSON record up to `ATTRIBUTES_MAX` bytes; a path walks JSON objects only. Content that is
not JSON, or larger, has no attributes. Knows nothing of SQL or rows.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

from swamp_orch.store.interface import Comparison, Selection, Term
from swamp_proto.errors import Unsupported
from swamp_proto.limits import ATTRIBUTES_MAX

Scalar = str | int | float | bool


class Sort(Enum):
    """What values a field can have; a term of another sort never matches."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    INSTANT = "instant"  # text as users see it, ISO 8601; kept as milliseconds


SORTS: Final[Mapping[str, Sort]] = {
    "id": Sort.TEXT,
    "name": Sort.TEXT,
    "version": Sort.NUMBER,
    "isLatest": Sort.FLAG,
    "isDeleted": Sort.FLAG,
    "createdAt": Sort.INSTANT,
    "modelName": Sort.TEXT,
    "modelType": Sort.TEXT,
    "modelId": Sort.TEXT,
    "specName": Sort.TEXT,
    "dataType": Sort.TEXT,
    "contentType": Sort.TEXT,
    "lifetime": Sort.TEXT,
    "ownerType": Sort.TEXT,
    "streaming": Sort.FLAG,
    "size": Sort.NUMBER,
    "ownerRef": Sort.TEXT,
    "workflowId": Sort.TEXT,
    "workflowRunId": Sort.TEXT,
    "workflowName": Sort.TEXT,
    "jobName": Sort.TEXT,
    "stepName": Sort.TEXT,
    "dispatch": Sort.TEXT,
    "source": Sort.TEXT,
    "outcome": Sort.TEXT,
    "sha256": Sort.TEXT,
}
"""Every field a term can name beside `tags.<key>` and `attributes.<path>`."""

COMPARE: Final[Mapping[Comparison, Callable[[Any, Any], bool]]] = {
    Comparison.EQ: operator.eq,
    Comparison.NE: operator.ne,
    Comparison.LT: operator.lt,
    Comparison.LE: operator.le,
    Comparison.GT: operator.gt,
    Comparison.GE: operator.ge,
}

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


def sort_of(value: object) -> Sort | None:
    """TEXT, NUMBER or FLAG; None for what no term can match (null, lists, maps)."""
    match value:
        case bool():
            return Sort.FLAG
        case int() | float():
            return Sort.NUMBER
        case str():
            return Sort.TEXT
    return None


def number(value: int | float) -> int | float:
    """Integers beyond 64 bits are floats, as in CEL and SQL."""
    if isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def compares(comparison: Comparison, actual: object, values: tuple[Scalar, ...]) -> bool:
    """Whether `actual` stands in the relation to one of `values` (only EQ has several)."""
    sort = sort_of(actual)
    if sort is None:
        return False
    if sort is Sort.NUMBER:
        actual = number(actual)  # type: ignore[arg-type]
    test = COMPARE[comparison]
    return any(sort_of(value) is sort and test(actual, value) for value in values)


def matches(
    term: Term, column: Callable[[str], object], tags: Mapping[str, str], attributes: Callable[[], object]
) -> bool:
    """Whether a record matches. `column(field)` gives a value as users see it; `attributes()` parses content when needed."""
    where, _, path = term.field.partition(".")
    if not path:
        return compares(term.comparison, column(where), term.values)
    if where == "tags":
        return compares(term.comparison, tags.get(path), term.values)
    return compares(term.comparison, walk(attributes(), path), term.values)


def walk(document: object, path: str) -> object:
    """The value at a dotted path of JSON objects, or None."""
    for key in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def is_json(content_type: str) -> bool:
    essence = content_type.partition(";")[0].strip().lower()
    return essence == "application/json" or essence.endswith("+json")


def parse_attributes(content: bytes | None) -> object:
    """The document in JSON content, or None where there is none (not JSON, too large, not RFC 8259)."""
    if content is None or len(content) > ATTRIBUTES_MAX:
        return None
    try:
        return json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def checked(selection: Selection) -> Selection:
    """The selection with its terms normalised; raises Unsupported for one that has no meaning here."""
    terms = tuple(_checked(term) for term in selection.terms)
    return Selection(terms, selection.latest_only, selection.deleted, selection.with_content)


def _checked(term: Term) -> Term:
    where, dot, path = term.field.partition(".")
    if not (where in SORTS and not dot) and not (where in ("tags", "attributes") and path):
        raise Unsupported(f'the store has no field "{term.field}"')
    if not term.values or (len(term.values) > 1 and term.comparison is not Comparison.EQ):
        raise Unsupported(f'a term on "{term.field}" has {len(term.values)} values')
    values: list[Scalar] = []
    for value in term.values:
        if isinstance(value, float) and math.isnan(value):
            raise Unsupported(f'a term on "{term.field}" compares with NaN')
        if isinstance(value, str):
            _unicode(value, term.field)
        values.append(value if isinstance(value, str | bool) else number(value))
    _unicode(term.field, "field")
    return Term(term.field, term.comparison, tuple(values))


def _unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unsupported(f'a term on "{field}" holds half a surrogate pair') from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

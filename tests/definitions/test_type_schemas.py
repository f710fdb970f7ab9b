"""Schemas of types: every built-in one validates its own examples, and our check says what JSON Schema says, of any schema and value."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swamp_proto.errors import InvalidDefinition
from swamp_proto.schema_check import FORMATS, check_value, problems_of
from swamp_worker.models.built_in import BUILT_IN
from swamp_worker.models.documents import from_document, to_document


def parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield schema
    for part in (*schema.get("properties", {}).values(), *schema.get("anyOf", ())):
        yield from parts(part)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from parts(schema[key])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_builtin_type_validates_its_own_examples(call: Callable[..., Any], name: str) -> None:
    found = call("model.type_describe", type=name)
    schemas = [found["globalArguments"], *(method["arguments"] for method in found["methods"])]
    schemas += [output["schema"] for output in found["dataOutputSpecs"] if "schema" in output]
    seen = 0
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
        assert problems_of(schema) == []
        for part in parts(schema):
            for example in (*part.get("examples", ()), *([part["default"]] if "default" in part else [])):
                seen += 1
                jsonschema.validate(example, part)
                assert check_value(part, example) == []
    assert seen, "a type that comes with swamp shows how it is used"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_type_as_a_document_is_the_same_type(name: str) -> None:
    assert from_document(to_document(BUILT_IN[name])) == BUILT_IN[name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "extra is not known"),
        ({"name": 3}, "name must be text, not 3"),
        ({"methods": {"go": {"name": "go"}}}, "methods.go.description is missing"),
        ({"reads": "network"}, "reads must be a list of texts, not 'network'"),
        ({"outputs": []}, "outputs must be a map, not []"),
    ],
)
def test_a_document_that_is_no_type_is_refused_with_its_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        from_document({**to_document(BUILT_IN["command/shell"]), **change})
    assert str(caught.value).startswith(said)


# ── our check and the standard's ────────────────────────────────────────────────────────────────────────────────────────

words = st.text("ab1", max_size=3)
numbers = st.integers(-3, 3) | st.sampled_from(
    [-1.5, 0.5, 2.5]
)  # 1.0 is an integer to the standard and not to us
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
small = st.integers(0, 3)
bounds = st.integers(-3, 3)


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = ("string", "number", "integer", "boolean", "array", "object", "null")
    keywords = draw(
        st.sets(
            st.sampled_from(["type", "enum", "const", "text", "number", "list", "map", "any"]), max_size=3
        )
    )
    if "type" in keywords:
        found["type"] = draw(
            st.sampled_from(names) | st.lists(st.sampled_from(names), min_size=1, unique=True)
        )
    if "enum" in keywords:
        found["enum"] = draw(st.lists(values, min_size=1, max_size=3))
    if "const" in keywords:
        found["const"] = draw(values)
    if "text" in keywords:
        found |= draw(
            st.fixed_dictionaries({}, optional={"minLength": small, "maxLength": small, "pattern": st.sampled_from(["a", "^b", "1$"])})
        )  # fmt: skip
    if "number" in keywords:
        limits = dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), bounds)
        found |= draw(
            st.fixed_dictionaries({}, optional={**limits, "multipleOf": st.sampled_from([1, 2, 0.5])})
        )
    if depth == 0:
        return found
    inner = schemas(depth - 1)
    if "list" in keywords:
        limits = {"minItems": small, "maxItems": small, "uniqueItems": st.booleans(), "items": inner}
        found |= draw(st.fixed_dictionaries({}, optional=limits))
    if "map" in keywords:
        limits = {
            "properties": st.dictionaries(words, inner, max_size=2),
            "required": st.lists(words, max_size=2, unique=True),
            "additionalProperties": st.booleans() | inner,
            "minProperties": small,
            "maxProperties": small,
        }
        found |= draw(st.fixed_dictionaries({}, optional=limits))
    if "any" in keywords:
        found["anyOf"] = draw(st.lists(inner, min_size=1, max_size=2))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas(), values)
def test_our_check_says_what_json_schema_says(schema: dict[str, Any], value: Any) -> None:
    assert problems_of(schema) == []
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (check_value(schema, value, "v") == []) is expected


GOOD = {
    "date-time": ["2026-11-21T12:00:00Z", "2026-11-21T12:00:00.123456789+01:00"],
    "date": ["2024-02-29"],
    "email": ["a@b"],
    "hostname": ["example.com", "h"],
    "ipv4": ["127.0.0.1"],
    "ipv6": ["::1"],
    "uri": ["https://example.com/", "urn:x:y"],
    "uuid": ["0f8fad5b-d9cb-469f-a165-70867728950e"],
}
BAD = {
    "date-time": ["2026-11-21", "2026-11-21T12:00:00", "2026-13-21T12:00:00Z", ""],
    "date": ["2026-02-29", "20260201", "2026-02-01T00:00:00Z"],
    "email": ["a", "a@", "a b@c"],
    "hostname": ["-a", "a..b", "a_b", "x" * 64],
    "ipv4": ["127.0.0.256", "127.1", "::1"],
    "ipv6": ["127.0.0.1", ":::"],
    "uri": ["example.com", "https://", "http://a b/"],
    "uuid": ["0f8fad5bd9cb469fa16570867728950e", "x"],
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_checked(name: str) -> None:
    schema = {"type": "string", "format": name}
    for text in GOOD[name]:
        assert check_value(schema, text, "v") == [], text
    for text in BAD[name]:
        (problem,) = check_value(schema, text, "v")
        assert problem.startswith("v must be a")
    assert check_value(schema, "${{ inputs.x }}", "v", expressions=True) == []


def test_the_choice_that_was_meant_says_what_is_wrong() -> None:
    schema = {
        "anyOf": [{"type": "string", "minLength": 2}, {"type": "integer", "minimum": 5}, {"type": "null"}]
    }
    assert check_value(schema, 3, "v") == ["v must be at least 5"]
    assert check_value(schema, "a", "v") == ["v must have at least 2 characters"]
    assert check_value(schema, None, "v") == []
    (problem,) = check_value(schema, [], "v")
    assert problem.startswith("v is none of what it can be: v must be text")


@pytest.mark.parametrize(
    "schema",
    [
        3, {"oneOf": []}, {"type": "text"}, {"type": 3}, {"properties": []}, {"properties": {"a": 1}}, {"items": []}, {"enum": []},
        {"required": "a"}, {"pattern": "("}, {"pattern": 1}, {"format": "phone"}, {"minLength": -1}, {"maximum": "1"}, {"multipleOf": 0},
        {"anyOf": []}, {"anyOf": [1]}, {"additionalProperties": 3}, {"sensitive": "yes"}, {"uniqueItems": 1},
    ],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused_before_any_value_meets_it(schema: Any) -> None:
    assert problems_of(schema)


def test_a_schema_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"items": deep}
    assert any("inside each other" in problem for problem in problems_of(deep))

"""Attrs classes as JSON Schema, JSON as attrs classes, and what is said when either can not be."""

import enum
from typing import Any, Literal, Optional

import attrs
import pytest

from swamp_proto.schema_check import problems_of
from swamp_worker.sdk import DeclarationError, InvalidArguments, about, from_json, schema_of, to_json


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Port:
    number: int = attrs.field(metadata=about(minimum=1, maximum=65535))
    open: bool = True


@attrs.frozen
class Everything:
    text: str = attrs.field(metadata=about("Some text", minLength=1))
    amount: float
    colour: Colour
    ports: list[Port]
    by_name: dict[str, Port]
    mode: Literal["fast", "slow"] = "fast"
    note: Optional[str] = None  # noqa: UP045 - both spellings are understood
    tags: tuple[str, ...] = ()
    key: str = attrs.field(default="", metadata=about(sensitive=True, name="accessKey"))
    more: dict[str, Any] = attrs.field(factory=dict)


GOOD: dict[str, Any] = {
    "text": "x",
    "amount": 2,
    "colour": "blue",
    "ports": [{"number": 80}],
    "by_name": {"web": {"number": 443, "open": False}},
    "accessKey": "k",
}


def test_the_schema_says_what_the_class_says() -> None:
    schema = schema_of(Everything)
    assert problems_of(schema) == []
    assert schema["required"] == ["text", "amount", "colour", "ports", "by_name"]
    properties = schema["properties"]
    assert properties["text"] == {"type": "string", "description": "Some text", "minLength": 1}
    assert properties["amount"] == {"type": "number"}
    assert properties["colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert properties["mode"] == {"type": "string", "enum": ["fast", "slow"], "default": "fast"}
    assert properties["note"] == {"type": ["string", "null"]}
    assert properties["accessKey"] == {"type": "string", "sensitive": True, "default": ""}
    assert properties["ports"]["items"]["properties"]["number"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 65535,
    }
    assert properties["more"] == {"type": "object"} | {"additionalProperties": {}}


def test_json_becomes_the_class_and_goes_back() -> None:
    found = from_json(Everything, GOOD)
    assert found.amount == 2.0
    assert type(found.amount) is float
    assert found.colour is Colour.BLUE
    assert found.by_name["web"] == Port(443, False)
    assert found.key == "k"
    assert from_json(Everything, to_json(found)) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": ""}, "text must not be empty"),
        ({"amount": True}, "amount must be a number"),
        ({"amount": "2"}, "amount must be a number"),
        ({"colour": "green"}, "colour must be one of"),
        ({"ports": [{"number": 0}]}, "ports[0].number must be at least 1"),
        ({"by_name": {"web": {}}}, "by_name.web.number is required"),
        ({"nonsense": 1}, "nonsense is not a valid input property"),
        ({"mode": None}, "mode cannot be null"),
    ],
)
def test_every_refusal_names_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArguments, match=said.replace("[", r"\[")):
        from_json(Everything, {**GOOD, **change})


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidArguments) as caught:
        from_json(Everything, {"text": 1, "amount": "x"})
    assert "text must be text" in str(caught.value)
    assert "amount must be a number" in str(caught.value)
    assert "colour is required" in str(caught.value)


def test_a_validator_of_the_authors_names_the_field() -> None:
    @attrs.frozen
    class Even:
        number: int = attrs.field()

        @number.validator
        def _even(self, attribute: Any, value: int) -> None:
            if value % 2:
                raise ValueError(f"{value} is odd")

    @attrs.frozen
    class Outer:
        inner: Even

    with pytest.raises(InvalidArguments, match="inner: 3 is odd"):
        from_json(Outer, {"inner": {"number": 3}})


@pytest.mark.parametrize("kind", [set[int], bytes, complex, int | str, dict[int, str], object()])
def test_a_type_without_a_form_in_json_is_refused_when_it_is_declared(kind: Any) -> None:
    wrong = attrs.make_class("Wrong", {"field": attrs.field(type=kind)})
    with pytest.raises(DeclarationError, match=r"Wrong\.field"):
        schema_of(wrong)


def test_keywords_nobody_checks_are_refused() -> None:
    with pytest.raises(DeclarationError, match="oneOf"):
        about(oneOf=[])


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, {"a": object()}, {"a": [b"x"]}])
def test_what_json_can_not_hold_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArguments):
        to_json(value)

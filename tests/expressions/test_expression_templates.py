"""The tokenizer, trees, and the look-alikes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_orch.expressions.template import (
    Expression,
    ExpressionError,
    Template,
    literal_tree,
    lookalikes,
    parse,
    parse_tree,
    templates,
)


def texts(template: Template) -> list[str]:
    return [part.text if isinstance(part, Expression) else f"'{part}'" for part in template.parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["''"]),
        ("plain", ["'plain'"]),
        ("${{ a }}", ["a"]),
        ("${{a}}${{ b}}", ["a", "b"]),
        ("x ${{ a }} y", ["'x '", "a", "' y'"]),
        ('${{ {"a": {"b": 1}} }}', ['{"a": {"b": 1}}']),  # W36: a map literal does not end it
        ('${{{"a":{"b":1}}}}', ['{"a":{"b":1}}']),
        ('${{ "}}" + a }}', ['"}}" + a']),
        ("${{ '}}' }}", ["'}}'"]),
        (r"${{ 'it\'s }}' }}", [r"'it\'s }}'"]),
        (r"${{ r'\' + a }}", [r"r'\' + a"]),
        ('${{ """a " }} b""" }}z', ['"""a " }} b"""', "'z'"]),
        ("${{ a // }} no\n + b }}", ["a // }} no\n + b"]),
        ('${{ "${{" }}', ['"${{"']),
        ("$${{ a }}", ["'$'", "a"]),
        ("{{ a }} ${ b } }} $", ["'{{ a }} ${ b } }} $'"]),
        ("${{ for_br'a' }}", ["for_br'a'"]),
    ],
)
def test_the_tokenizer_finds_the_end_w36(text: str, parts: list[str]) -> None:
    assert texts(parse(text)) == parts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${{ a", "without its '}}' (line 1, column 1)"),
        ("x\n  ${{ a }", "a single '}'"),
        ("x\n  ${{ a", "line 2, column 3"),
        ("${{ ( }}", "'}' closes nothing"),
        ("${{ [1 ", "'[' is not closed"),
        ('${{ "a }}', "a string that does not end in an expression (line 1, column 5)"),
        ("${{ }}", "empty expression"),
        ("${{ a ) }}", "')' closes nothing"),
    ],
)
def test_what_does_not_end_is_an_error_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, "models/x.yaml:7")
    assert problem in str(caught.value) and str(caught.value).startswith("models/x.yaml:7: ")


@given(st.text(alphabet="${}'\"\\/ra\n[]()", max_size=40))
def test_every_text_parses_or_is_refused_and_nothing_is_lost(text: str) -> None:
    try:
        template = parse(text)
    except ExpressionError:
        assert "${{" in text
        return
    assert [part for part in template.parts if isinstance(part, str)] or template.expressions
    at = 0
    for part in template.parts:
        if isinstance(part, str):
            assert text.startswith(part, at)
            at += len(part)
        else:
            assert part.at == at
            at = text.index(part.text, at) + len(part.text)
            at = text.index("}}", at) + 2
    assert at == len(text)


def test_whole_values() -> None:
    assert parse("${{ a }}").whole == Expression("a", 0)
    assert parse("${{ a }}\n").whole is not None  # YAML's block texts end so
    assert parse(" ${{ a }}").whole is None
    assert parse("${{ a }}${{ b }}").whole is None
    assert parse("plain").whole is None


def test_a_tree_has_the_shape_of_the_value_and_keys_are_literal() -> None:
    tree = parse_tree({"a": ["${{ x }}", 1, None], "b": {"c": "text"}}, "f.yaml:3")
    assert isinstance(tree, dict) and tree["b"] == {"c": ("text",)}
    (found,) = templates(tree)
    assert found.where == "f.yaml:3.a[0]"
    with pytest.raises(ExpressionError, match="a key cannot hold an expression"):
        parse_tree({"${{ x }}": 1})


def test_a_literal_tree_has_no_templates_whatever_it_contains() -> None:
    assert list(templates(literal_tree({"a": "${{ vault.get('v', 'k') }}"}))) == []


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("{{ inputs.x }}", "${{ inputs.x }}"),
        ("echo ${ inputs.name }", "${{ inputs.name }}"),
        ("${inputs.name}", "${{ inputs.name }}"),
        ("$ {{ env.HOME }}", "${{ env.HOME }}"),
        ("$(inputs.x)", "${{ inputs.x }}"),
        ("{{vault.get('a', 'b')}}", "${{ vault.get('a', 'b') }}"),
    ],
)
def test_lookalikes_are_flagged(text: str, meant: str) -> None:
    (found,) = lookalikes(parse(f"${{{{ ok }}}} {text} rest"))
    assert found.meant == meant
    assert f"${{{{ ok }}}} {text}".startswith(found.found, found.at)


@pytest.mark.parametrize(
    "text",
    [
        "${HOME} ${run} ${data[0]}",
        "docker ps --format '{{.Names}}'",
        "${{ inputs.x }}",
        "$(inputs)",
        "{{ x }}",
    ],
)
def test_what_shells_and_other_tools_write_is_not_flagged(text: str) -> None:
    assert lookalikes(parse(text)) == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("model.remote-echo.x", 'model["remote-echo"].x'),
        ('model.a-b.x + "model.a-b.x"', 'model["a-b"].x + "model.a-b.x"'),
        ("model.plain.x", "model.plain.x"),
        ("my_model.a-b", "my_model.a-b"),
        ("x.model.a-b", "x.model.a-b"),
        ("model.a - b", "model.a - b"),
        ("raw(inputs.x)", "inputs.x"),
        ("raw (f(')') + (a))", "f(')') + (a)"),
        ("raw(a) + raw(b)", "raw(a) + raw(b)"),
    ],
)
def test_what_the_engine_gets(text: str, code: str) -> None:
    assert Expression(text, 0).code == code

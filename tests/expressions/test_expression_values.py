"""Evaluation, scopes, secrets, references."""

import json
from typing import Any

import pytest

from swamp_orch.expressions.evaluate import evaluate, evaluate_tree
from swamp_orch.expressions.references import SecretReference, problems, references, warnings
from swamp_orch.expressions.scope import Scope
from swamp_orch.expressions.secret import Secret, SecretRef, mask_tree, resolve_tree, secrets_in
from swamp_orch.expressions.template import ExpressionError, literal_tree, parse, parse_tree
from swamp_proto.errors import NotFound

RECORD = {"name": "result", "version": 3, "attributes": {"stdout": "hi", "n": 1}}


def latest(model: str, name: str, *vary: Any) -> Any:
    if model == "gone":
        raise NotFound("model 'gone' is not there", hint="swamp model search")
    return None if name == "none" else {**RECORD, "modelName": model, "vary": list(vary)}


SCOPE = Scope(
    values={
        "inputs": {"name": "Ada", "env": "prod", "n": 3, "list": [1, 2], "map": {"k": "v"}, "none": None},
        "self": {"item": {"key": "a", "value": 1}, "name": "remote-echo"},
        "run": {"id": "r-1"},
        "env": {"HOME": "/root"},
    },
    functions={
        "data.latest": latest,
        "data.version": lambda model, name, *rest: {"version": rest[-1], "vary": list(rest[:-1])},
        "data.listVersions": lambda model, name, *vary: [1, 2, 3],
        "data.findByTag": lambda key, value: [RECORD],
        "data.findBySpec": lambda model, spec: [],
        "data.query": lambda predicate, *select: [predicate, *select],
        "file.contents": lambda model, spec: "text\n",
        "workers.connected": lambda: [{"name": "w1"}, {"name": "w2"}],
    },
    model=lambda name: {"definition": {"name": name}},
)


def value(text: str, scope: Scope = SCOPE) -> Any:
    return evaluate(parse(text), scope)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${{ inputs.n }}", 3),
        ("${{ inputs.n }}\n", 3),
        ("${{ inputs.list }}", [1, 2]),
        ("${{ inputs.none }}", None),
        ("${{ {'a': {'b': inputs.n}} }}", {"a": {"b": 3}}),
        ("${{ inputs.n > 2 }}", True),
        ("<${{ inputs.none }}>", "<>"),
        ("n=${{ inputs.n }} ${{ inputs.n > 5 }} ${{ 1.5 }} ${{ 2.0 }}", "n=3 false 1.5 2"),
        ("x ${{ inputs.map }} ${{ inputs.list }}", 'x {"k": "v"} [1, 2]'),
        ("${{ self.item.key }}-${{ run.id }}", "a-r-1"),
        ("${{ env.HOME }}", "/root"),
        ("${{ data.latest('m', 'result').attributes.stdout }}", "hi"),
        ("${{ data.latest('m', 'none') }}", None),
        ("${{ data.latest('m', 'r', ['a']).vary[0] }}", ["a"]),
        ("${{ data.latest(inputs.name, 'r').modelName }}", "Ada"),
        ("${{ data.version('m', 'r', 2).version }}", 2),
        ("${{ data.version('m', 'r', ['a'], 2).version }}", 2),
        ("${{ data.listVersions('m', 'r') }}", [1, 2, 3]),
        ("${{ data.findByTag('k', 'v')[0].version }}", 3),
        ("${{ data.query('true', 'name') }}", ["true", "name"]),
        ("${{ file.contents('m', 'log') }}", "text\n"),
        ("${{ workers.connected().map(w, w.name) }}", ["w1", "w2"]),
        ("${{ model.remote-echo.definition.name }}", "remote-echo"),
        ('${{ model["remote-echo"].definition.name }}', "remote-echo"),
        ("${{ inputs.?missing.orValue('d') }}", "d"),
        ("${{ timestamp('2026-06-15T11:34:58.961Z') }}", "2026-06-15T11:34:58.961Z"),
        ("${{ b'ab' }}", "YWI="),
        ('${{ "${{" }}', "${{"),
    ],
)
def test_values_and_their_types(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_a_tree_is_evaluated_place_by_place() -> None:
    tree = parse_tree({"a": ["${{ inputs.n }}", 7], "b": {"c": "x ${{ inputs.name }}"}, "d": None})
    assert evaluate_tree(tree, SCOPE) == {"a": [3, 7], "b": {"c": "x Ada"}, "d": None}


EVIL = '${{ vault.get("prod", "key") }} }} ${{ env.HOME }} {{ inputs.x }} ${{'


def test_values_are_never_parsed_again_w1() -> None:
    """Text from inputs, records, files or webhooks that contains an expression stays text, however often what
    was evaluated is carried on."""
    scope = Scope(
        values={"inputs": {"evil": EVIL, "deep": {"list": [EVIL]}}, "webhook": {"body": EVIL}},
        functions={
            "data.latest": lambda *_: {"attributes": {"stdout": EVIL}},
            "file.contents": lambda *_: EVIL,
        },
    )
    tree = parse_tree(
        {
            "whole": "${{ inputs.evil }}",
            "inside": "a ${{ inputs.evil }} b ${{ inputs.evil }}",
            "deep": "${{ inputs.deep }}",
            "record": "${{ data.latest('m', 'r').attributes.stdout }}",
            "file": "${{ file.contents('m', 'f') }}",
            "webhook": "${{ webhook.body }}",
            "joined": "${{ \"$\" + \"{{ vault.get('prod', 'key') }}\" }}",
        }
    )
    found = evaluate_tree(tree, scope)
    assert found["whole"] == found["record"] == found["file"] == found["webhook"] == EVIL
    assert found["inside"] == f"a {EVIL} b {EVIL}"
    assert found["deep"] == {"list": [EVIL]}
    assert found["joined"] == "${{ vault.get('prod', 'key') }}"
    assert not list(secrets_in(found))
    again = evaluate_tree(literal_tree(found), scope)
    assert again == found


def test_substitution_is_by_place_not_by_text_w25() -> None:
    """The same expression text in two places has two values when the scopes differ."""
    tree = parse_tree({"a": "${{ self.item }}", "b": "${{ self.item }}"})
    assert isinstance(tree, dict)
    assert evaluate_tree(tree["a"], SCOPE.with_values(self={"item": 1})) == 1
    assert evaluate_tree(tree["b"], SCOPE.with_values(self={"item": 2})) == 2


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────

K = Secret((SecretRef("v", "k"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('${{ vault.get("v", "k") }}', K),
        ('${{ vault.get("v", inputs.env) }}', Secret((SecretRef("v", "prod"),))),  # W10: a computed key
        ('Bearer ${{ vault.get("v", "k") }}!', Secret(("Bearer ", SecretRef("v", "k"), "!"))),
        (
            '${{ "Bearer " + vault.get("v", "k") + inputs.env }}',
            Secret(("Bearer ", SecretRef("v", "k"), "prod")),
        ),
        ('${{ inputs.n > 1 ? vault.get("v", "k") : "" }}', K),
        ('${{ {"t": [vault.get("v", "k"), "x"]} }}', {"t": [K, "x"]}),
        (
            '${{ ["a", "b"].map(n, vault.get("v", n)) }}',
            [Secret((SecretRef("v", "a"),)), Secret((SecretRef("v", "b"),))],
        ),
        (
            '${{ cel.bind(s, vault.get("v", "k"), s + s) }}',
            Secret((SecretRef("v", "k"), SecretRef("v", "k"))),
        ),
        (
            '${{ ["u", vault.get("v", "k")].join(":") }}',
            Secret(("u:", SecretRef("v", "k"))),
        ),
    ],
)
def test_secrets_are_deferred_and_can_be_joined_w10(text: str, expected: Any) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "expression",
    [
        'size(vault.get("v", "k"))',
        'vault.get("v", "k") == "guess"',
        'vault.get("v", "k").contains("a")',
        'vault.get("v", "k").upperAscii()',
        'vault.get("v", "k").startsWith("a") ? 1 : 2',
        'vault.get("v", "k") in ["a"]',
        '{vault.get("v", "k"): 1}',
        'inputs.map[vault.get("v", "k")]',
        'vault.get("v", vault.get("v", "k"))',
        'data.query(vault.get("v", "k"))',
        '["a"].filter(n, vault.get("v", n) == "x")',
        '["a"].exists(n, vault.get("v", n) == "x")',
        '["a"].map(n, vault.get("v", n)).map(s, size(s))',
        'cel.bind(s, vault.get("v", "k"), size(s))',
        'base64.encode(bytes(vault.get("v", "k")))',
        '[vault.get("v", "k")] == ["x"]',
        'size([vault.get("v", "k")][0])',
    ],
)
def test_looking_into_a_secret_is_an_error_and_says_so(expression: str) -> None:
    with pytest.raises(ExpressionError, match="secret") as caught:
        value(f"${{{{ {expression} }}}}")
    assert caught.value.hint is not None and "inside the step" in caught.value.hint


def test_secrets_in_inputs_stay_secrets() -> None:
    scope = Scope(values={"inputs": {"token": K, "plain": "p", "both": {"a": K, "b": "x"}, "list": [K]}})
    assert value("${{ inputs.token }}", scope) == K
    assert value("${{ 'a' + inputs.token }}", scope) == Secret(("a", SecretRef("v", "k")))
    assert value("${{ inputs.both }}", scope) == {"a": K, "b": "x"}
    assert value("${{ inputs.both.b.size() }}", scope) == 1
    assert value("${{ has(inputs.token) }}", scope) is True
    assert value("${{ inputs['token'] }}", scope) == K
    assert value("${{ inputs.list.map(s, s + '!') }}", scope) == [Secret((SecretRef("v", "k"), "!"))]
    assert value("${{ inputs.?token.orValue('x') }}", scope) == K
    for text in (
        "inputs.token.size()",
        "inputs[inputs.plain + '']  == 'x'",
        "inputs.list.exists(s, s == 'x')",
    ):
        with pytest.raises(ExpressionError, match="secret"):
            value(f"${{{{ {text} }}}}", scope)
    with pytest.raises(ExpressionError, match="holds a secret"):
        value("x ${{ inputs.both }}", scope)


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret(("Bearer ", SecretRef("vault-name", "key-name")))
    shown = f"{secret} {secret!r} {secret:>9} {[secret]} { ({'a': secret}) } {secret!s}"
    assert "Bearer" not in shown and "key-name" not in shown and "***" in shown
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert mask_tree({"a": [secret, 1]}) == {"a": ["Bearer ***", 1]}
    assert resolve_tree({"a": [secret, 1]}, lambda ref: f"<{ref.vault}/{ref.key}>") == {
        "a": ["Bearer <vault-name/key-name>", 1]
    }


def test_text_that_imitates_a_marker_stays_text() -> None:
    scope = Scope(values={"inputs": {"x": "\ue000" + "0" * 32 + ":0\ue001"}})
    found = value('${{ [inputs.x, vault.get("v", "k")] }}', scope)
    assert found == ["\ue000" + "0" * 32 + ":0\ue001", K]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("${{ input.x }}", "unknown name `input`", "did you mean inputs?"),
        ("${{ data }}", "`data` is not a value by itself", "data.latest()"),
        ("${{ data.latst('a', 'b') }}", "undeclared reference", "data.latest"),
        ("${{ inputs.nope }}", 'key not found in map : "nope"', "orValue"),
        ("${{ 1 + }}", "invalid expression", None),
        (
            "${{ webhook.body }}",
            "`webhook` is not available here",
            "available here: inputs, self, run, model",
        ),
        ("${{ model[inputs.name] }}", "needs a name that is written out", "data.latest"),
        ("${{ raw(inputs.name) }}", "only in a shell's `run`", "leave raw() out"),
        ("${{ 'a' + raw(inputs.name) }}", "raw", "raw(…) must be the whole expression"),
        ("a\nb ${{ inputs.nope }}", "line 2, column 3", None),
    ],
)
def test_errors_name_place_problem_and_fix(text: str, said: str, hint: str | None) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(parse(text, "workflows/w.yaml:9"), SCOPE)
    assert str(caught.value).startswith("workflows/w.yaml:9: ") and said in str(caught.value)
    assert hint is None or hint in (caught.value.hint or "")


def test_errors_of_functions_leave_as_they_are() -> None:
    with pytest.raises(NotFound, match="'gone'"):
        value("${{ data.latest('gone', 'r') }}")


def test_functions_a_scope_does_not_have_are_not_available() -> None:
    with pytest.raises(ExpressionError, match=r"data.latest\(\) is not available here"):
        value("${{ data.latest('a', 'b') }}", Scope())
    with pytest.raises(ExpressionError, match=r"vault.get\(\) is not available here"):
        value("${{ vault.get('a', 'b') }}", Scope(secrets=False))


# ── references ───────────────────────────────────────────────────────────────────────────────────


def test_references_of_unresolved_templates() -> None:
    found = references(
        [
            parse('${{ vault.get("v", "k") }} ${{ vault.get("v", inputs.env) }} ${{ vault.get("v", "k") }}'),
            parse("${{ data.latest('m1', 'r').x + model.a-b.definition.name }}"),
            parse('${{ file.contents("m2", "log") + env.HOME + inputs.other.deep }}'),
        ]
    )
    assert found.secrets == (SecretReference("v", "k"), SecretReference("v", None))
    assert found.inputs == ("env", "other") and found.environment == ("HOME",)
    assert set(found.models) == {"a-b", "m1", "m2"}
    assert set(found.names) == {"vault", "inputs", "model", "data", "env", "file"}
    assert not found.computed_models and not found.any_data


def test_computed_models_and_queries_are_said() -> None:
    assert references([parse("${{ data.latest(inputs.m, 'r') }}")]).computed_models
    assert references([parse("${{ model[inputs.m].x }}")]).computed_models
    assert references([parse("${{ data.query('true') }}")]).any_data


def test_problems_and_warnings_need_no_values() -> None:
    assert problems(parse("${{ inputs.x }}")) == []
    assert "unknown name" in str(problems(parse("${{ inputz.x }}"))[0])
    assert "not available" in str(problems(parse("${{ self.x }}"), allowed=["inputs"])[0])
    assert problems(parse("echo ${{ raw(inputs.x) }}"), shell=True) == []
    assert "in single quotes" in str(problems(parse("echo '${{ inputs.x }}'"), shell=True)[0])
    assert "${{ inputs.x }}" in warnings(parse("{{ inputs.x }}", "f:1"))[0]


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", {"deep": ["a\0"]}])
def test_what_the_engine_would_change_is_refused(bad: Any) -> None:
    """The engine ends a text at a NUL character: a value would silently become another one."""
    with pytest.raises(ExpressionError, match="`inputs` holds"):
        value("${{ inputs.x }}", Scope(values={"inputs": {"x": bad}}))
    with pytest.raises(ExpressionError, match=r"data.latest\(\) gave"):
        value("${{ data.latest('a', 'b') }}", Scope(functions={"data.latest": lambda *_: {"x": bad}}))

"""The CEL dialect: what it can do, how it says what is wrong, and that it may be used from many threads."""

import datetime
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from swamp_orch.query import syntax
from swamp_orch.query.environment import (
    CelError,
    CelType,
    Compiled,
    Function,
    MissingKey,
    UnknownName,
    compile_expression,
    json_value,
)
from swamp_proto.errors import NotFound
from swamp_proto.limits import PREDICATE_LENGTH_MAX

VARIABLES = {
    "version": CelType.INT,
    "name": CelType.STRING,
    "tags": CelType.STRINGS,
    "attributes": CelType.DYN,
    "flag": CelType.BOOL,
}
DATA: dict[str, Any] = {
    "version": 3,
    "name": "abc",
    "tags": {"k": "v"},
    "attributes": {"n": 2, "d": 1.5, "s": "x", "list": [1, 2], "deep": {"k-1": True}},
    "flag": False,
}


def compiled(text: str, *functions: Function) -> Compiled:
    return compile_expression(text, VARIABLES, functions)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # numbers: one dialect across integers and doubles
        ("version > 1.5", True),
        ("1 == 1.0", True),
        ("1 != 1.5", True),
        ("version == 3.0", True),
        ("2u < 3", True),
        ("attributes.n < attributes.d", False),
        ("version + 1", 4),
        ("version * 1.5", 4.5),
        ("1.5 * version", 4.5),
        ("attributes.n + attributes.d", 3.5),
        ("attributes.n - 0.5", 1.5),
        ("version / 2", 1),
        ("version / 2.0", 1.5),
        ("version / 0.0", float("inf")),
        ("version in [1.5, 3.0]", True),
        ("2.0 in attributes.list", True),
        ("flag ? 1 : 2.5", 2.5),
        ("version % 2", 1),
        ("size(attributes.list) > 1.5", True),
        # optionals
        ("attributes.?n", 2),
        ("attributes.?nothing", None),
        ("attributes.?nothing.orValue(7)", 7),
        ("attributes.?deep.?nothing.orValue('x')", "x"),
        ("attributes[?'s'].hasValue()", True),
        ("has(attributes.nothing)", False),
        ("has(attributes.deep) && attributes.deep['k-1']", True),
        # texts, lists, maps, the rest of the libraries
        ("name.substring(1) + '-' + name.upperAscii()", "bc-ABC"),
        ("' a '.trim() + 'a,b'.split(',').join('+')", "aa+b"),
        ("name.startsWith('ab') && name.endsWith('c') && name.contains('b') && name.matches('^a.c$')", True),
        ("[3, 1, 2].sort()", [1, 2, 3]),
        ("[1, 2, 3].filter(x, x > 1).map(y, y * 2)", [4, 6]),
        ("attributes.list.exists(x, x == 2) && attributes.list.all(x, x > 0)", True),
        ("cel.bind(x, name, x + x)", "abcabc"),
        ("math.greatest(1, version)", 3),
        ("base64.encode(b'a')", "YQ=="),
        ("sets.contains([1, 2], [2])", True),
        ("{'a': version, 'b': [flag]}", {"a": 3, "b": [False]}),
        ("b'abc'", b"abc"),
        ("duration('90s')", datetime.timedelta(seconds=90)),
        ("timestamp('2026-06-15T11:34:58.961Z').getFullYear()", 2026),
        ("type(name) == string", True),
        ("string(version) + '!'", "3!"),
        ("true || attributes.nothing == 1", True),
    ],
)
def test_the_dialect(text: str, value: Any) -> None:
    assert compiled(text).evaluate(DATA) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version == '3'", "at 1:9: found no matching overload for '==' applied to '(int, string)'"),
        ("name + 1", "found no matching overload for '+' applied to '(string, int)'"),
        ("flag ? 'a' : 1", "found no matching overload for '?:' applied"),
        ("name ==", "at 1:8: Syntax error"),
        ("name.nothing()", "undeclared reference to 'nothing'"),
        ("version.nothing", "cannot be the operand of a select"),
        ("   ", "is empty"),
        ("1" * (PREDICATE_LENGTH_MAX + 1), "characters long"),
        ("[" * 60 + "]" * 60, "recursion limit"),
        ("'\ud800' == name", "not Unicode"),
        ("99999999999999999999 == version", "invalid int literal"),
    ],
)
def test_what_does_not_compile_is_explained(text: str, problem: str) -> None:
    with pytest.raises(CelError) as caught:
        compiled(text)
    assert problem in caught.value.message
    assert "INVALID_ARGUMENT" not in caught.value.message


def test_the_place_is_marked_with_a_caret() -> None:
    with pytest.raises(CelError) as caught:
        compiled("version == '3'")
    assert caught.value.message.splitlines()[1:] == [" | version == '3'", " | ........^"]


@pytest.mark.parametrize(
    ("text", "kind", "problem"),
    [
        ("attributes.nothing == 1", MissingKey, 'key not found in map : "nothing"'),
        ("tags.nothing", MissingKey, "nothing"),
        ("version / 0", CelError, "divide by zero"),
        ("attributes.s > 1", CelError, "no matching overloads"),
        ("attributes.list[7]", CelError, ""),
        ("9223372036854775807 + version", CelError, "integer overflow"),
    ],
)
def test_what_fails_raises(text: str, kind: type[CelError], problem: str) -> None:
    with pytest.raises(kind) as caught:
        compiled(text).evaluate(DATA)
    assert type(caught.value) is kind
    assert problem in caught.value.message
    assert text in caught.value.message


def test_data_the_engine_cannot_hold_is_an_error_not_a_crash() -> None:
    for value in (2**70, object(), {1, 2}, "\ud800"):
        with pytest.raises(CelError):
            compiled("attributes.n").evaluate({**DATA, "attributes": {"n": value}})
    with pytest.raises(CelError):
        compiled("version").evaluate({})


def test_an_unknown_name_lists_the_names_and_suggests_one() -> None:
    with pytest.raises(UnknownName) as caught:
        compile_expression("nam == 'x'", VARIABLES, place="query predicate", noun="field")
    assert caught.value.message == (
        'Unknown field "nam" in query predicate.\nAvailable: attributes, flag, name, tags, version'
    )
    assert caught.value.hint == "did you mean name?"
    with pytest.raises(UnknownName) as caught:
        compiled("[1].map(x, x + y)")
    assert caught.value.name == "y"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name == 'a' || version > 1", ("name", "version")),
        ("[1, 2].exists(x, x == version)", ("version",)),
        ("attributes.list.exists(name, name == 1)", ("attributes",)),
        ("cel.bind(tags, name, tags)", ("name",)),
        ("math.greatest(1, 2) > 1", ()),
        ("has(attributes.name)", ("attributes",)),
        ("{name: flag}", ("flag", "name")),
        ("optional.of(name).orValue('x')", ("name",)),
        ("type(name) == string", ("name",)),
        ("[name].map(name, name)", ("name",)),
        ("'name' == \"flag\"", ()),
    ],
)
def test_names_leave_out_loop_variables(text: str, names: tuple[str, ...]) -> None:
    assert compiled(text).names == names


def test_functions_with_dots_are_given_at_evaluation() -> None:
    latest = Function("data.latest", (CelType.STRING, CelType.STRING))
    anything = Function("show", (CelType.DYN,))
    found = compiled("data.latest('m', name).x + show(version)", latest, anything)
    assert found.names == ("name", "version")
    functions = {"data.latest": lambda model, name: {"x": [model, name]}, "show": lambda value: [value]}
    assert found.evaluate(DATA, functions) == ["m", "abc", 3]
    for value in ("1", "1.5", "'a'", "true", "[1]", "{'a': 1}", "b'x'"):
        assert compiled(f"show({value})", anything).evaluate(DATA, {"show": lambda value: [value]})
    with pytest.raises(CelError, match=r"data\.latest\(\) is not available here"):
        found.evaluate(DATA)

    def missing(*_: str) -> None:
        raise NotFound("no such model", hint="look elsewhere")

    with pytest.raises(NotFound, match="no such model"):
        found.evaluate(DATA, functions | {"data.latest": missing})
    # An error nobody needed is not an error.
    assert (
        compiled("true || data.latest('m', 'n') == 1", latest).evaluate(DATA, {"data.latest": missing})
        is True
    )


def test_a_function_may_evaluate_another_expression() -> None:
    outer = compiled("outer(name) + inner()", Function("outer", (CelType.STRING,), CelType.STRING), INNER)
    inside = compiled("inner() + name", INNER)

    def evaluate(text: str) -> str:
        return str(inside.evaluate({**DATA, "name": text}, {"inner": lambda: "<"}))

    assert outer.evaluate(DATA, {"outer": evaluate, "inner": lambda: ">"}) == "<abc>"


INNER = Function("inner", (), CelType.STRING)


def test_json_values() -> None:
    value = compiled(
        "{'t': timestamp('2026-06-15T11:34:58.961Z'), 'd': duration('1.5s'), 'b': b'a', 'n': 0.0/0.0,"
        " 'i': -1.0/0.0, 'm': {1: true, false: 2}, 'u': 3u, 'y': type(1)}"
    ).evaluate(DATA)
    assert json_value(value) == {
        "t": "2026-06-15T11:34:58.961Z",
        "d": "1.5s",
        "b": "YQ==",
        "n": "NaN",
        "i": "-Infinity",
        "m": {"1": True, "false": 2},
        "u": 3,
        "y": "int",
    }


def test_many_threads() -> None:
    function = Function("who", (), CelType.INT)

    def work(number: int) -> None:
        for turn in range(30):
            found = compile_expression(
                f"attributes.x + {turn} + who()",
                {"attributes": CelType.DYN, f"v{number}": CelType.INT},
                [function],
            )
            for _ in range(10):
                value = found.evaluate({"attributes": {"x": number}}, {"who": lambda: number * 1000})
                assert value == number + turn + number * 1000
            with pytest.raises(UnknownName):
                compiled(f"v{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_one_compiled_expression_in_many_threads() -> None:
    shared = compiled("attributes.x * 2 == version + attributes.x")

    def work(number: int) -> bool:
        return all(shared.evaluate({"attributes": {"x": number}, "version": number}) for _ in range(500))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_tree_is_the_engines_own() -> None:
    tree = compiled("name == 'é' && attributes.a['b c'].?d.orValue(2) != 1u").tree
    texts = {node.value for node in syntax.walk(tree.root) if isinstance(node, syntax.Constant)}
    assert texts == {"é", "b c", "d", 1, 2}
    paths = [syntax.path_of(node) for node in syntax.walk(tree.root)]
    assert ("attributes", "a", "b c", "d") in paths
    (name,) = (node for node in syntax.walk(tree.root) if node == syntax.Name(node.id, "attributes"))
    assert tree.positions[name.id] == len("name == 'é' && ")
    numbers = [
        node.value
        for node in syntax.walk(
            compiled("[-1, 9223372036854775807, -9223372036854775808, 1.5, true, null]").tree.root
        )
        if isinstance(node, syntax.Constant)
    ]
    assert numbers == [-1, 2**63 - 1, -(2**63), 1.5, True, None]
    for wrong in (b"", b"\x0a\x01x", b"\xff" * 30, b"\x0a\x05abc"):
        with pytest.raises(ValueError, match=r".+"):
            syntax.decode(wrong)


def test_the_engine_is_loaded_when_it_is_needed_and_stays_small() -> None:
    code = (
        "import sys\n"
        "import swamp_orch.query.run, swamp_orch.api.services.data\n"
        "assert not {'cel_expr_python', 'ruamel', 'trio', 'cryptography'} & set(sys.modules), 'too early'\n"
        "def pss():\n"
        "    with open('/proc/self/smaps_rollup') as file:\n"
        "        return int(next(line for line in file if line.startswith('Pss:')).split()[1])\n"
        "before = pss()\n"
        "from swamp_orch.query.run import prepare\n"
        "for n in range(200):\n"
        "    prepare(f'attributes.?a.orValue({n}) > 1 && name.trim() == \"x\" && math.abs(version) > 1')\n"
        "print(pss() - before)\n"
    )
    grown_kib = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert grown_kib < 20 * 1024


# Each of these ended the process at first: the engine's binding cannot hand a map with an optional in it to
# Python.
DEADLY = (
    '{"x": attributes.?n}',
    '[{"x": attributes[?"n"]}]',
    'show({"x": attributes.?n})',
    'show({"x": attributes[?"n"]})',
    'cel.bind(v, attributes[?"n"], {"k": v})',
    'dyn({"x": true ? attributes[?"n"] : attributes})',
    '{"x": dyn(attributes.?n)}',
    '{"x": attributes[?"deep"].n}',
    '{"x": attributes.list.first()}',
    '{"x": attributes.?n.orValue(attributes[?"n"])}',
    "[attributes.?n]",
    "attributes.list.map(x, attributes.?n)",
    "show([regex.extract(name, 'a')])",
    "lists.range(100000000000)",
    "lists.range(version)",
)
HARMLESS = (
    ("attributes.?list[0].orValue(9)", 1),
    ("attributes.?deep.?n.or(attributes.?n).orValue(9)", 2),
    ("attributes.?n.optMap(x, x + 1).orValue(0)", 3),
    ("attributes.?deep.optFlatMap(x, x.?nothing).hasValue()", False),
    ("cel.bind(v, attributes.?n, v.hasValue() ? v.value() : 0)", 2),
    ("[?attributes.?n, ?attributes.?nothing]", [2]),
    ('{?"n": attributes.?n, ?"m": attributes.?nothing}', {"n": 2}),
    ("flag ? attributes.?s : attributes.?n", 2),
    ("attributes.?n == optional.of(2)", True),
    ("attributes.list.first().orValue(0) + regex.extract(name, 'b').orValue('').size()", 2),
    ("[attributes].map(x, x.?n.orValue(0))", [2]),
    ("[1].exists(x, attributes.?n.hasValue())", True),
    ("attributes[?'n']", 2),
    ("lists.range(3)", [0, 1, 2]),
)


def test_what_would_end_the_process_is_refused_before() -> None:
    show = Function("show", (CelType.DYN,))
    for text in DEADLY:
        with pytest.raises(CelError, match=r"an optional may not stand here|lists\.range takes a number"):
            compiled(text, show)


@pytest.mark.parametrize(("text", "value"), HARMLESS)
def test_optionals_where_they_may_stand(text: str, value: Any) -> None:
    assert compiled(text).evaluate(DATA) == value


def test_a_map_with_odd_keys_is_refused() -> None:
    for text in ("{1.5: 2}", "{[1]: 2}"):
        with pytest.raises(CelError, match="Unsupported map key type"):
            compiled(text)

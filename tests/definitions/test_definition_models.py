"""Model files: grammar, lookup, ids, inputs and arguments."""

# ruff: noqa: E501 - messages stand in the tables as they are printed

import multiprocessing
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp_orch.definitions.fields import DefinitionProblems, Findings
from swamp_orch.definitions.inputs import (
    InvalidInput,
    check_arguments,
    coerce_text,
    mask_inputs,
    method_arguments,
    read_schema,
    resolve_inputs,
    sensitive_inputs,
)
from swamp_orch.definitions.models import Models, check_model, parse_model
from swamp_orch.definitions.repository import Repository, find
from swamp_orch.definitions.types import TypeRegistry, built_in, normalise_type
from swamp_orch.definitions.values import ModelDefinition, Source
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.definitions.yaml_source import load_text
from swamp_proto.errors import Bug, Conflict, InvalidDefinition, LocalError, NotFound
from swamp_proto.schema_check import check_value
from swamp_worker.models.interface import MethodSpec, ModelType

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER = "0f8aaaaa-d9cb-469f-a165-70867728950e"
FILE = Path("models/command/shell/m.yaml")
EXAMPLES = Path(__file__).parents[2] / "examples"

SHELL = f"type: command/shell\nid: {ID}\nname: m\n"

GREETING = ModelType(
    name="test/greeting",
    version="2026.01.01.1",
    description="says things",
    global_arguments={
        "type": "object",
        "properties": {
            "language": {"type": "string", "default": "en"},
            "key": {"type": "string", "sensitive": True},
            "loud": {"type": "boolean", "default": False},
        },
        "additionalProperties": False,
    },
    methods={
        "say": MethodSpec(
            "say",
            "say it",
            {
                "type": "object",
                "properties": {
                    "words": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    "times": {"type": "integer", "minimum": 0, "default": 0},
                    "loud": {"type": "boolean"},
                    "mood": {"enum": ["glad", "sad"]},
                },
                "required": ["words"],
                "additionalProperties": False,
            },
        )
    },
    outputs={},
)


def write(repository: Repository, name: str, text: str, folder: str = "command/shell") -> Path:
    path = repository.models / folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(text: str) -> ModelDefinition:
    return parse_model(*load_text(text, FILE), "command/shell", "m")


BAD = [
    (SHELL + "methds: {}\n", ["4: Unknown key 'methds' on model 'm'. Did you mean 'methods'? Valid model keys: type, typeVersion, id, name, version, tags, globalArguments, methods, inputs, checks, reports"]),
    (SHELL + "methods:\n  execute:\n    argumnts: {}\n", ["6: Unknown key 'argumnts' on method 'execute'. Did you mean 'arguments'? Valid method keys: arguments"]),
    (SHELL + "methods: [execute]\n", ["4: 'methods' on model 'm' must be a map, not a list"]),
    (SHELL + "tags:\n  a: 1\n", ["5: 'a' in tags on model 'm' must be text, not the number 1"]),
    (SHELL + "version: two\n", ["4: 'version' on model 'm' must be a whole number, not text"]),
    (SHELL.replace("name: m", "name: n"), ["3: the name is 'n' but the file stands for 'm'"]),
    (SHELL.replace("name: m", "name: M!"), ["3: 'M!' is not a model name"]),
    (SHELL.replace("command/shell", "file/write"), ["1: the type is 'file/write' but the file lies in models/command/shell"]),
    (SHELL.replace("command/shell", "grün/x"), ["1: 'grün/x' is not a type name"]),
    (SHELL.replace(ID, "12"), ["2: 'id' on model 'm' must be text, not the number 12"]),
    ("- a\n", ["1: the model must be a map of keys, not a list"]),
    (f"id: {ID}\nname: m\n", ["1: model 'm' has no 'type'"]),
    (SHELL + "driver: docker\n", ["4: 'driver' on model 'm' is not supported: target, labels and platform say where a step runs"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), BAD, ids=[messages[0][:60] for _, messages in BAD])
def test_what_is_wrong_is_said_with_file_and_line(text: str, messages: list[str]) -> None:
    with pytest.raises(DefinitionProblems) as caught:
        read(text)
    assert [str(item).removeprefix(f"{FILE}:") for item in caught.value.problems] == messages


def test_expressions_are_checked_when_the_file_is_read() -> None:
    with pytest.raises(DefinitionProblems) as caught:
        read(SHELL + "methods:\n  execute:\n    arguments:\n      run: echo ${{ inputs.x\n")
    assert str(caught.value).startswith(f"{FILE}:7: ")


def test_a_type_has_one_spelling() -> None:
    for spelling in ("Command::Shell", "command.shell", "command/shell", " command//shell ", "COMMAND shell"):
        assert normalise_type(spelling) == "command/shell"
    assert read(SHELL.replace("command/shell", "Command::Shell")).type == "command/shell"


# ── lookup ──────────────────────────────────────────────────────────────────────────────────────


def test_a_name_is_found_without_reading_other_files(repository: Repository) -> None:
    write(repository, "m", SHELL)
    write(repository, "broken", "][")
    assert Models(repository, built_in()).find("m").id == ID


def test_ids_and_their_beginnings(repository: Repository) -> None:
    write(repository, "m", SHELL)
    write(repository, "n", SHELL.replace("name: m", "name: n").replace(ID, OTHER))
    models = Models(repository, built_in())
    assert models.find(ID).name == "m"
    assert models.find("0f8f").name == "m"
    with pytest.raises(Conflict) as caught:
        models.find("0f8")
    assert caught.value.message == (f"'0f8' is the beginning of several model ids: m ({ID}), n ({OTHER})")
    with pytest.raises(NotFound, match="Model not found: 0f"):
        models.find("0f")


def test_not_found_suggests_and_names_files_that_cannot_be_read(repository: Repository) -> None:
    write(repository, "remote-echo", SHELL.replace("name: m", "name: remote-echo"))
    write(repository, "broken", "a: [\n")
    with pytest.raises(NotFound) as caught:
        Models(repository, built_in()).find("remote-ecko")
    assert caught.value.error_code == "model_not_found"
    assert caught.value.message.splitlines() == [
        "Model not found: remote-ecko. Did you mean 'remote-echo'?",
        "These model files cannot be read, and it may be one of them:",
        "models/command/shell/broken.yaml:1: a bracket is never closed, or a comma is missing: `]`",
    ]
    with pytest.raises(InvalidDefinition, match=r"^models/command/shell/broken\.yaml:1: "):
        Models(repository, built_in()).find("broken")


def test_every_file_is_listed_or_named(repository: Repository) -> None:
    write(repository, "m", SHELL)
    write(repository, "bad", "a: [\n")
    write(repository, "odd", SHELL).rename(repository.models / "command" / "shell" / "odd.yml")
    (repository.models / "gone.yaml").symlink_to("nowhere")
    write(repository, ".hidden", "][")
    listing = Models(repository, built_in()).all()
    assert [found.name for found in listing.found] == ["m"]
    assert [item.error.message for item in listing.unreadable] == [
        "models/command/shell/bad.yaml:1: a bracket is never closed, or a comma is missing: `]`",
        "models/command/shell/odd.yml: definition files end in .yaml",
        "models/gone.yaml: a link to a file that is not there",
    ]


def test_one_name_in_two_types_is_ambiguous(repository: Repository) -> None:
    write(repository, "m", SHELL)
    write(repository, "m", SHELL.replace("command/shell", "file/write"), "file/write")
    with pytest.raises(Conflict, match=r"models/command/shell/m\.yaml, models/file/write/m\.yaml"):
        Models(repository, built_in()).find("m")


def test_a_copied_file_is_refused_because_its_id_is_taken(repository: Repository) -> None:
    write(repository, "m", SHELL)
    write(repository, "n", SHELL.replace("name: m", "name: n"))
    models = Models(repository, built_in())
    with pytest.raises(InvalidDefinition) as caught:
        models.find("n")
    assert (
        caught.value.message
        == "models/command/shell/n.yaml:2: the id is also that of models/command/shell/m.yaml"
    )
    assert len(models.all().unreadable) == 2
    assert models.all().found == ()


def test_a_missing_id_is_written_back_and_nothing_else_changes(repository: Repository) -> None:
    text = "# mine\n\ntype: command/shell   # the type\nname: m\nmethods:\n    execute:   {}\n"
    path = write(repository, "m", text)
    found = Models(repository, built_in()).find("m")
    assert path.read_text() == text.replace("type:", f"id: {found.id}\ntype:", 1)
    assert uuid.UUID(found.id).version == 4
    assert Models(repository, built_in()).find("m").id == found.id


def test_listing_for_a_check_writes_nothing(repository: Repository) -> None:
    path = write(repository, "m", "type: command/shell\nname: m\n")
    write(repository, "n", "type: command/shell\nname: n\n")
    before = path.read_bytes()
    listing = Models(repository, built_in()).all(write_id=False)
    assert [found.name for found in listing.found] == ["m", "n"]
    assert path.read_bytes() == before


def _first_use(root: str, start: Any, answers: Any) -> None:
    models = Models(find(Path(root)), built_in())
    start.wait(60)
    answers.put(models.find("m").id)


def test_a_file_that_is_refused_gets_no_id(repository: Repository) -> None:
    path = repository.workflows / "workflow-wrong.yaml"
    text = "name: wrong\njobs: [{name: j, steps: [{name: s, dependsOn: [nobody], task: {type: assert, condition: x}}]}]\n"
    path.write_text(text)
    with pytest.raises(InvalidDefinition, match="nobody"):
        Workflows(repository).find("wrong")
    assert path.read_text() == text


def test_processes_that_need_a_missing_id_at_once_agree_on_it(repository: Repository) -> None:
    write(repository, "m", "type: command/shell\nname: m\n")
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_first_use, args=(str(repository.root), start, answers)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(found) == 1


def test_the_examples_are_valid(repository: Repository) -> None:
    import shutil

    from swamp_orch.definitions.workflow_checks import WorkflowChecks

    for folder in ("tutorial", "pipeline"):
        shutil.copytree(EXAMPLES / folder, repository.root, dirs_exist_ok=True)
    models, workflows = Models(repository, built_in()), Workflows(repository)
    assert models.all().unreadable == ()
    listing = workflows.all()
    assert listing.unreadable == ()
    assert [item.name for item in listing.found] == ["pipeline", "remote-demo"]
    for model in models.all().found:
        assert check_model(model, models.type_of(model)) == []
    checks = WorkflowChecks(repository, models, workflows)
    for workflow in listing.found:
        assert [check for check in checks.check(workflow) if not check.passed or check.warning] == []


# ── input schemas ───────────────────────────────────────────────────────────────────────────────


def schema(text: str) -> dict[str, Any]:
    data, source = load_text(text, FILE)
    findings = Findings(source)
    found = read_schema(data, findings, ())
    findings.raise_if_any()
    return found


def test_both_forms_mean_the_same() -> None:
    flat = schema("a: {type: string, required: true}\nb: {type: integer, default: 0}\n")
    written = schema(
        "type: object\nproperties:\n  a: {type: string}\n  b: {type: integer, default: 0}\nrequired: [a]\n"
    )
    assert (
        flat
        == written
        == {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "integer", "default": 0}},
            "required": ["a"],
            "additionalProperties": False,
        }
    )


@pytest.mark.parametrize("default", ["false", "0", '""', "[]", "{}"])
def test_a_falsy_default_is_a_value(default: str) -> None:
    found = schema(f"a: {{default: {default}, required: true}}\n")
    assert resolve_inputs(found, {}) == {"a": load_text(f"x: {default}\n", FILE)[0]["x"]}


def test_inputs_are_checked_in_our_words() -> None:
    found = schema(
        "a: {type: string, required: true}\nn: {type: integer}\nf: {type: number}\ne: {enum: [x, y]}\nl: {type: array, items: {type: boolean}, maxItems: 1}\no: {type: object, properties: {k: {type: string}}, required: [k], additionalProperties: false}\n"
    )
    with pytest.raises(InvalidInput) as caught:
        resolve_inputs(found, {"n": 1.5, "f": True, "e": "z", "l": ["a", True], "o": {"q": 1}, "aa": 1})
    assert caught.value.message.splitlines() == [
        "Input validation failed:",
        "  aa is not a valid input property. Did you mean 'a'? Valid inputs are: a, n, f, e, l, o",
        "  a is required",
        "  n must be an integer, not 1.5",
        "  f must be a number, not true",
        '  e must be one of: "x", "y"',
        "  l must have at most 1 entries",
        '  l[0] must be true or false, not "a"',
        "  o.k is required",
        "  o.q is not a valid input property",
    ]
    assert caught.value.error_code == "input_validation_failed"
    with pytest.raises(InvalidInput, match="a cannot be null"):
        resolve_inputs(found, {"a": None})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("integer", "12", 12),
        ("integer", "-3", -3),
        ("integer", "1.9", "1.9"),
        ("integer", "", ""),
        ("integer", "0x10", "0x10"),
        ("integer", "1e3", "1e3"),
        ("integer", "007", "007"),
        ("integer", "9" * 30, "9" * 30),
        ("number", "1.5", 1.5),
        ("number", "2", 2),
        ("number", "nan", "nan"),
        ("number", "1_000", "1_000"),
        ("boolean", "true", True),
        ("boolean", "false", False),
        ("boolean", "yes", "yes"),
        ("boolean", "1", "1"),
        ("array", "[1, 2]", [1, 2]),
        ("array", "1,2", "1,2"),
        ("object", '{"a": 1}', {"a": 1}),
        ("object", "[1]", "[1]"),
        ("string", "12", "12"),
        ("string", "true", "true"),
    ],
)
def test_text_is_turned_into_a_type_only_where_that_is_exact(kind: str, text: str, value: Any) -> None:
    found = coerce_text({"type": kind}, text)
    assert found == value
    assert type(found) is type(value)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_number_survives_the_command_line(value: float) -> None:
    import json

    kind = "integer" if isinstance(value, int) else "number"
    assert coerce_text({"type": kind}, json.dumps(value)) == value


def test_sensitive_inputs_are_masked_at_any_depth() -> None:
    found = schema(
        "a: {type: string, sensitive: true}\nb: {type: object, properties: {c: {sensitive: true}, d: {}}}\ne: {type: array, items: {sensitive: true}}\nf: {}\n"
    )
    assert sensitive_inputs(found) == {"a", "b", "e"}
    masked = mask_inputs(found, {"a": "s", "b": {"c": 1, "d": 2}, "e": ["x", "y"], "f": 3})
    assert masked == {"a": "***", "b": {"c": "***", "d": 2}, "e": ["***", "***"], "f": 3}


def test_an_unknown_schema_keyword_is_a_bug_and_not_ignored() -> None:
    with pytest.raises(Bug, match="oneOf"):
        check_value({"type": "string", "oneOf": "x"}, "y", "v")


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


def greeting(**changes: Any) -> ModelDefinition:
    found = ModelDefinition(
        type="test/greeting",
        id=ID,
        name="hello",
        version=1,
        tags={},
        global_arguments={"loud": True},
        methods={"say": {"words": ["hi"], "times": 2}},
        inputs={"type": "object", "properties": {}, "additionalProperties": False},
        source=Source(FILE),
    )
    return attrs.evolve(found, **changes)


SAY = GREETING.methods["say"]


def test_the_order_of_arguments_is_type_global_stored_given() -> None:
    merged = method_arguments(GREETING, SAY, greeting(), {"times": 3})
    assert merged.arguments == {"words": ["hi"], "times": 3, "loud": True}
    assert merged.global_arguments == {"loud": True, "language": "en"}
    plain = method_arguments(GREETING, SAY, greeting(global_arguments={}, methods={}), {"words": ["x"]})
    assert plain.arguments == {"words": ["x"], "times": 0, "loud": False}


def test_unknown_inputs_are_refused_with_the_valid_ones() -> None:
    declared = greeting(inputs=schema("who: {type: string}\n"))
    with pytest.raises(InvalidInput) as caught:
        method_arguments(GREETING, SAY, declared, {"word": [], "x": 1})
    assert caught.value.message == (
        "Unknown method input(s): word, x. Valid inputs are: who, words, times, loud, mood. Did you mean 'words'?"
    )
    assert caught.value.hint == "swamp model method describe hello say"


def test_inputs_of_the_definition_are_apart_from_arguments_of_the_method() -> None:
    declared = greeting(
        inputs=schema("who: {type: string, required: true}\ntimes: {type: integer, default: 0}\n")
    )
    merged = method_arguments(GREETING, SAY, declared, {"who": "me"}, coerce=True)
    assert merged.inputs == {"who": "me", "times": 0}
    assert merged.arguments["times"] == 2
    with pytest.raises(InvalidInput, match="who is required") as caught:
        method_arguments(GREETING, SAY, declared, {})
    assert caught.value.hint == "--input who=…"


def test_texts_of_a_command_line_become_what_is_declared() -> None:
    merged = method_arguments(
        GREETING, SAY, greeting(), {"times": "4", "words": '["a"]', "loud": "false"}, coerce=True
    )
    assert merged.arguments == {"words": ["a"], "times": 4, "loud": False}
    with pytest.raises(InvalidInput, match=r'times must be an integer, not "1\.9"'):
        method_arguments(GREETING, SAY, greeting(), {"times": "1.9"}, coerce=True)
    with pytest.raises(InvalidInput, match='times must be an integer, not "4"'):
        method_arguments(GREETING, SAY, greeting(), {"times": "4"})


def test_expressions_pass_until_they_have_a_value() -> None:
    merged = method_arguments(GREETING, SAY, greeting(), {"times": "${{ inputs.n }}"})
    assert merged.arguments["times"] == "${{ inputs.n }}"
    with pytest.raises(InvalidInput, match="times must be an integer"):
        check_arguments(SAY, merged.arguments, evaluated=True)
    check_arguments(SAY, {**merged.arguments, "times": 1}, evaluated=True)


def test_stored_arguments_are_checked_with_file_and_line() -> None:
    text = f"type: test/greeting\nid: {ID}\nname: m\nglobalArguments:\n  key: secret\n  langage: de\nmethods:\n  say:\n    arguments:\n      times: -1\n      mood: bad\n  shout: {{}}\n"
    found = parse_model(*load_text(text, FILE))
    assert check_model(found, GREETING) == [
        f'{FILE}:5: key is sensitive and must not stand in the file: write ${{{{ vault.get("VAULT", "KEY") }}}}',
        f"{FILE}:6: 'langage' is not an argument. Did you mean 'language'? Valid arguments are: language, key, loud",
        f"{FILE}:10: times must be at least 0",
        f'{FILE}:11: mood must be one of: "glad", "sad"',
        f"{FILE}:12: test/greeting has no method 'shout'. Methods are: say",
    ]


def test_types_are_unknown_with_a_suggestion_and_internal_ones_are_hidden() -> None:
    types = built_in()
    assert types.get("Command::Shell").name == "command/shell"
    assert all(not found.name.startswith("swamp/") for found in types.all())
    assert "swamp/worker" in [found.name for found in types.all(internal=True)]
    with pytest.raises(NotFound) as caught:
        types.get("command/shel")
    assert caught.value.message == "Unknown model type: command/shel. Did you mean 'command/shell'?"
    assert caught.value.error_code == "unknown_model_type"
    with pytest.raises(LocalError, match="bookkeeping"):
        types.creatable("swamp/worker")
    with pytest.raises(NotFound, match=r"Unknown method 'run' of command/shell\. Methods are: execute"):
        types.method(types.get("command/shell"), "run")


def test_every_builtin_schema_is_in_the_checked_subset() -> None:
    registry: TypeRegistry = built_in()
    for found in registry.all(internal=True):
        check_value(found.global_arguments, {}, found.name)
        for method in found.methods.values():
            check_value(method.arguments, {}, method.name)
            for name, part in method.arguments.get("properties", {}).items():
                for value in ("", 0, True, None, [], {}):
                    check_value(part, value, name)

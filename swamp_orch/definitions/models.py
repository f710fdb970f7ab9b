"""Model definitions: `models/{type}/{name}.yaml`, read, checked, found and written.

Rules:
1. The folder says the type and the file the name; a file that says otherwise inside is an error, so that
   looking up a name needs no parsing.
2. What can be known without running is checked when a definition is read: keys, types, input schema,
   expression syntax. Whether its type exists and its arguments fit is `check_model`, because a definition may
   outlive its type.
3. Definitions are written as text: `create` writes a new file; an edit replaces the text as its author typed
   it.

It does not run methods and does not know the store.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swamp_orch.definitions.fields import (
    NAME_RULE,
    Fields,
    Findings,
    check_expressions,
    has_expression,
    read_selection,
    suggestion,
)
from swamp_orch.definitions.files import remove_file, write_atomically
from swamp_orch.definitions.inputs import coerce_text, read_schema, with_defaults
from swamp_orch.definitions.lookup import Folder, Listing, read_identity
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.types import TypeRegistry, is_type_name, normalise_type
from swamp_orch.definitions.values import ModelDefinition, Source
from swamp_orch.definitions.yaml_edit import dump
from swamp_orch.definitions.yaml_source import load_text
from swamp_proto.errors import AlreadyExists, InvalidDefinition, LocalError, NotFound
from swamp_proto.ids import is_name
from swamp_proto.schema_check import check_value
from swamp_worker.models.interface import ModelType

MODEL_KEYS: Final = (
    "type", "typeVersion", "id", "name", "version", "tags", "globalArguments", "methods", "inputs",
    "checks", "reports",
)  # fmt: skip
METHOD_KEYS: Final = ("arguments",)


class Models:
    """The models of one repository. Thread-safe: it holds no state."""

    def __init__(self, repository: Repository, types: TypeRegistry) -> None:
        self.repository = repository
        self.types = types
        self.folder = Folder(repository, repository.models, "model", "", self._read)

    def find(self, name: str) -> ModelDefinition:
        """By name, id, or unique beginning of an id. Raises `NotFound`, `Conflict`, `InvalidDefinition`."""
        found = self.folder.find(name)
        assert isinstance(found, ModelDefinition)
        return found

    def all(self, *, write_id: bool = True) -> Listing:
        """Every model, and the files that do not parse."""
        return self.folder.all(write_id=write_id)

    def names(self) -> list[str]:
        return self.folder.names()

    def path(self, definition: ModelDefinition) -> Path:
        return self.repository.root / definition.source.file

    def parse(self, text: str, shown: Path) -> ModelDefinition:
        """Definition text that is not in a file. Raises `InvalidDefinition`."""
        data, source = load_text(text, shown)
        return parse_model(data, source)

    def create(
        self,
        type_name: str,
        name: str,
        global_arguments: Mapping[str, Any],
        arguments: Mapping[str, Mapping[str, Any]],
    ) -> ModelDefinition:
        """Write a new definition. Texts are turned into the types that the schemas declare. Raises
        `AlreadyExists` naming the file, `LocalError`, `NotFound`."""
        model_type = self.types.creatable(type_name)
        if not is_name(name):
            raise LocalError(f"'{name}' is not a model name", hint=NAME_RULE)
        document: dict[str, Any] = {
            "type": model_type.name,
            "typeVersion": model_type.version,
            "id": str(uuid.uuid4()),
            "name": name,
            "version": 1,
        }
        schema = model_type.global_arguments
        if global_arguments:
            document["globalArguments"] = coerce_text(schema, dict(global_arguments))
        if arguments:
            document["methods"] = {
                method: {
                    "arguments": coerce_text(self.types.method(model_type, method).arguments, dict(given))
                }
                for method, given in arguments.items()
            }
        path = self.repository.models / model_type.name / f"{name}.yaml"
        shown = self.folder.shown(path)
        text = dump(document)
        problems = check_model(self.parse(text, shown), model_type, partial=True)
        if problems:
            # The file does not exist yet: its lines mean nothing to whoever typed arguments.
            raise LocalError(
                "\n".join(found.partition(": ")[2] for found in problems),
                hint=f"swamp model type describe {model_type.name}",
            )
        with self.folder.lock():
            existing = self.folder.path_of(name)
            if existing is not None:
                raise AlreadyExists(
                    f"the model '{name}' exists already: {self.folder.shown(existing)}",
                    hint=f"swamp model edit {name}, or choose another name",
                )
            write_atomically(path, text, new=True)
        return self._open(path)

    def rewrite(self, path: Path, text: str) -> ModelDefinition:
        """Replace the text of a definition file, as typed; a missing `id` keeps the old one. The old text
        need not parse. Raises `InvalidDefinition`, and `LocalError` when the id would change."""
        with self.folder.lock():
            text, data, source = self.folder.keep_id(path, text)
            self._read(data, source, path)
            write_atomically(path, text)
        return self._open(path)

    def remove(self, definition: ModelDefinition) -> None:
        with self.folder.lock():
            remove_file(self.path(definition))

    def type_of(self, definition: ModelDefinition) -> ModelType:
        """Raises `InvalidDefinition` naming file and line when the type does not exist or can not be used."""
        try:
            return self.types.get(definition.type)
        except (NotFound, InvalidDefinition) as error:
            raise InvalidDefinition(
                f"{definition.source.at('type')}: {error.message}", hint=error.hint, code=error.error_code
            ) from None

    def _open(self, path: Path) -> ModelDefinition:
        found = self.folder.open(path)
        assert isinstance(found, ModelDefinition)
        return found

    def _read(self, data: Any, source: Source, path: Path) -> ModelDefinition:
        folder = path.parent.relative_to(self.repository.models).as_posix()
        return parse_model(data, source, "" if folder == "." else folder, self.folder.name_of(path))


def parse_model(
    data: Any, source: Source, expected_type: str | None = None, expected_name: str = ""
) -> ModelDefinition:
    """A definition of parsed YAML; the expectations come from the file's place. Raises `InvalidDefinition`
    with every problem, one a line."""
    findings = Findings(source)
    name = data.get("name") if isinstance(data, dict) else None
    what = f"model '{name}'" if isinstance(name, str) else "the model"
    fields = Fields(data, findings, (), what, "model", MODEL_KEYS)
    if not isinstance(data, dict):
        findings.raise_if_any()
    written_type = fields.text("type", required=True)
    type_name = normalise_type(written_type)
    if type_name and not is_type_name(type_name):
        fields.problem(f"'{written_type}' is not a type name", "a type is a text like command/shell", "type")
    elif type_name and expected_type is not None and type_name != expected_type:
        fields.problem(
            f"the type is '{type_name}' but the file lies in models/{expected_type}",
            f"move the file to models/{type_name}/",
            "type",
        )
    identity, name = read_identity(fields, data, expected_name, f"{data.get('name')}.yaml")
    type_version = data.get("typeVersion", "")
    methods: dict[str, dict[str, Any]] = {}
    for method, body in fields.mapping("methods").items():
        inner = Fields(
            {} if body is None else body,
            findings,
            ("methods", method),
            f"method '{method}'",
            "method",
            METHOD_KEYS,
        )
        methods[method] = inner.mapping("arguments")
    definition = ModelDefinition(
        type=type_name,
        id=identity,
        name=name,
        version=fields.whole("version", 1, minimum=1),
        tags=fields.texts("tags"),
        global_arguments=fields.mapping("globalArguments"),
        methods=methods,
        inputs=read_schema(data.get("inputs"), findings, ("inputs",)),
        source=source,
        type_version=type_version if isinstance(type_version, str) else str(type_version),
        checks=read_selection(fields, "checks"),
        reports=read_selection(fields, "reports"),
    )
    for part in ("globalArguments", "methods", "tags"):
        check_expressions(data.get(part), findings, (part,))
    findings.raise_if_any()
    return definition


def check_model(definition: ModelDefinition, model_type: ModelType, *, partial: bool = False) -> list[str]:
    """What is wrong with the stored arguments, by file and line. With `partial`, what callers may still give
    is not missed; expressions pass."""
    checked = check_arguments_of(definition, model_type, partial=partial)
    return [problem for _, problems in checked for problem in problems]


def check_arguments_of(
    definition: ModelDefinition, model_type: ModelType, *, partial: bool = False
) -> list[tuple[str, list[str]]]:
    """The checks of `check_model` by name: `global arguments`, and one for each stored method."""
    source = definition.source
    named = [
        (
            "Global arguments",
            _check_part(
                model_type.global_arguments, definition.global_arguments, source, ("globalArguments",), False
            ),
        )
    ]
    for method, given in definition.methods.items():
        path = ("methods", method, "arguments")
        spec = model_type.methods.get(method)
        if spec is None:
            listed = ", ".join(model_type.methods) or "none"
            named.append(
                (
                    f"Method '{method}'",
                    [
                        f"{source.at('methods', method)}: {model_type.name} has no method '{method}'."
                        f"{suggestion(method, model_type.methods)} Methods are: {listed}"
                    ],
                )
            )
            continue
        known = spec.arguments.get("properties", {})
        shared = {key: value for key, value in definition.global_arguments.items() if key in known}
        named.append(
            (
                f"Arguments of '{method}'",
                _check_part(spec.arguments, {**shared, **given}, source, path, partial=True),
            )
        )
    return named


def _check_part(
    schema: Mapping[str, Any],
    given: Mapping[str, Any],
    source: Source,
    path: tuple[str | int, ...],
    partial: bool,
) -> list[str]:
    """`given` against `schema`, each problem with its line. Sensitive values must be expressions: a
    definition is a file for git."""
    problems = []
    properties: Mapping[str, Any] = schema.get("properties", {})
    for key, value in given.items():
        where = source.at(*path, key)
        if key not in properties:
            if schema.get("additionalProperties", True) is False:
                listed = ", ".join(properties) or "none"
                problems.append(
                    f"{where}: '{key}' is not an argument.{suggestion(key, properties)}"
                    f" Valid arguments are: {listed}"
                )
            continue
        problems += [
            f"{where}: {found}" for found in check_value(properties[key], value, key, expressions=True)
        ]
        if properties[key].get("sensitive") is True and isinstance(value, str) and not has_expression(value):
            problems.append(
                f"{where}: {key} is sensitive and must not stand in the file: write "
                f'${{{{ vault.get("VAULT", "KEY") }}}}'
            )
    if not partial:
        complete = with_defaults(schema, given)
        problems += [
            f"{source.at(*path)}: {key} is required"
            for key in schema.get("required", ())
            if key not in complete
        ]
    return problems

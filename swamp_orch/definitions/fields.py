"""Reading the keys of one map of a definition, with every problem named by file and line.

Rules:
1. A problem never stops the reading: all problems of a file are reported together, in the order of their
   lines.
2. Every key is either read or refused; an unknown key comes with the nearest known one and the list of valid
   ones.
3. Types are exact: nothing is coerced here (`"1"` is no number, `1` and `true` are no text).

It does not know any format; `models.py`, `workflows.py` and `inputs.py` do.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from swamp_orch.definitions.durations import parse_duration
from swamp_orch.definitions.values import Source
from swamp_orch.definitions.yaml_source import DocumentPath
from swamp_proto.errors import InvalidDefinition

NAME_RULE: Final = "names are 1 to 64 of a-z, 0-9, _ and -, and start with a letter or digit"
OTHER_WORDS: Final[Mapping[str, str]] = {
    "arguments": "inputs", "args": "inputs", "with": "inputs", "params": "inputs", "parameters": "inputs",
    "needs": "dependsOn", "depends_on": "dependsOn", "after": "dependsOn", "if": "guard", "when": "guard",
    "model": "modelIdOrName", "modelName": "modelIdOrName", "modelId": "modelIdOrName",
    "method": "methodName", "workflow": "workflowIdOrName", "workflowName": "workflowIdOrName",
    "retries": "retry", "worker": "target",
    "runsOn": "target", "runs_on": "target", "runs-on": "target", "selector": "labels",
    "continueOnError": "allowFailure", "continue-on-error": "allowFailure", "allow_failure": "allowFailure",
    "cron": "schedule", "variables": "inputs", "each": "forEach", "tasks": "task", "stages": "jobs",
}  # fmt: skip
"""What other systems call our keys."""


@attrs.frozen(order=True)
class Problem:
    """One finding in a file. `line` 0: unknown."""

    line: int
    where: str  # `models/x.yaml:3`
    text: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class DefinitionProblems(InvalidDefinition):
    """All problems of one file. The message has one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        unique = list(dict.fromkeys(sorted(problems, key=lambda found: found.line)))
        super().__init__("\n".join(map(str, unique)), hint=next((p.hint for p in unique if p.hint), None))
        self.problems = tuple(unique)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    names = list(known)
    other = OTHER_WORDS.get(word)
    if other in names:
        return other
    folded = {name.lower().replace("_", "").replace("-", ""): name for name in names}
    plain = word.lower().replace("_", "").replace("-", "")
    if plain in folded:
        return folded[plain]
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing."""
    found = nearest(word, known)
    return f" Did you mean '{found}'?" if found else ""


def kind(value: Any) -> str:
    """What a value is, for people."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"the boolean {'true' if value else 'false'}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a map"


def has_expression(value: Any) -> bool:
    return isinstance(value, str) and "${{" in value


def is_whole_expression(value: Any) -> bool:
    """Whether `value` is one expression and nothing else, as far as brackets tell (the tokenizer decides)."""
    return isinstance(value, str) and value.strip().startswith("${{") and value.strip().endswith("}}")


@attrs.define
class Findings:
    """Collects the problems of one file."""

    source: Source
    problems: list[Problem] = attrs.field(factory=list)

    def add(self, path: DocumentPath, text: str, hint: str | None = None) -> None:
        shortened = path
        while shortened and shortened not in self.source.lines:
            shortened = shortened[:-1]
        line = self.source.lines.get(shortened, 0)
        self.problems.append(Problem(line, self.source.at(*path), text, hint))

    def raise_if_any(self) -> None:
        if self.problems:
            raise DefinitionProblems(self.problems)


class Fields:
    """The keys of one map. Getters answer the value, or `default` after noting a problem."""

    def __init__(
        self, data: Any, findings: Findings, path: DocumentPath, what: str, noun: str, known: Sequence[str]
    ) -> None:
        """`what` names this map in messages (`step 'x'`), `noun` its kind (`step`)."""
        self.findings = findings
        self.path = path
        self.what = what
        self.noun = noun
        self.known = known
        self.data: dict[str, Any] = {}
        if not isinstance(data, dict):
            self.problem(
                f"{what} must be a map of keys, not {kind(data)}", f"valid {noun} keys: {', '.join(known)}"
            )
            return
        self.data = data
        for key in data:
            if key not in known:
                self._unknown(key)

    def _unknown(self, key: str) -> None:
        if key in ("driver", "driverConfig"):
            self.problem(
                f"'{key}' on {self.what} is not supported: target, labels and platform say where a step runs",
                "remove it, and place the step with target or labels",
                key,
            )
            return
        self.problem(
            f"Unknown key '{key}' on {self.what}.{suggestion(key, self.known)} Valid {self.noun} keys: "
            + ", ".join(self.known),
            None,
            key,
        )

    def problem(self, text: str, hint: str | None = None, *path: str | int) -> None:
        self.findings.add((*self.path, *path), text, hint)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def wrong(self, key: str, wanted: str, hint: str | None = None) -> None:
        value = self.data[key]
        written = self.findings.source.texts.get((*self.path, key))
        if hint is None and wanted == "text" and written:
            hint = f'quote it: {key}: "{written}"'
        found = kind(value)
        if written and not isinstance(value, bool) and value is not None:
            found = f"the number {written}"
        if value is None:
            self.problem(
                f"'{key}' on {self.what} is empty",
                hint or f"give it a value ({wanted}) or remove the key",
                key,
            )
        else:
            self.problem(f"'{key}' on {self.what} must be {wanted}, not {found}", hint, key)

    def text(self, key: str, default: str = "", *, required: bool = False, empty: bool = False) -> str:
        if key not in self.data:
            if required:
                self.missing(key)
            return default
        value = self.data[key]
        if not isinstance(value, str):
            self.wrong(key, "text")
            return default
        if not value.strip() and not empty:
            self.problem(f"'{key}' on {self.what} is empty", f"give '{key}' a value", key)
            return default
        return value

    def missing(self, key: str) -> None:
        self.problem(f"{self.what} has no '{key}'", f"add `{key}: …`")

    def whole(self, key: str, default: int, *, minimum: int = 0) -> int:
        """An integer."""
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(key, "a whole number")
            return default
        if value < minimum:
            self.problem(f"'{key}' on {self.what} must be at least {minimum}, not {value}", None, key)
            return default
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            hint = None
            if isinstance(value, str) and value.lower() in ("yes", "on", "no", "off", "true", "false"):
                hint = f"write {key}: {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
            self.wrong(key, "true or false", hint)
            return default
        return value

    def duration(self, key: str, *, zero: bool = False) -> float | None:
        """Seconds; None when the key is absent. With `zero`, 0 is allowed."""
        if key not in self.data:
            return None
        value = self.data[key]
        if value is None:
            self.wrong(key, "a duration")
            return None
        if has_expression(value):
            self.problem(f"'{key}' on {self.what} must be a fixed duration, not an expression", None, key)
            return None
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.problem(f"'{key}' on {self.what} {error}", f"write {key}: 30s", key)
            return None
        if seconds == 0 and not zero:
            self.problem(
                f"'{key}' on {self.what} must be more than 0", f"remove '{key}' to have no limit", key
            )
            return None
        return seconds

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self.data.get(key, default)
        if value in choices and isinstance(value, str):
            return value
        listed = ", ".join(choices)
        if isinstance(value, str):
            self.problem(
                f"'{key}' on {self.what} must be one of {listed}, not '{value}'.{suggestion(value, choices)}",
                None,
                key,
            )
        else:
            self.wrong(key, f"one of {listed}")
        return default

    def mapping(self, key: str) -> dict[str, Any]:
        """A map; an empty value counts as an empty map."""
        value = self.data.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.wrong(key, "a map")
            return {}
        return value

    def texts(self, key: str) -> dict[str, str]:
        """A map from text to text: tags, labels. Everything else in it is named with its quoted form."""
        found: dict[str, str] = {}
        for name, value in self.mapping(key).items():
            if isinstance(value, str):
                found[name] = value
                continue
            written = self.findings.source.texts.get((*self.path, key, name), "")
            if isinstance(value, dict | list):
                self.problem(
                    f"'{name}' in {key} on {self.what} must be text, not {kind(value)}", None, key, name
                )
                continue
            shown = f"the boolean {written}" if isinstance(value, bool) else f"the number {written}"
            if value is None:
                shown = "empty"
            self.problem(
                f"'{name}' in {key} on {self.what} must be text, not {shown}",
                f'quote it: {name}: "{written}"',
                key,
                name,
            )
        return found

    def items(self, key: str, *, required: bool = False) -> list[Any]:
        """A list."""
        if key not in self.data:
            if required:
                self.missing(key)
            return []
        value = self.data[key]
        if not isinstance(value, list):
            self.wrong(key, "a list", None if value is None else "write a list: each entry starts with `- `")
            return []
        if required and not value:
            self.problem(
                f"'{key}' on {self.what} is an empty list", f"add at least one entry to '{key}'", key
            )
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = []
        for index, item in enumerate(self.items(key)):
            if isinstance(item, str) and item:
                found.append(item)
            else:
                self.problem(
                    f"entry {index + 1} of {key} on {self.what} must be text, not {kind(item)}",
                    None,
                    key,
                    index,
                )
        return tuple(found)

    def under(self, *path: str | int) -> DocumentPath:
        return (*self.path, *path)


SELECTION_KEYS: Final = ("require", "skip")


def read_selection(fields: Fields, key: str) -> dict[str, list[str]]:
    """`{require: […], skip: […]}`: which checks, or reports, are wanted."""
    if key not in fields:
        return {}
    inner = Fields(fields.data[key], fields.findings, fields.under(key), f"the {key}", key, SELECTION_KEYS)
    return {name: list(inner.words(name)) for name in SELECTION_KEYS if name in inner}


def expressions(value: Any, path: DocumentPath = ()) -> Iterator[tuple[DocumentPath, str]]:
    """Every text in `value` that holds an expression, with its place."""
    if isinstance(value, str):
        if "${{" in value:
            yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from expressions(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from expressions(item, (*path, index))


def check_expressions(value: Any, findings: Findings, path: DocumentPath = ()) -> None:
    """The syntax of every expression in `value`."""
    for place, text in expressions(value, path):
        problem = expression_problem(text)
        if problem is not None:
            findings.add(place, *problem)


def expression_problem(text: str) -> tuple[str, str | None] | None:
    """What is wrong with the expressions in `text`, and what to do; None when they are well formed."""
    from swamp_orch.expressions.template import parse
    from swamp_proto.errors import SwampError

    try:
        parse(text)
    except SwampError as error:
        return error.message, error.hint
    return None


_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_identifier(text: str) -> bool:
    """Whether `text` can be a name inside an expression."""
    return _IDENTIFIER.fullmatch(text) is not None

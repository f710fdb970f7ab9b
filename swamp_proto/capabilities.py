"""The table of capabilities: what each verb takes and gives, whether it changes anything, and whom it may concern.

One table drives the checks at the orchestrator, the client side in the worker, the authorisation matrix in the
tests and the section in `docs/protocol.md`. A verb that is not here does not exist.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import attrs

from swamp_proto.errors import SwampError
from swamp_proto.messages.capability import CallCode, Verb


class Reach(StrEnum):
    """Whose things a verb may concern; never swamp's own bookkeeping or secrets."""

    OWN = "own"  # the model of the dispatch
    READABLE = "readable"  # its own, those its definition names, those its type declares
    REFERRED = "referred"  # secrets its unresolved definition refers to, or its type declares


@attrs.frozen
class VerbRule:
    """`takes` and `gives`: field -> type as on the wire; a trailing `?` marks what may be absent."""

    verb: Verb
    reach: Reach
    mutates: bool
    takes: Mapping[str, str]
    gives: Mapping[str, str]


RULES: Final = (
    VerbRule(
        Verb.LATEST,
        Reach.READABLE,
        False,
        {"model?": "text", "name": "text"},
        {"found": "boolean", "record?": "map", "content?": "bytes"},
    ),
    VerbRule(
        Verb.VERSION,
        Reach.READABLE,
        False,
        {"model?": "text", "name": "text", "version": "integer"},
        {"found": "boolean", "record?": "map", "content?": "bytes"},
    ),
    VerbRule(
        Verb.VERSIONS,
        Reach.READABLE,
        False,
        {"model?": "text", "name": "text"},
        {"versions": "list"},
    ),
    VerbRule(
        Verb.QUERY,
        Reach.READABLE,
        False,
        {"predicate": "text", "select?": "text", "limit?": "integer"},
        {"rows": "list", "failed": "integer"},
    ),
    VerbRule(Verb.DELETE, Reach.OWN, True, {"name": "text"}, {"deleted": "boolean", "version?": "integer"}),
    VerbRule(Verb.DEFINITION, Reach.READABLE, False, {"model?": "text"}, {"definition": "map"}),
    VerbRule(Verb.SECRET, Reach.REFERRED, False, {"vault": "text", "key": "text"}, {"value": "text"}),
    VerbRule(Verb.PUT_SECRET, Reach.REFERRED, True, {"vault": "text", "key": "text", "value": "text"}, {}),
    VerbRule(
        Verb.RUN_MODEL,
        Reach.READABLE,
        True,
        {"model": "text", "method": "text", "inputs?": "map"},
        {"run": "text", "status": "text", "records": "list", "error?": "text"},
    ),
    VerbRule(
        Verb.OUTPUT,
        Reach.READABLE,
        False,
        {"model?": "text", "method?": "text"},
        {"found": "boolean", "output?": "map"},
    ),
)
"""`model` is a model's name; absent, the dispatch's own."""

RULE_BY_VERB: Final[Mapping[Verb, VerbRule]] = {rule.verb: rule for rule in RULES}

_KINDS: Final[Mapping[str, type]] = {
    "text": str,
    "integer": int,
    "boolean": bool,
    "bytes": bytes,
    "list": list,
    "map": dict,
}


class CallRefused(SwampError):
    """A call, a write or a read that was not done. `call_code` says why."""

    def __init__(self, call_code: CallCode, message: str) -> None:
        super().__init__(message, code=call_code.value)
        self.call_code = call_code


def check_arguments(verb: Verb, arguments: Mapping[str, Any]) -> None:
    """Raises `CallRefused` (`invalid`) unless `arguments` are what `verb` takes."""
    _check(RULE_BY_VERB[verb].takes, arguments, f"{verb.value} takes")


def check_value(verb: Verb, value: Mapping[str, Any]) -> None:
    """Raises `CallRefused` (`invalid`) unless `value` is what `verb` gives."""
    _check(RULE_BY_VERB[verb].gives, value, f"{verb.value} gives")


def _check(fields: Mapping[str, str], given: Mapping[str, Any], what: str) -> None:
    known = {name.removesuffix("?"): kind for name, kind in fields.items()}
    for name in given:
        if name not in known:
            raise CallRefused(CallCode.INVALID, f"{what} no {name!r}")
    for name, kind in fields.items():
        plain = name.removesuffix("?")
        if plain not in given:
            if name == plain:
                raise CallRefused(CallCode.INVALID, f"{what} {plain!r}, which is missing")
            continue
        if type(given[plain]) is not _KINDS[kind]:
            raise CallRefused(CallCode.INVALID, f"{what} {plain!r} as {kind}")


assert set(RULE_BY_VERB) == set(Verb)

"""The format of workflow files as JSON Schema (draft 2020-12), for editors: `swamp workflow schema`.

It is made of the parser's own key lists, so that both know the same keys; what JSON Schema cannot say
(references, cycles, expression grammar) is left to `swamp workflow validate`. It is never stricter than the
parser.
"""

from collections.abc import Iterable
from typing import Any

from swamp_orch.definitions.conditions import SIMPLE
from swamp_orch.definitions.fields import SELECTION_KEYS
from swamp_orch.definitions.inputs import PROPERTY_KEYS, TYPES
from swamp_orch.definitions.placement import PLACEMENT_KEYS
from swamp_orch.definitions.tasks import SEVERITIES, TASK_KEYS
from swamp_orch.definitions.workflows import (
    FOR_EACH_KEYS,
    JOB_KEYS,
    OVERRIDE_KEYS,
    RETRY_KEYS,
    STEP_KEYS,
    TRIGGER_KEYS,
    WORKFLOW_KEYS,
)
from swamp_proto.ids import NAME_PATTERN, UUID_PATTERN

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXTS: dict[str, Any] = {"type": ["object", "null"], "additionalProperties": {"type": "string"}}
_MAP: dict[str, Any] = {"type": ["object", "null"]}
_EXPRESSION: dict[str, Any] = {"type": "string", "pattern": r"^\s*\$\{\{[\s\S]*\}\}\s*$"}


def workflow_schema() -> dict[str, Any]:
    """The schema document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "swamp workflow",
        **_object(
            WORKFLOW_KEYS,
            ("name", "jobs"),
            {
                "id": {
                    "type": "string",
                    "pattern": f"^{UUID_PATTERN.pattern}$",
                    "description": "generated when missing",
                },
                "name": {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"},
                "description": {"type": "string"},
                "tags": _TEXTS,
                "inputs": {"$ref": "#/$defs/inputs"},
                "trigger": _object(
                    TRIGGER_KEYS,
                    (),
                    {"schedule": _TEXT, "timezone": _TEXT, "inputs": _MAP},
                ),
                "concurrency": _COUNT,
                "timeout": {"$ref": "#/$defs/duration"},
                "affinity": {"type": "boolean"},
                **_placement(),
                "reports": _object(
                    SELECTION_KEYS, (), {key: {"type": "array", "items": _TEXT} for key in SELECTION_KEYS}
                ),
                "jobs": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/job"}},
                "version": {"type": "integer", "minimum": 1, "description": "default 1"},
            },
        ),
        "not": {"required": ["target", "labels"]},
        "$defs": {
            "duration": {
                "description": "seconds, or a text like 30s, 5m, 1h30m",
                "oneOf": [
                    {"type": "number", "minimum": 0},
                    {
                        "type": "string",
                        "pattern": r"^\s*([0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+)\s*$",
                    },
                ],
            },
            "job": _job(),
            "step": _step(),
            "task": _task(),
            "condition": _condition(),
            "inputs": _inputs(),
            "input": _input(),
        },
    }


def _object(keys: Iterable[str], required: Iterable[str], properties: dict[str, Any]) -> dict[str, Any]:
    keys = tuple(keys)
    assert set(properties) == set(keys), set(properties) ^ set(keys)
    found: dict[str, Any] = {"type": "object", "properties": {key: properties[key] for key in keys}}
    needed = list(required)
    if needed:
        found["required"] = needed
    found["additionalProperties"] = False
    return found


def _placement() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "target": {**_TEXT, "description": "a worker's name or instance UUID; not together with labels"},
        "labels": {
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "the worker must have all of them; {} clears inherited ones",
        },
        "platform": {**_TEXT, "description": "os or os/arch"},
        "queueTimeout": {
            "$ref": "#/$defs/duration",
            "description": "how long to wait for a worker; absent: for ever",
        },
    }
    assert tuple(properties) == PLACEMENT_KEYS
    return properties


def _dependencies(noun: str) -> dict[str, Any]:
    entry = _object((noun, "condition"), (noun,), {noun: _TEXT, "condition": {"$ref": "#/$defs/condition"}})
    return {"type": "array", "items": {"oneOf": [_TEXT, entry]}}


def _job() -> dict[str, Any]:
    return {
        **_object(
            JOB_KEYS,
            ("name", "steps"),
            {
                "name": _TEXT,
                "description": {"type": "string"},
                "dependsOn": _dependencies("job"),
                "weight": {"type": "integer", "description": "lower starts first"},
                "concurrency": _COUNT,
                "timeout": {"$ref": "#/$defs/duration"},
                "affinity": {"type": "boolean"},
                **_placement(),
                "steps": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/step"}},
            },
        ),
        "not": {"required": ["target", "labels"]},
    }


def _step() -> dict[str, Any]:
    return {
        **_object(
            STEP_KEYS,
            ("name", "task"),
            {
                "name": _TEXT,
                "description": {"type": "string"},
                "dependsOn": _dependencies("step"),
                "forEach": _object(FOR_EACH_KEYS, FOR_EACH_KEYS, {"item": _TEXT, "in": _EXPRESSION}),
                "guard": {**_EXPRESSION, "description": "when true, the step is skipped"},
                **_placement(),
                "weight": {"type": "integer", "description": "lower starts first"},
                "concurrency": _COUNT,
                "timeout": {"$ref": "#/$defs/duration"},
                "retry": _object(
                    RETRY_KEYS,
                    ("attempts",),
                    {
                        "attempts": {"type": "integer", "minimum": 1, "description": "further attempts"},
                        "backoff": {"$ref": "#/$defs/duration"},
                    },
                ),
                "allowFailure": {"type": "boolean"},
                "onWorkerLost": {"enum": ["redispatch", "fail"]},
                "dataOutputOverrides": {
                    "type": "array",
                    "items": _object(
                        OVERRIDE_KEYS,
                        ("specName",),
                        {
                            "specName": _TEXT,
                            "lifetime": _TEXT,
                            "garbageCollection": {"type": "integer", "minimum": 1},
                            "tags": _TEXTS,
                            "vary": {"type": "array", "items": _TEXT},
                            "vaultName": _TEXT,
                        },
                    ),
                },
                "task": {"$ref": "#/$defs/task"},
            },
        ),
        "not": {"required": ["target", "labels"]},
    }


def _task() -> dict[str, Any]:
    inputs = {"oneOf": [_MAP, _EXPRESSION]}
    properties: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "model_method": (
            ("modelIdOrName", "methodName"),
            {"modelIdOrName": _TEXT, "methodName": _TEXT, "inputs": inputs},
        ),
        "workflow": (("workflowIdOrName",), {"workflowIdOrName": _TEXT, "inputs": inputs}),
        "manual_approval": (("prompt",), {"prompt": _TEXT, "timeout": {"$ref": "#/$defs/duration"}}),
        "assert": (("expr",), {"expr": _TEXT, "message": _TEXT, "severity": {"enum": list(SEVERITIES)}}),
    }
    return {
        "oneOf": [
            _object(TASK_KEYS[name], ("type", *required), {"type": {"const": name}, **keys})
            for name, (required, keys) in properties.items()
        ]
    }


def _condition() -> dict[str, Any]:
    reference = {"$ref": "#/$defs/condition"}
    return {
        "oneOf": [
            _object(("type",), ("type",), {"type": {"enum": list(SIMPLE)}}),
            _object(
                ("type", "conditions"),
                ("type", "conditions"),
                {
                    "type": {"enum": ["and", "or"]},
                    "conditions": {"type": "array", "minItems": 2, "items": reference},
                },
            ),
            _object(
                ("type", "condition"),
                ("type", "condition"),
                {"type": {"const": "not"}, "condition": reference},
            ),
        ]
    }


def _inputs() -> dict[str, Any]:
    described = _input_keys()
    return {
        "description": "{type: object, properties, required}, or a map of properties",
        "oneOf": [
            {
                **_object(PROPERTY_KEYS, (), {**described, "type": {"const": "object"}}),
                "anyOf": [
                    {"required": ["type"]},
                    {"required": ["properties"]},
                ],
            },
            {
                "type": ["object", "null"],
                "properties": {"type": {"type": "object"}},
                "additionalProperties": {"$ref": "#/$defs/input"},
            },
        ],
    }


def _input_keys() -> dict[str, Any]:
    return {
        "type": {"enum": list(TYPES)},
        "description": {"type": "string"},
        "enum": {"type": "array", "minItems": 1},
        "default": {},
        "required": {"oneOf": [{"type": "boolean"}, {"type": "array", "items": _TEXT}]},
        "properties": {"type": ["object", "null"], "additionalProperties": {"$ref": "#/$defs/input"}},
        "items": {"$ref": "#/$defs/input"},
        "minItems": _COUNT,
        "maxItems": _COUNT,
        "additionalProperties": {"oneOf": [{"type": "boolean"}, {"$ref": "#/$defs/input"}]},
        "sensitive": {"type": "boolean"},
    }


def _input() -> dict[str, Any]:
    return _object(PROPERTY_KEYS, (), _input_keys())

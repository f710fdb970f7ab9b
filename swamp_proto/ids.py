"""Names and identifiers: one type per idea, so that mixing them up is a type error.

All are plain strings or integers on the wire. Grammar checks live here because both ends need them; making an
id (randomness) does not: ids arrive in events or come from the shell.
"""

import re
from typing import Final, NewType

TokenName = NewType("TokenName", str)
WorkerName = NewType("WorkerName", str)  # a token's name, or `<token>-<8 hex>` for fleet members
MachineId = NewType("MachineId", str)  # uuid in the worker's cache directory
InstanceId = NewType("InstanceId", str)  # uuid per worker process
DispatchId = NewType("DispatchId", str)  # uuid; one attempt to run one step on one executor
RunId = NewType("RunId", str)  # uuid; one execution of a workflow
MintId = NewType("MintId", str)  # uuid; one minting of a token name
Fence = NewType("Fence", int)  # grows per step, never repeats

NAME_LENGTH_MAX: Final = 64
NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
UUID_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_name(text: str) -> bool:
    """Whether `text` may name a token, worker, model, workflow or vault."""
    return NAME_PATTERN.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Whether `text` is a canonical lower-case UUID."""
    return UUID_PATTERN.fullmatch(text) is not None

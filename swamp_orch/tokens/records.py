"""Tokens and workers as records: one record per token name and per worker name, with history.

Every write expects the version its value was read from, so that two processes never overwrite each other. A
record that can not be read is `Broken`, naming it: nothing here skips a bad one in silence.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from swamp_orch.core.tokens import Token
from swamp_orch.store.bookkeeping import (
    ENROLLMENT_TOKEN,
    TOKEN_RECORD,
    WORKER,
    WORKER_RECORD,
    model_id,
    worker_model,
)
from swamp_orch.store.interface import Comparison, NewRecord, Record, Selection, Store, Term, json_content
from swamp_orch.tokens.workers import WorkerState
from swamp_proto.errors import Broken
from swamp_proto.limits import BOOKKEEPING_VERSIONS_KEPT

Value = TypeVar("Value")


def read_token(store: Store, name: str) -> Token | None:
    """The token as it is now, or None when the name was never minted."""
    record = store.latest(model_id(ENROLLMENT_TOKEN, name), TOKEN_RECORD)
    return None if record is None else _parsed(store, record, Token.from_attributes)


def parse_token(store: Store, record: Record) -> Token:
    """The token that a record of its type says. Raises Broken, naming the record."""
    return _parsed(store, record, Token.from_attributes)


def read_tokens(store: Store) -> list[Token]:
    """All tokens, by name."""
    return sorted(_all(store, ENROLLMENT_TOKEN, Token.from_attributes), key=lambda token: token.name)


def token_record(token: Token) -> NewRecord:
    """The next version of a token's record; expects the version `token` was read from."""
    return NewRecord(
        model_type=ENROLLMENT_TOKEN,
        model_id=model_id(ENROLLMENT_TOKEN, token.name),
        model_name=token.name,
        name=TOKEN_RECORD,
        spec="token",
        content=json_content(token.to_attributes()),
        keep=BOOKKEEPING_VERSIONS_KEPT,
        expect=token.version,
    )


def read_worker(store: Store, name: str) -> WorkerState | None:
    """The worker as last recorded, or None when nothing of that name ever enrolled."""
    record = store.latest(model_id(WORKER, worker_model(name)), WORKER_RECORD)
    return None if record is None else _parsed(store, record, WorkerState.from_attributes)


def read_workers(store: Store) -> list[WorkerState]:
    """All workers, by name, as last recorded."""
    return sorted(_all(store, WORKER, WorkerState.from_attributes), key=lambda worker: worker.name)


def worker_record(worker: WorkerState) -> NewRecord:
    """The next version of a worker's record; expects the version `worker` was read from."""
    return NewRecord(
        model_type=WORKER,
        model_id=model_id(WORKER, worker_model(worker.name)),
        model_name=worker_model(worker.name),
        name=WORKER_RECORD,
        spec="state",
        content=json_content(worker.to_attributes()),
        keep=BOOKKEEPING_VERSIONS_KEPT,
        expect=worker.version,
    )


def _all(store: Store, model_type: str, build: Callable[[Mapping[str, Any], int], Value]) -> list[Value]:
    selection = Selection(terms=(Term("modelType", Comparison.EQ, (model_type,)),))
    return [_parsed(store, record, build) for record in store.select(selection)]


def _parsed(store: Store, record: Record, build: Callable[[Mapping[str, Any], int], Value]) -> Value:
    content = record.content if record.content is not None else store.read(record)
    try:
        return build(json.loads(content), record.version)
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(
            f"the record {record.name} of {record.model_type} {record.model_name}, version {record.version}, "
            f"is not readable: {error!r}",
            hint=f"swamp data get {record.model_name} {record.name} --version {record.version}",
        ) from error

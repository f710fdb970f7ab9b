"""A word about an answer that looks like a typing mistake: attributes nobody has.

Attributes cannot be checked before a query runs, and a record without one is no match, so a misspelt
attribute gives an empty answer. When that happens, some of the records the rest of the predicate selects are
looked at, and if none of them has the attribute, it is said.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Final

import attrs

from swamp_orch.query import syntax
from swamp_orch.query.environment import Compiled
from swamp_orch.query.records import MISSING, Reader, decode_attributes
from swamp_orch.query.run import Answer, Query

_LOOKED_AT: Final = 100
"""Records looked at; an answer that found something costs nothing."""


def note(store: Reader, query: Query, answer: Answer) -> str | None:
    """One sentence, or None when there is nothing to say."""
    if answer.skipped:
        return None
    if not answer.results:
        return _about(query.predicate, _documents(store, query))
    if query.select is not None and all(value is None for value in answer.results):
        return _about(query.select, _documents(store, query))
    return None


def _about(asked: Compiled, documents: list[Any]) -> str | None:
    if not documents:
        return None
    for path in _paths(asked.tree.root):
        known: dict[str, None] = {}
        for document in documents:
            parent = _walk(document, path[:-1])
            if isinstance(parent, dict):
                known.update(dict.fromkeys(parent))
        if path[-1] in known:
            continue
        named = ".".join(("attributes", *path))
        near = difflib.get_close_matches(path[-1], known, n=1)
        more = f"; did you mean {'.'.join(('attributes', *path[:-1], near[0]))}?" if near else ""
        return f"no record looked at has {named}{more}"
    return None


def _paths(root: syntax.Node) -> Iterator[tuple[str, ...]]:
    """Paths below `attributes`, shorter ones first, so that the first wrong key is named."""
    found = {
        path[1:]
        for node in syntax.walk(root)
        if (path := syntax.path_of(node)) is not None and path[0] == "attributes" and len(path) > 1
    }
    yield from sorted(found, key=lambda path: (len(path), path))


def _documents(store: Reader, query: Query) -> list[Any]:
    found: list[Any] = []
    for selection in query.plan.selections:
        terms = tuple(term for term in selection.terms if not term.field.startswith("attributes."))
        for (raw,) in store.scan(attrs.evolve(selection, terms=terms), ("attributes",), limit=_LOOKED_AT):
            document = decode_attributes(raw)
            if document is not MISSING:
                found.append(document)
    return found


def _walk(document: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document

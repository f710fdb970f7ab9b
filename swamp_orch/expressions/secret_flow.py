"""Secrets on their way through the expression engine.

The engine works on texts, and a secret's text must not be in it. So each secret goes in as a *marker*, a text with a
random part that nobody can have written down before, and `Markers.take` makes `Secret`s of what comes out.

A marker must never be taken for the text it stands for: its length, its letters and its equality mean nothing. `SecretUse`
proves from the syntax tree, before the engine runs, that an expression does nothing with a secret but pass it on.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Final

import attrs

from swamp_orch.expressions.scope import called
from swamp_orch.expressions.secret import Secret, SecretRef, joined, secrets_in
from swamp_orch.query import syntax


class Markers:
    """Secrets of one evaluation, as texts that nobody can have written down before."""

    def __init__(self) -> None:
        self._nonce = ""  # drawn with the first secret
        self._known: list[Secret] = []

    def _mark(self, secret: Secret) -> str:
        self._nonce = self._nonce or secrets.token_hex(16)
        self._known.append(secret)
        return f"\ue000{self._nonce}:{len(self._known) - 1}\ue001"

    def vault_get(self, vault: str, key: str) -> str:
        return self._mark(Secret((SecretRef(vault, key),)))

    def put(self, value: Any) -> Any:
        """A copy with markers in place of secrets."""
        if isinstance(value, Secret):
            return self._mark(value)
        if isinstance(value, Mapping):
            return {key: self.put(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(item) for item in value]
        return value

    def take(self, value: Any) -> Any:
        """A copy with secrets in place of markers."""
        if not self._known:
            return value
        if isinstance(value, str):
            parts: list[str | Secret] = []
            first, *others = value.split(f"\ue000{self._nonce}:")
            parts.append(first)
            for piece in others:
                number, _, rest = piece.partition("\ue001")
                parts += [self._known[int(number)], rest]
            return joined(parts)
        if isinstance(value, dict):
            return {key: self.take(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.take(item) for item in value]
        return value


class LookedInto(Exception):
    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


_PASSES_ON: Final = frozenset({"_+_", "join", "orValue", "or", "value", "string", "dyn"})
_SELECTS: Final = frozenset({syntax.INDEX, syntax.OPTIONAL_SELECT, syntax.OPTIONAL_INDEX})


@attrs.frozen
class SecretUse:
    """Proves that an expression does nothing with a secret but pass it on.

    `of(node, bound)` says whether the value of `node` can be or hold a secret. It errs on the side of
    secrecy: what is picked out of something that holds one counts as one, unless the path is written out and
    the value is at hand.
    """

    data: Mapping[str, Any]

    def check(self, root: syntax.Node) -> None:
        self.of(root, {})

    def of(self, node: syntax.Node, bound: Mapping[str, bool]) -> bool:
        match node:
            case syntax.Constant():
                return False
            case syntax.Name(name=name):
                return bound[name] if name in bound else self._holds((name,))
            case syntax.Select(operand=operand, test_only=test_only):
                return self._picked(node, (operand,), bound) and not test_only
            case syntax.Call():
                return self._call(node, bound)
            case syntax.ListLiteral(elements=elements):
                return self._any(elements, bound)
            case syntax.MapLiteral(entries=entries):
                for key, _ in entries:
                    if key is not None and self.of(key, bound):
                        raise LookedInto("uses a secret as a key")
                return self._any([item for _, item in entries], bound)
            case syntax.Comprehension():
                return self._comprehension(node, bound)

    def _any(self, nodes: "list[syntax.Node] | tuple[syntax.Node, ...]", bound: Mapping[str, bool]) -> bool:
        found = False
        for node in nodes:  # all of them: each must be proved
            found |= self.of(node, bound)
        return found

    def _picked(
        self, node: syntax.Node, operands: tuple[syntax.Node, ...], bound: Mapping[str, bool]
    ) -> bool:
        path = syntax.path_of(node)
        if path is not None and path[0] not in bound:
            return self._holds(path)
        return self._any(operands, bound)

    def _holds(self, path: tuple[str, ...]) -> bool:
        value: Any = self.data
        for key in path:
            if isinstance(value, Secret):
                return True
            if not isinstance(value, Mapping) or key not in value:
                return False
            value = value[key]
        return next(iter(secrets_in(value)), None) is not None

    def _call(self, node: syntax.Call, bound: Mapping[str, bool]) -> bool:
        name = called(node)
        if name is not None:
            if self._any(node.arguments, bound):
                raise LookedInto(f"gives a secret to {name}()")
            return name == "vault.get"
        function = node.function
        if function in _SELECTS:
            container, key = node.arguments
            if self.of(key, bound):
                raise LookedInto("uses a secret as a key")
            return self._picked(node, (container,), bound)
        if function == "_?_:_":
            condition, *branches = node.arguments
            if self.of(condition, bound):
                raise LookedInto("decides by a secret")
            return self._any(branches, bound)
        operands = node.arguments if node.target is None else (node.target, *node.arguments)
        found = self._any(operands, bound)
        if found and function == "hasValue":
            return False
        if found and function not in _PASSES_ON:
            shown = function.strip("_@") if function.startswith(("_", "@", "!")) else f"{function}()"
            raise LookedInto(f"looks into a secret with {shown}")
        return found

    def _comprehension(self, node: syntax.Comprehension, bound: Mapping[str, bool]) -> bool:
        item, collected, *more = node.variables
        over, start = self.of(node.range, bound), self.of(node.start, bound)
        condition, step, result = node.body
        inner = {**bound, item: over, **dict.fromkeys(more, over), collected: start}
        if self.of(step, inner) and not start:
            inner[collected] = True
            self.of(step, inner)
        if self.of(condition, inner):
            raise LookedInto("decides by a secret")
        return self.of(result, inner)

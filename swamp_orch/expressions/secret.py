"""Secrets in evaluated values: deferred, and blind to everybody who looks.

`vault.get` does not read a vault. It gives a `Secret`, which says where the value is; text around it may be
part of it. Its `repr`, `str` and formatting are `***`, and JSON refuses it. Two ways lead out: `mask_tree`,
for everything that is stored or shown, and `resolve_tree`, for one dispatch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

MASK: Final = "***"


@attrs.frozen
class SecretRef:
    """Where a secret is."""

    vault: str
    key: str


@attrs.frozen(repr=False)
class Secret:
    """A text that will exist at dispatch: literal texts and secrets, joined."""

    parts: tuple[str | SecretRef, ...]

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    @property
    def display(self) -> str:
        """The text with every secret as `***`."""
        return "".join(part if isinstance(part, str) else MASK for part in self.parts)

    @property
    def references(self) -> tuple[SecretRef, ...]:
        return tuple(part for part in self.parts if isinstance(part, SecretRef))

    def resolve(self, read: "ReadSecret") -> str:
        """The text. Errors of `read` pass through."""
        return "".join(part if isinstance(part, str) else read(part) for part in self.parts)


ReadSecret = Callable[[SecretRef], str]


def joined(parts: list[str | Secret]) -> str | Secret:
    """One text; a `Secret` if any part is."""
    flat: list[str | SecretRef] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Secret) else (part,):
            if isinstance(piece, str) and flat and isinstance(flat[-1], str):
                flat[-1] += piece
            elif piece != "":
                flat.append(piece)
    if any(isinstance(piece, SecretRef) for piece in flat):
        return Secret(tuple(flat))
    return "".join(piece for piece in flat if isinstance(piece, str))


def secrets_in(value: Any) -> Iterator[Secret]:
    """Every secret in a value, in order."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item)


def mask_tree(value: Any) -> Any:
    """A copy in which every secret is `***` (text around it stays): what may be stored and shown."""
    return _replace(value, lambda secret: secret.display)


def resolve_tree(value: Any, read: ReadSecret) -> Any:
    """A copy with every secret read: for one dispatch, never to be stored."""
    return _replace(value, lambda secret: secret.resolve(read))


def _replace(value: Any, change: Callable[[Secret], str]) -> Any:
    if isinstance(value, Secret):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _replace(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, change) for item in value]
    return value

"""What the names in an expression stand for, at one place of one run.

A scope holds values (`inputs`, `self`, `run`, `env`, `webhook`), a way to get models by name, and the
functions that are available. What is not in a scope is not available there, and using it is an error that
says so. Values may hold `Secret`s. The engine builds scopes; nothing here knows stores, vaults or runs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from swamp_orch.query import syntax
from swamp_orch.query.environment import CelType, Function

_T: Final = CelType
VARIABLES: Final[Mapping[str, CelType]] = {
    "inputs": _T.DYN,
    "self": _T.DYN,
    "run": _T.DYN,
    "model": _T.DYN,
    "env": _T.DYN,
    "webhook": _T.DYN,
}
FUNCTIONS: Final = (
    Function("vault.get", (_T.STRING, _T.STRING), _T.STRING),
    Function("data.latest", (_T.STRING, _T.STRING)),
    Function("data.latest", (_T.STRING, _T.STRING, _T.LIST)),
    Function("data.version", (_T.STRING, _T.STRING, _T.INT)),
    Function("data.version", (_T.STRING, _T.STRING, _T.LIST, _T.INT)),
    Function("data.listVersions", (_T.STRING, _T.STRING), _T.LIST),
    Function("data.listVersions", (_T.STRING, _T.STRING, _T.LIST), _T.LIST),
    Function("data.findByTag", (_T.STRING, _T.STRING), _T.LIST),
    Function("data.findBySpec", (_T.STRING, _T.STRING), _T.LIST),
    Function("data.query", (_T.STRING,), _T.LIST),
    Function("data.query", (_T.STRING, _T.STRING), _T.LIST),
    Function("file.contents", (_T.STRING, _T.STRING), _T.STRING),
    Function("workers.connected", (), _T.LIST),
)
"""Every name an expression may use, wherever it stands; docs/reference/expressions.md says what each does.
`vault.get` is done here, not by the caller's functions: it is deferred."""

DECLARED: Final = tuple(dict.fromkeys(function.name for function in FUNCTIONS))


def called(node: syntax.Node) -> str | None:
    """The declared function a node calls: `data.latest`."""
    match node:
        case syntax.Call(function=function, target=syntax.Name(name=namespace)):
            name = f"{namespace}.{function}"
            return name if name in DECLARED else None
        case _:
            return None


@attrs.frozen
class Scope:
    """The names at one place.

    `values`: `inputs`, `self`, `run`, `env`, `webhook` -> JSON-shaped values, which may hold `Secret`s.
    `model`: what `model.<name>` is (`{input, definition, …}`); raises a SwampError when there is none.
    `functions`: by name (`data.latest`, …); they get the arguments as written and return JSON-shaped values;
    raising a SwampError is the error. `secrets`: whether `vault.get` may be used.
    """

    values: Mapping[str, Any] = attrs.field(factory=dict)
    functions: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    model: Callable[[str], Any] | None = None
    secrets: bool = True

    def with_values(self, /, **values: Any) -> "Scope":
        """The same with some names added or replaced, as `self` for a forEach item."""
        return attrs.evolve(self, values={**self.values, **values})

    def available(self) -> Iterator[str]:
        """The namespaces that can be used, in the order of the documentation."""
        functions = {name.partition(".")[0] for name in self.functions}
        for name in ("inputs", "self", "run", "model", "data", "file", "vault", "env", "workers", "webhook"):
            here = name in self.values or name in functions
            here = here or (name == "model" and self.model is not None) or (name == "vault" and self.secrets)
            if here:
                yield name

"""The application: every call of `interface.CALLS`, checked and handed to the service that answers it.

Most calls are synchronous functions over the repository and the store; they run in the caller's thread, or, inside serve,
in worker threads. Calls about live runs belong to the engine and are asynchronous. Services are made when first used, so
that a small call pays for nothing it does not need.
"""

import difflib
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from swamp_orch.api.interface import CALLS, Call
from swamp_orch.definitions.repository import Repository
from swamp_orch.store.interface import Store
from swamp_proto.errors import UsageError

if TYPE_CHECKING:
    from swamp_orch.definitions.types import TypeRegistry

Handler = Callable[[Mapping[str, Any]], Any]
AsyncHandler = Callable[[Mapping[str, Any]], Awaitable[Any]]

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "any": (object,),
}


class Follower(Protocol):
    async def more(self) -> bytes: ...


class Live(Protocol):
    """The engine's share of the calls."""

    def handlers(self) -> Mapping[str, AsyncHandler]: ...

    def followers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Follower]]]: ...


def check_parameters(name: str, parameters: Mapping[str, Any]) -> Call:
    """The call, when `name` exists and `parameters` fit it; else UsageError with the nearest name."""
    call = CALLS.get(name)
    if call is None:
        raise UsageError(f"unknown call {name!r}{_nearest(name, CALLS)}")
    for key, value in parameters.items():
        if key not in call.parameters:
            raise UsageError(f"unknown parameter {key!r} of {name}{_nearest(key, call.parameters)}")
        kind, _ = call.parameters[key]
        allowed = _TYPES[kind]
        if (
            value is None
            or not isinstance(value, allowed)
            or (isinstance(value, bool) and bool not in allowed and kind != "any")
        ):
            raise UsageError(f"parameter {key!r} of {name} must be of type {kind}")
    for key, (_, required) in call.parameters.items():
        if required and key not in parameters:
            raise UsageError(f"parameter {key!r} of {name} is missing")
    return call


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Application:
    """All synchronous calls over one repository and store."""

    def __init__(self, repository: Repository, store: Store) -> None:
        self.repository = repository
        self.store = store
        self._handlers: dict[str, Handler] = {}

    @cached_property
    def vaults(self) -> Any:
        from swamp_orch.vaults import VaultSet

        return VaultSet(self.repository)

    @cached_property
    def types(self) -> "TypeRegistry":
        """The model types, those of extensions among them."""
        from swamp_orch.definitions.types import types_of

        return types_of(self.repository)

    def call(self, name: str, parameters: Mapping[str, Any]) -> Any:
        """Check and answer one synchronous call. Raises `SwampError`s only."""
        check_parameters(name, parameters)
        return self.handler(name)(parameters)

    def handler(self, name: str) -> Handler:
        if name not in self._handlers:
            self._handlers.update(self._service(name.partition(".")[0]))
        try:
            return self._handlers[name]
        except KeyError:
            raise UsageError(
                f"{name} is answered only by a running orchestrator",
                hint="swamp serve",
                code="no_orchestrator",
            ) from None

    def _service(self, area: str) -> Mapping[str, Handler]:
        """The handlers of one area of the catalogue."""
        match area:
            case "data":
                from swamp_orch.api.services.data import DataService

                return DataService(self.repository, self.store).handlers()
            case "vault":
                from swamp_orch.api.services.vault_audit import VaultAudit
                from swamp_orch.api.services.vaults import VaultService

                return {
                    **VaultService(self.repository).handlers(),
                    **VaultAudit(self.repository, self.store).handlers(),
                }
            case "model" | "workflow":
                from swamp_orch.api.services.approvals import ApprovalService
                from swamp_orch.api.services.definitions import DefinitionService

                return {
                    **DefinitionService(self.repository, self.store, self.types).handlers(),
                    **ApprovalService(self.store).handlers(),
                }
            case "token" | "worker":
                from swamp_orch.api.services.tokens import TokenService

                return TokenService(self.repository, self.store, self.vaults).handlers()
            case "run" | "output":
                from swamp_orch.api.services.runs import RunService

                return RunService(self.repository, self.store).handlers()
            case "report":
                from swamp_orch.api.services.reports import ReportService

                return ReportService(self.store, self.types).handlers()
            case "names":
                from swamp_orch.api.services.names import NameService

                return NameService(self.repository, self.call).handlers()
        return {}


class LiveApplication:
    """The application inside a trio loop: the engine's calls, and every other one in a worker thread."""

    def __init__(self, application: Application, live: Live) -> None:
        self._application = application
        self._handlers = dict(live.handlers())
        self._followers = dict(live.followers())

    async def call(self, name: str, parameters: Mapping[str, Any]) -> Any:
        import trio

        check_parameters(name, parameters)
        handler = self._handlers.get(name)
        if handler is not None:
            return await handler(parameters)
        return await trio.to_thread.run_sync(partial(self._application.handler(name), parameters))

    async def follow(self, name: str, parameters: Mapping[str, Any]) -> Follower:
        check_parameters(name, parameters)
        return await self._followers[name](parameters)

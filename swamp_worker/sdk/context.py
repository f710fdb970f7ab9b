"""The context: what method code asks of the place where it runs. One for async methods, one for plain ones.

Both have the same members with the same meaning (`swamp_worker.sdk.conversations`); those of `Context` are awaited, those of
`PlainContext` block. Members that ask nobody (`log`, `follow_up`, `extension_file`, numbers and names) are plain in both.

    G is the attrs class of the type's global arguments: `context: Context[Settings]`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

from swamp_worker.sdk import conversations
from swamp_worker.sdk.conversations import Ask, Conversation, Resources, Situation, Staging
from swamp_worker.sdk.declarations import File, Resource
from swamp_worker.sdk.values import ModelInfo, ModelRun, Place, Record, StoredFile, Written

T = TypeVar("T")
G = TypeVar("G")


class Port(Protocol):
    """Where the questions of a plain method go. Raises `CallFailed`."""

    def ask(self, question: Ask) -> dict[str, Any]: ...


class AsyncPort(Protocol):
    """Where the questions of an async method go. Raises `CallFailed`."""

    async def ask(self, question: Ask) -> dict[str, Any]: ...


class _Facts(Generic[G]):
    """What both kinds know without asking."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation

    @property
    def global_arguments(self) -> G:
        """As the class that `@model(arguments=…)` names; None when there is none."""
        return cast(G, self._situation.global_arguments)

    @property
    def model(self) -> ModelInfo:
        return self._situation.model

    @property
    def place(self) -> Place:
        """Run, workflow, job and step."""
        return self._situation.place

    @property
    def fence(self) -> int:
        """Grows with every dispatch of the step; for systems that can refuse an older one."""
        return self._situation.fence

    @property
    def attempt(self) -> int:
        """How many times the step was sent to an executor, this one included."""
        return self._situation.attempt

    @property
    def attempt_key(self) -> str:
        """The same for this attempt wherever it is looked at: an idempotency key for calls to the outside."""
        return self._situation.attempt_key

    @property
    def cancelled(self) -> bool:
        """Whether the step is to end. A plain method that has looked is trusted to look again; any other gets `Cancelled`
        raised in it. An async method is cancelled as everything in trio is.
        """
        self._situation.polls = True
        return self._situation.cancelled

    @property
    def directory(self) -> Path:
        """The step's own directory: empty at its start, gone with it."""
        return self._situation.directory

    def log(self, message: object, **fields: Any) -> None:
        """A line of the step's log. `print` works as well."""
        conversations.log(self._situation, message, fields)

    def extension_file(self, name: str) -> Path:
        """A file that came with the extension, by its path below the extension's folder."""
        return conversations.extension_file(self._situation, name)

    def follow_up(self, method: Any, arguments: Any = None, *, after_s: float = 0.0) -> None:
        """Call another method of the type (or this one again) when this one has ended, in the same step, after a pause."""
        conversations.follow_up(self._situation, method, arguments, after_s)


class Context(_Facts[G]):
    """For async methods."""

    def __init__(self, situation: Situation, port: AsyncPort) -> None:
        super().__init__(situation)
        self._port = port

    async def _hold(self, conversation: Conversation[T]) -> T:
        try:
            question = next(conversation)
            while True:
                try:
                    answer = await self._port.ask(question)
                except Exception as error:  # the conversation decides
                    question = conversation.throw(error)
                else:
                    question = conversation.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    async def write_resource(
        self,
        spec: Resource[T] | str,
        content: T | Mapping[str, Any],
        name: str = "",
        *,
        tags: Mapping[str, str] | None = None,
    ) -> Written:
        """A new version of the resource `name` (default: the spec's name). Returns when it is durable."""
        item = Resources(spec, name, content, tags or {})
        (found,) = await self._hold(conversations.write(self._situation, [item], "write_resource"))
        return found

    async def write_resources(self, resources: Iterable[Resources]) -> list[Written]:
        """Many at once; up to 1,000 records and 3 MiB commit together."""
        return await self._hold(conversations.write(self._situation, resources, "write_resources"))

    async def read_resource(
        self, name: str, *, model: str | None = None, version: int | None = None
    ) -> Record | None:
        """The newest version, or that one; None when there is none. `model`: another model's."""
        return await self._hold(conversations.read(self._situation, name, model, version))

    async def read_file(
        self, name: str, *, model: str | None = None, version: int | None = None
    ) -> StoredFile | None:
        """A file artefact, however large, as a file of the step's directory."""
        return await self._hold(conversations.read_file(self._situation, name, model, version))

    async def versions(self, name: str, *, model: str | None = None) -> list[Mapping[str, Any]]:
        """What is known of every version of a record."""
        return await self._hold(conversations.versions(name, model))

    async def delete_resource(self, name: str) -> bool:
        """Whether there was one."""
        return await self._hold(conversations.delete(self._situation, name))

    def open_file(
        self,
        spec: File | str,
        name: str = "",
        *,
        tags: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> "OpenFile":
        """`async with context.open_file(self.listing) as file: await file.write_line(…)`. Stored when the block is left; not
        stored when it is left by an exception. `content_type`: another one than the spec's.
        """
        return OpenFile(Staging(self._situation, spec, name, tags, content_type), self)

    async def query(
        self, predicate: str, *, select: str | None = None, limit: int | None = None
    ) -> list[Any]:
        """Records, or what `select` makes of them, that the step may see."""
        return await self._hold(conversations.query(self._situation, predicate, select, limit))

    async def read_model(self, model: str | None = None) -> Mapping[str, Any]:
        """A model's definition; the own one without a name."""
        return await self._hold(conversations.read_model(model))

    async def read_output(
        self, model: str | None = None, method: str | None = None
    ) -> Mapping[str, Any] | None:
        """What the newest run of a model's method was and left; None when there was none."""
        return await self._hold(conversations.read_output(model, method))

    async def run_model(
        self, model: str, method: str, inputs: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> ModelRun:
        """Run a method of another model and wait for it. With `check`, raises `RunFailed` when it does not succeed."""
        return await self._hold(conversations.run_model(self._situation, model, method, inputs, check))

    async def secret(self, vault: str, key: str) -> str:
        """The value; masked from now on in everything the step prints or stores."""
        return await self._hold(conversations.secret(vault, key))

    async def put_secret(self, vault: str, key: str, value: str) -> None:
        await self._hold(conversations.put_secret(self._situation, vault, key, value))


class OpenFile:
    """A file artefact of an async method while it is written."""

    def __init__(self, staging: Staging, context: Context[Any]) -> None:
        self._staging = staging
        self._context = context

    @property
    def path(self) -> Path:
        """Where it is on disk, for tools that write files themselves."""
        self._staging.flush()
        return self._staging.path

    @property
    def record(self) -> Written | None:
        """Once it is stored."""
        return self._staging.record

    async def write(self, data: bytes | str) -> None:
        self._staging.write(data)

    async def write_line(self, line: str) -> None:
        self._staging.write(line + "\n")

    async def close(self) -> Written:
        """Store it. Returns when it is durable."""
        return await self._context._hold(self._staging.finish())

    async def __aenter__(self) -> "OpenFile":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._staging.discard()
        else:
            await self.close()


class PlainContext(_Facts[G]):
    """For plain methods."""

    def __init__(self, situation: Situation, port: Port) -> None:
        super().__init__(situation)
        self._port = port

    def _hold(self, conversation: Conversation[T]) -> T:
        try:
            question = next(conversation)
            while True:
                try:
                    answer = self._port.ask(question)
                except Exception as error:  # the conversation decides
                    question = conversation.throw(error)
                else:
                    question = conversation.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    def write_resource(
        self,
        spec: Resource[T] | str,
        content: T | Mapping[str, Any],
        name: str = "",
        *,
        tags: Mapping[str, str] | None = None,
    ) -> Written:
        """A new version of the resource `name` (default: the spec's name). Returns when it is durable."""
        item = Resources(spec, name, content, tags or {})
        (found,) = self._hold(conversations.write(self._situation, [item], "write_resource"))
        return found

    def write_resources(self, resources: Iterable[Resources]) -> list[Written]:
        """Many at once; up to 1,000 records and 3 MiB commit together."""
        return self._hold(conversations.write(self._situation, resources, "write_resources"))

    def read_resource(
        self, name: str, *, model: str | None = None, version: int | None = None
    ) -> Record | None:
        """The newest version, or that one; None when there is none. `model`: another model's."""
        return self._hold(conversations.read(self._situation, name, model, version))

    def read_file(
        self, name: str, *, model: str | None = None, version: int | None = None
    ) -> StoredFile | None:
        """A file artefact, however large, as a file of the step's directory."""
        return self._hold(conversations.read_file(self._situation, name, model, version))

    def versions(self, name: str, *, model: str | None = None) -> list[Mapping[str, Any]]:
        """What is known of every version of a record."""
        return self._hold(conversations.versions(name, model))

    def delete_resource(self, name: str) -> bool:
        """Whether there was one."""
        return self._hold(conversations.delete(self._situation, name))

    def open_file(
        self,
        spec: File | str,
        name: str = "",
        *,
        tags: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> "PlainFile":
        """`with context.open_file(self.listing) as file: file.write_line(…)`. Stored when the block is left; not stored when it
        is left by an exception. `content_type`: another one than the spec's.
        """
        return PlainFile(Staging(self._situation, spec, name, tags, content_type), self)

    def query(self, predicate: str, *, select: str | None = None, limit: int | None = None) -> list[Any]:
        """Records, or what `select` makes of them, that the step may see."""
        return self._hold(conversations.query(self._situation, predicate, select, limit))

    def read_model(self, model: str | None = None) -> Mapping[str, Any]:
        """A model's definition; the own one without a name."""
        return self._hold(conversations.read_model(model))

    def read_output(self, model: str | None = None, method: str | None = None) -> Mapping[str, Any] | None:
        """What the newest run of a model's method was and left; None when there was none."""
        return self._hold(conversations.read_output(model, method))

    def run_model(
        self, model: str, method: str, inputs: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> ModelRun:
        """Run a method of another model and wait for it. With `check`, raises `RunFailed` when it does not succeed."""
        return self._hold(conversations.run_model(self._situation, model, method, inputs, check))

    def secret(self, vault: str, key: str) -> str:
        """The value; masked from now on in everything the step prints or stores."""
        return self._hold(conversations.secret(vault, key))

    def put_secret(self, vault: str, key: str, value: str) -> None:
        self._hold(conversations.put_secret(self._situation, vault, key, value))


class PlainFile:
    """A file artefact of a plain method while it is written."""

    def __init__(self, staging: Staging, context: PlainContext[Any]) -> None:
        self._staging = staging
        self._context = context

    @property
    def path(self) -> Path:
        """Where it is on disk, for tools that write files themselves."""
        self._staging.flush()
        return self._staging.path

    @property
    def record(self) -> Written | None:
        """Once it is stored."""
        return self._staging.record

    def write(self, data: bytes | str) -> None:
        self._staging.write(data)

    def write_line(self, line: str) -> None:
        self._staging.write(line + "\n")

    def close(self) -> Written:
        """Store it. Returns when it is durable."""
        return self._context._hold(self._staging.finish())

    def __enter__(self) -> "PlainFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._staging.discard()
        else:
            self.close()

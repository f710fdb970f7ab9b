"""The step desk: everything a running step asks of the orchestrator ends here, whoever runs it and however it was asked.

Rules that hold here (SPEC §9, SEMANTICS §4, §7):

1. Nothing is answered without a lease: a question is asked inside the scope of its dispatch's lease (`Flights.under`) and ends with it.
2. What a step may see is its `AccessScope`; what a verb may concern is `swamp_proto.capabilities`. Infrastructure types and secrets are
   refused whatever a scope says.
3. What changes something is a write: admitted by the lease and the store, under the key `<dispatch>/<number>`, with its answer in the
   transaction that acted. The same number while it is at work is the same question: both get its answer.
4. Every access is recorded; that of a secret before the value leaves.
5. What blocks runs in a thread. A dispatch has a bounded number of questions at work.

It knows no HTTP and no frames.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import attrs
import trio

from swamp_orch.api.services.data import tombstone
from swamp_orch.engine import writes
from swamp_orch.engine.access_log import Access, AccessLog
from swamp_orch.engine.failed_reports import instead_of
from swamp_orch.engine.flights import Flight, Flights, credential_hash
from swamp_orch.engine.hidden import OF_OUTPUT, Hidden
from swamp_orch.engine.readings import Readings, told
from swamp_orch.engine.records import Producer, artifact
from swamp_orch.engine.uploads import Body, Progress, Uploads
from swamp_orch.store.errors import StoreBusy, StoreFull
from swamp_orch.store.interface import Batch, Content, IdempotencyKey, NewRecord, Record, Store
from swamp_orch.vaults.interface import check_key, is_infrastructure_key
from swamp_proto import codec
from swamp_proto.capabilities import RULE_BY_VERB, CallRefused, check_arguments
from swamp_proto.errors import AlreadyExists, Broken, Conflict, LocalError, NotFound, SwampError
from swamp_proto.limits import (
    ARGON2_MEMORY_KIB,
    ARGON2_PARALLELISM,
    ARGON2_TIME_COST,
    CALL_VALUE_MAX,
    CALLS_PER_DISPATCH_MAX,
    INLINE_WRITE_MAX,
    WRITE_RECORDS_MAX,
)
from swamp_proto.messages.capability import (
    Call,
    CallAnswer,
    CallCode,
    Verb,
    WriteBatch,
    Written,
    WrittenRecord,
)
from swamp_proto.messages.dispatch import Finished, Outcome, Output

if TYPE_CHECKING:
    from swamp_orch.vaults import VaultSet

THREADS: Final = 8  # of all reads
CONFLICTS_MAX: Final = 20  # times a tombstone is tried while others write the same name

Found = TypeVar("Found")


class Children(Protocol):
    """Runs models on behalf of running code."""

    async def run_model(
        self, parent: Flight, number: int, model: str, method: str, inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What `Verb.RUN_MODEL` gives. Raises `CallRefused`."""
        ...


@attrs.define(eq=False)
class _AtWork:
    """A question that is being answered, for whoever asks it again meanwhile."""

    digest: str
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: Any = None
    error: CallRefused | None = None


class StepDesk:
    """`watch` runs as long as the engine."""

    def __init__(
        self,
        store: Store,
        flights: Flights,
        readings: Readings,
        uploads: Uploads,
        log: AccessLog,
        vaults: "Callable[[], VaultSet]",
        clock_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._flights = flights
        self._readings = readings
        self.uploads = uploads
        self._log = log
        self._vaults = vaults
        self._hidden = Hidden(vaults)
        self._clock_ms = clock_ms
        self._threads = trio.CapacityLimiter(THREADS)
        self._at_work: dict[tuple[str, int], _AtWork] = {}
        self._counts: dict[str, int] = {}  # questions at work, by dispatch
        self._over: list[str] = []  # dispatches whose uploads go
        self._some_over = trio.Event()
        self.children: Children | None = None
        self.bundle_file: Callable[[str], Path] | None = None  # where a bundle is
        flights.on_close(self._closed)
        flights.enter_end = self.enter_end

    # ── lifetimes ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def watch(self) -> None:
        """Commit what was noted, and remove what dispatches left that are over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._log.watch)
            while True:
                await self._some_over.wait()
                over, self._over, self._some_over = self._over, [], trio.Event()
                for dispatch in over:
                    await self.uploads.drop(dispatch)

    async def flush(self) -> None:
        """Commit every access that was noted until now."""
        await self._log.flush()

    def _closed(self, dispatch: str) -> None:
        if self.uploads.knows(dispatch):
            self._over.append(dispatch)
            self._some_over.set()

    # ── who asks ────────────────────────────────────────────────────────────────────────────────────────────────────
    def authenticate(self, dispatch: str, fence: int, credential: str) -> Flight | None:
        """The dispatch this credential is of, while its lease lives; None for a credential that is nobody's. Raises `CallRefused`
        (`lease_ended`) when it was right once."""
        flight = self._flights.find(dispatch)
        if flight is None:
            return None
        expected = flight.lease.credential_hash
        if not expected or not hmac.compare_digest(expected, credential_hash(credential)):
            return None
        if self._flights.lease(dispatch, fence) is None:
            raise CallRefused(CallCode.LEASE_ENDED, f"the lease of dispatch {dispatch} has ended")
        return flight

    async def call(self, call: Call, worker: str | None) -> CallAnswer:
        """A capability call of the holder `worker` (None: the loopback). Never raises for what is asked."""
        try:
            flight = self._flights.find(call.dispatch)
            if flight is None or flight.slot.worker != worker:
                raise CallRefused(
                    CallCode.LEASE_ENDED, f"dispatch {call.dispatch} is not (any more) one of this holder"
                )
            with self._flights.under(call.dispatch, call.fence), self._counted(call.dispatch):
                value = await self._answer(flight, call)
        except CallRefused as refused:
            return CallAnswer(call.dispatch, call.number, refused.call_code, refused.message, {})
        return CallAnswer(call.dispatch, call.number, None, "", value)

    def _counted(self, dispatch: str) -> "_Counted":
        return _Counted(self._counts, dispatch)

    # ── capability calls ────────────────────────────────────────────────────────────────────────────────────────────
    async def _answer(self, flight: Flight, call: Call) -> dict[str, Any]:
        """What the verb gives, its access recorded. Raises `CallRefused`."""
        access = _access_of(call)
        try:
            check_arguments(call.verb, call.arguments)
            if RULE_BY_VERB[call.verb].mutates:
                _may_change(flight)
                digest = await self._in_thread(partial(_digest_of, call))
                return await self._once(
                    flight, call.number, digest, partial(self._change, flight, call, digest)
                )
            if call.verb is Verb.SECRET:
                return await self._secret(flight, call.arguments["vault"], call.arguments["key"])
            value = await self._in_thread(partial(self._read, flight, call))
        except SwampError as error:
            no = translated(error)
            self._log.note(flight, attrs.evolve(access, code=no.call_code.value, reason=no.message))
            raise no from error
        self._log.note(flight, access)
        await self._log.room()
        return value

    def _read(self, flight: Flight, call: Call) -> dict[str, Any]:
        scope, given, found = flight.order.scope, call.arguments, self._readings
        model = given.get("model")
        match call.verb:
            case Verb.LATEST:
                return found.latest(scope, model, given["name"])
            case Verb.VERSION:
                return found.version(scope, model, given["name"], given["version"])
            case Verb.VERSIONS:
                return found.versions(scope, model, given["name"])
            case Verb.QUERY:
                return found.query(scope, given["predicate"], given.get("select"), given.get("limit"))
            case Verb.DEFINITION:
                return found.definition(scope, model)
            case Verb.OUTPUT:
                return found.output(scope, model, given.get("method"), without=flight.dispatch)
        raise CallRefused(CallCode.INVALID, f"{call.verb.value} reads nothing")

    async def _change(self, flight: Flight, call: Call, digest: str) -> dict[str, Any]:
        given = call.arguments
        key = IdempotencyKey(f"{flight.dispatch}/{call.number}", digest, flight.dispatch)
        match call.verb:
            case Verb.DELETE:
                return await self._delete(flight, given["name"], key)
            case Verb.PUT_SECRET:
                return await self._put_secret(flight, given["vault"], given["key"], given["value"], key)
            case Verb.RUN_MODEL if self.children is not None:
                self._may_read(flight, given["model"])
                value = await self.children.run_model(
                    flight, call.number, given["model"], given["method"], given.get("inputs") or {}
                )
                self._log.note(flight, _access_of(call))
                return value
        raise CallRefused(CallCode.INVALID, f"{call.verb.value} is not supported here")

    def _may_read(self, flight: Flight, model: str) -> None:
        if not flight.order.scope.may_read(model):
            raise CallRefused(
                CallCode.FORBIDDEN,
                f"this step may not use model {model!r}: neither its definition names it nor its type declares it",
            )

    async def mark_written(self, flight: Flight, what: str) -> None:
        """Make it durable that a dispatch has written, before it does. Raises `CallRefused` when its lease has ended."""
        await self._flights.commit_write(flight, what, Batch())

    # ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _secret(self, flight: Flight, vault: str, key: str) -> dict[str, Any]:
        """The value, once the store has it that this step, whose lease lives, was told it."""
        self._may_use_secret(flight, vault, key)
        value = await self._in_thread(lambda: self._vaults().choose(vault).get(key))
        flight.ingress.learn((value,))
        record = self._log.record(flight, Access(Verb.SECRET.value, vault=vault, key=key))
        await self._flights.commit_read(flight, Batch((record,)))
        return {"value": value}

    async def _put_secret(
        self, flight: Flight, vault: str, key: str, value: str, idempotency: IdempotencyKey
    ) -> dict[str, Any]:
        """First the mark and the key, then the vault: whatever dies in between, the call is repeated and puts the same value again."""
        if vault.startswith(OF_OUTPUT):
            place = partial(self._hidden.place, flight.order, vault.removeprefix(OF_OUTPUT), key)
            opened, key = await self._in_thread(place)
            vault = opened.name
        else:
            self._may_use_secret(flight, vault, key)
            check_key(key)
            opened = await self._in_thread(lambda: self._vaults().choose(vault))
        flight.ingress.learn((value,))
        record = self._log.record(flight, Access(Verb.PUT_SECRET.value, vault=vault, key=key))
        batch = Batch((record,), idempotency=idempotency, answer=codec.pack_value({}))
        await self._flights.commit_write(flight, f"secret {vault}/{key}", batch)
        with trio.CancelScope(shield=True):
            await self._in_thread(lambda: opened.put(key, value, True))
        return {}

    def _may_use_secret(self, flight: Flight, vault: str, key: str) -> None:
        if is_infrastructure_key(key):
            raise CallRefused(CallCode.FORBIDDEN, f"secret {key!r} is swamp's own and is not for steps")
        if not flight.order.scope.may_use_secret(vault, key):
            raise CallRefused(
                CallCode.FORBIDDEN,
                f"this step may not use secret {vault}/{key}: neither its definition refers to it nor its type declares it",
            )

    # ── deleting ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _delete(self, flight: Flight, name: str, key: IdempotencyKey) -> dict[str, Any]:
        """A tombstone after the newest version, whoever else writes; of the step's own model only."""
        access = Access(Verb.DELETE.value, model=flight.message.model_name, name=name)
        for _ in range(CONFLICTS_MAX):
            newest = await self._in_thread(partial(self._readings.newest, flight.order.scope, name))
            gone: tuple[NewRecord, ...] = ()
            answer: dict[str, Any] = {"deleted": False}
            if newest is not None and not newest.deleted:
                buried = tombstone(newest, self._clock_ms())
                gone = (attrs.evolve(buried, owner=_producer(flight).owner()),)
                answer = {"deleted": True, "version": newest.version + 1}
            batch = Batch(
                (*gone, self._log.record(flight, access)), idempotency=key, answer=codec.pack_value(answer)
            )
            try:
                done = await self._flights.commit_write(flight, name, batch)
            except Conflict:
                continue  # somebody wrote that name in between
            return codec.unpack_value(done.answer, CALL_VALUE_MAX)
        raise CallRefused(CallCode.CONFLICT, f"record {name!r} is being written all the time")

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def write(self, flight: Flight, number: int, batch: WriteBatch) -> Written:
        """Records that commit together, with the lease's mark. Raises `CallRefused`. Call it inside `Flights.under`."""
        with self._counted(flight.dispatch):
            digest = writes.digest_of(batch.records)
            try:
                _may_change(flight)
                return await self._once(
                    flight, number, digest, partial(self._write, flight, number, batch, digest)
                )
            except CallRefused as refused:
                first = batch.records[0].name if batch.records else ""
                access = Access("write", model=flight.message.model_name, name=first)
                self._log.note(
                    flight, attrs.evolve(access, code=refused.call_code.value, reason=refused.message)
                )
                raise

    async def _write(self, flight: Flight, number: int, batch: WriteBatch, digest: str) -> Written:
        outputs = batch.records
        if not 0 < len(outputs) <= WRITE_RECORDS_MAX:
            raise CallRefused(CallCode.TOO_LARGE, f"a write holds 1 to {WRITE_RECORDS_MAX} records")
        for output in outputs:
            if len(output.content) > INLINE_WRITE_MAX:
                raise CallRefused(
                    CallCode.TOO_LARGE,
                    f"{output.kind} {output.name!r}: content of more than {INLINE_WRITE_MAX} bytes is uploaded before",
                )
        contents = await self.contents(flight, outputs)
        outputs = tuple(flight.ingress.record(output) for output in outputs)
        producer = _producer(flight)
        made = tuple(
            producer.record(o.spec, o.name, o.kind, o.content_type, content, tags=o.tags)
            for o, content in zip(outputs, contents, strict=True)
        )
        key = IdempotencyKey(f"{flight.dispatch}/{number}", digest, flight.dispatch)
        try:
            done = await self._flights.commit_write(flight, outputs[0].name, Batch(made, idempotency=key))
        except SwampError as error:
            raise translated(error) from error
        if not done.replayed:
            flight.written += [artifact(record, one) for record, one in zip(made, done.records, strict=False)]
        return Written(
            tuple(
                WrittenRecord(one.id, record.name, one.version, record.content.size, record.content.sha256)
                for record, one in zip(made, done.records, strict=False)
            )
        )

    async def contents(self, flight: Flight, outputs: tuple[Output, ...]) -> list[Content]:
        """The contents of outputs, checked and ready to commit. Raises `CallRefused`."""
        model_type, ingress = flight.order.model_type, flight.ingress
        instead = partial(self._hidden.instead, flight.order)
        if writes.is_small(outputs, model_type):
            return [writes.enter(self._store, model_type, ingress, one, None, instead) for one in outputs]
        staged: list[Content | None] = []
        for output in outputs:
            writes.declared(model_type, output)  # before anything is moved
            staged.append(
                None if output.staged is None else await self._staged(flight, output, output.staged)
            )
        return await self._in_thread(
            lambda: [
                writes.enter(self._store, model_type, ingress, output, content, instead)
                for output, content in zip(outputs, staged, strict=True)
            ]
        )

    async def _staged(self, flight: Flight, output: Output, number: int) -> Content:
        """The upload that an output names, masked when it is text."""
        said = (output.sha256, output.size)
        return await self.uploads.take(flight.dispatch, number, said, flight.ingress.mask_of(output))

    async def enter_end(self, flight: Flight, finished: Finished) -> tuple[Finished, list[Content]]:
        """The end of a step with its outputs checked: what is wrong with one is the step's failure, or that of its report, and the others
        are kept. Raises `CallRefused` (`unavailable`) while the disk is full."""
        kept: list[Output] = []
        contents: list[Content] = []
        problems: list[str] = []
        for output in finished.outputs:
            try:
                contents += await self.contents(flight, (output,))
                kept.append(output)
            except SwampError as error:
                refused = translated(error)
                if refused.call_code is CallCode.UNAVAILABLE:
                    raise refused from error
                if output.kind == "report" and output.spec in flight.order.model_type.reports:
                    instead = instead_of(output, refused.message)
                    contents += await self.contents(flight, (instead,))
                    kept.append(instead)
                    continue
                problems.append(refused.message)
        if not problems:
            return attrs.evolve(finished, outputs=tuple(kept)), contents
        told = "; ".join((finished.error, *problems) if finished.error else problems)
        outcome = Outcome.FAILED if finished.outcome is Outcome.SUCCEEDED else finished.outcome
        return attrs.evolve(finished, outcome=outcome, error=told, outputs=tuple(kept)), contents

    # ── reading in bulk ─────────────────────────────────────────────────────────────────────────────────────────────
    async def record(self, flight: Flight, record_id: str) -> Record:
        """A record version that this step may read, for its bytes. Raises `CallRefused`."""
        try:
            found = await self._in_thread(partial(self._readings.record, flight.order.scope, record_id))
        except CallRefused as refused:
            access = Access("read", name=record_id, code=refused.call_code.value, reason=refused.message)
            self._log.note(flight, access)
            raise
        self._log.note(flight, Access("read", model=found.model_name, name=f"{found.name}@{found.version}"))
        await self._log.room()
        return found

    async def bundle(self, flight: Flight, sha256: str) -> Path:
        """The file of the bundle that is the program of this dispatch. Raises `CallRefused`."""
        program = flight.message.program
        if program is None or program.bundle != sha256:
            text = f"bundle {sha256[:12]} is not the program of step {flight.message.place.step!r}"
            raise CallRefused(CallCode.FORBIDDEN, text)
        file = None if self.bundle_file is None else self.bundle_file(sha256)
        if file is None or not await trio.Path(file).is_file():
            raise CallRefused(CallCode.NOT_FOUND, f"bundle {sha256[:12]} is not here any more")
        return file

    async def receive(
        self,
        flight: Flight,
        number: int,
        *,
        offset: int,
        length: int,
        sha256: str,
        body: Body,
        heard: Progress | None = None,
    ) -> int:
        """More bytes of an upload; how many are safe then. Call it inside `Flights.under`. Raises as `Uploads.receive`."""

        def progress(here: int, of: int) -> None:
            flight.progress(number, here, of)
            if heard is not None:
                heard(here, of)

        return await self.uploads.receive(
            flight.dispatch,
            number,
            offset=offset,
            length=length,
            sha256=sha256,
            body=body,
            progress=progress,
        )

    # ── once ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _once(
        self, flight: Flight, number: int, digest: str, work: Callable[[], Awaitable[Found]]
    ) -> Found:
        """The answer of number `number`, asked once at a time: the same question again waits for the first one's answer."""
        name = (flight.dispatch, number)
        found = self._at_work.get(name)
        while found is not None:
            if found.digest != digest:
                raise CallRefused(
                    CallCode.IDEMPOTENCY_CONFLICT, f"number {number} was used before with another content"
                )
            await found.done.wait()
            if found.error is not None:
                raise CallRefused(found.error.call_code, found.error.message)
            if found.answer is not None:
                answer: Found = found.answer
                return answer
            found = self._at_work.get(name)  # whoever asked it was cut off: it is ours now
        mine = self._at_work[name] = _AtWork(digest)
        try:
            mine.answer = await work()
            return mine.answer  # type: ignore[no-any-return]
        except CallRefused as refused:
            mine.error = refused
            raise
        except SwampError as error:
            mine.error = translated(error)
            raise mine.error from error
        finally:
            del self._at_work[name]
            mine.done.set()

    async def _in_thread(self, work: Callable[[], Found]) -> Found:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._threads)
        except CallRefused:
            raise
        except SwampError as error:
            raise translated(error) from error


class _Counted:
    """One more question of a dispatch at work."""

    def __init__(self, counts: dict[str, int], dispatch: str) -> None:
        self._counts = counts
        self._dispatch = dispatch

    def __enter__(self) -> None:
        count = self._counts.get(self._dispatch, 0)
        if count >= CALLS_PER_DISPATCH_MAX:
            raise CallRefused(
                CallCode.UNAVAILABLE,
                f"{CALLS_PER_DISPATCH_MAX} questions of this step are being answered already",
            )
        self._counts[self._dispatch] = count + 1

    def __exit__(self, *_: object) -> None:
        count = self._counts[self._dispatch] - 1
        if count:
            self._counts[self._dispatch] = count
        else:
            del self._counts[self._dispatch]


def translated(error: SwampError) -> CallRefused:
    """An error of the store, of a vault or of a file as the answer to who asked."""
    match error:
        case CallRefused():
            return error
        case StoreFull() | StoreBusy():
            return CallRefused(CallCode.UNAVAILABLE, error.message)
        case NotFound():
            return CallRefused(CallCode.NOT_FOUND, told(error))
        case Conflict() | AlreadyExists():
            return CallRefused(CallCode.CONFLICT, error.message)
        case LocalError():
            return CallRefused(CallCode.INVALID, told(error))
        case Broken():
            return CallRefused(CallCode.INTERNAL, error.message)
    return CallRefused(CallCode.INVALID, told(error))


def _may_change(flight: Flight) -> None:
    if flight.order.scope.only_looks:
        raise CallRefused(CallCode.FORBIDDEN, "a report of a run only looks: it can change nothing")


def _producer(flight: Flight) -> Producer:
    order, message = flight.order, flight.message
    return Producer(
        flight.origin, order.model, order.model_type, message.dispatch, message.fence, order.overrides
    )


def _digest_of(call: Call) -> str:
    """What tells a call that is said again from another one under its number. It is stored: a secret goes in by a slow hash, salted
    by the dispatch, since a weak one could be guessed from a quick one."""
    asked = {"verb": call.verb.value, **call.arguments}
    if call.verb is Verb.PUT_SECRET:
        from argon2 import Type
        from argon2.low_level import hash_secret_raw

        asked["value"] = hash_secret_raw(
            call.arguments["value"].encode(),
            sha256(call.dispatch.encode()).digest(),
            time_cost=ARGON2_TIME_COST,
            memory_cost=ARGON2_MEMORY_KIB,
            parallelism=ARGON2_PARALLELISM,
            hash_len=32,
            type=Type.ID,
        )
    return sha256(codec.pack_value(asked)).hexdigest()


def _access_of(call: Call) -> Access:
    """What a call concerns, for its record. Never a value: of a secret where it is."""

    def text(name: str) -> str:
        found = call.arguments.get(name)
        return found if isinstance(found, str) else ""

    name = text("name") or text("predicate") or text("method")
    return Access(call.verb.value, model=text("model"), name=name, vault=text("vault"), key=text("key"))

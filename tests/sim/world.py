"""A world: one orchestrator, a few machines, people, and the weather over them.

`World(seed).run()` is the whole story: a safety phase in which everything may fail and the checkers look after
every step, then a liveness phase: the weather clears, and every run must end.
"""

from types import ModuleType

import attrs

from swamp_orch.core import leases as real_leases
from swamp_orch.core import runplan as real_runplan
from swamp_orch.core import scheduler as real_scheduler
from swamp_orch.core import tokens as real_tokens
from swamp_orch.core.lease_values import EndReason, Lease, LeaseState
from swamp_orch.engine.flights import record_of
from swamp_orch.store.bookkeeping import LEASES_ID, lease_record
from swamp_orch.store.errors import StoreFull
from swamp_orch.store.interface import (
    Batch,
    Guard,
    IdempotencyKey,
    NewRecord,
    Owner,
    OwnerType,
    json_content,
)
from swamp_orch.tokens.records import read_token, read_worker, token_record, worker_record
from swamp_proto.errors import Conflict
from swamp_proto.limits import Tempo
from swamp_proto.messages import Side
from swamp_proto.messages.dispatch import Dispatch
from swamp_worker.core import dialing as real_dialing
from swamp_worker.core import holdings as real_holdings
from swamp_worker.core import slots as real_slots

from .checkers import Checks, everything_is_over
from .disk import Disk
from .journal import Journal
from .link import Wire
from .loop import Loop, Process, Signal
from .machine import Execution, Machine
from .orchestrator import Orchestrator, Run, Work
from .seed import Chance
from .weather import FAULTS, Weather
from .worker import SimWorker
from .workload import Behaviour, Workflow, behaviour, workflow

WALL0_MS = 1_800_000_000_000
STEPS_MAX = 400_000
LONG_MS = 10 * 365 * 24 * 3600 * 1000


@attrs.define
class Cores:
    """The cores under test: the modules that serve runs, or planted ones."""

    leases: ModuleType = real_leases
    tokens: ModuleType = real_tokens
    scheduler: ModuleType = real_scheduler
    runplan: ModuleType = real_runplan
    dialing: ModuleType = real_dialing
    slots: ModuleType = real_slots
    holdings: ModuleType = real_holdings
    rows: set[tuple[object, object, object]] | None = None  # of the lease table that were reached

    def new_leases(self) -> object:
        rows = self.rows
        if rows is None:
            return self.leases.Leases()

        class Counted(self.leases.Leases):  # type: ignore[misc, name-defined]
            def _go(self, entry, how, stage):  # type: ignore[no-untyped-def]
                rows.add((entry.stage, how, stage))
                super()._go(entry, how, stage)

        return Counted()


class World:
    def __init__(
        self,
        seed: int,
        *,
        cores: Cores | None = None,
        trace: bool = False,
        keep: bool = False,
        steps_max: int = STEPS_MAX,
    ) -> None:
        self.seed = seed
        self._steps_max = steps_max
        self.cores = cores or Cores()
        self.chance = Chance(seed)
        dice = self.chance.of("world")
        grace_s = dice.choice((4.0, 8.0, 8.0, 20.0))
        self.tempo = Tempo(grace_s)
        self.loop = Loop(self._died)
        self.weather = Weather(self.chance, self.loop, grace_s)
        self.journal = Journal(lambda: self.loop.now, keep=keep, say=trace)
        self.checks = Checks(self)
        self.before: dict[str, dict[str, object]] = {}  # lease records as they were last committed
        self.workflows: dict[str, Workflow] = {}
        self.last_instance: dict[str, tuple[str, str]] = {}
        self.log_on_disk: dict[str, int] = {}
        self.died_s: dict[str, float] = {}  # worker instances that are no more
        self.faults = 0
        self.incarnations = 1
        self.wall_offset_ms = 0
        self.orchestrator_since = 0.0
        self.disk_was_bad_until = 0.0
        self.slowest_commit_s = 0.0
        self._over: dict[str, float] = {}
        self._pids = 100
        self._data = 0
        self.home = Machine(self, "home")
        names = [f"w{number}" for number in range(1, dice.choice((1, 2, 2, 3)) + 1)]
        self.capacities = {name: dice.choice((1, 1, 2, 3)) for name in names}
        self.labels = {name: {"pool": "any", "size": dice.choice(("big", "small"))} for name in names}
        self.machines = {name: Machine(self, name) for name in names}
        self.secrets: dict[str, str] = {}
        self.workers: dict[str, SimWorker | None] = dict.fromkeys(names)
        process = Process("orchestrator 1")
        self.disk = Disk(
            self.wall_ms,
            self.loop,
            process,
            self.weather.commit_latency,
            self.weather.is_full,
            self.checks.committed,
        )
        for name in names:
            self._mint(name)
        self.orchestrator: Orchestrator | None = Orchestrator(self, process, self.disk)
        self.orchestrator.start()
        self.wires: list[tuple[str, Wire]] = []
        for name in names:
            self.loop.after(dice.random(), None, self._start_worker, name)
        self._plan_people(dice)

    # ── clocks, names, chances ──────────────────────────────────────────────────────────────────────────────
    def wall_ms(self) -> int:
        return WALL0_MS + round(self.loop.now * 1000) + self.wall_offset_ms

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def behaviour(self, dispatch: Dispatch) -> Behaviour:
        place = dispatch.place
        return behaviour(
            self.chance, f"{place.run}/{place.job}/{place.step}", dispatch.fence, self.tempo.grace_s
        )

    def over_since(self, mint_id: str) -> float | None:
        """Since when (loop time) a mint is over, as the records and the wall clock say."""
        name = mint_id.rpartition("/")[0]
        over = self.cores.tokens.mint_over(read_token(self.disk, name), mint_id, self.wall_ms()) is not None
        if not over:
            self._over.pop(mint_id, None)
            return None
        return self._over.setdefault(mint_id, self.loop.now)

    # ── the story ───────────────────────────────────────────────────────────────────────────────────────────
    def run(self) -> None:
        """Both phases. Raises whatever broke."""
        until_s = self.tempo.grace_s * self.chance.of("length").choice((6, 10, 16))
        self._plan_faults(until_s)
        self._go(until_s)
        self._heal()
        limit_s = self.loop.now + 150 * self.tempo.grace_s + 900
        while not self._is_over():
            assert self.loop.next_at is not None
            if self.loop.now > limit_s:
                everything_is_over(self.checks)
                raise AssertionError("over, and yet not over")
            self._one()
        everything_is_over(self.checks)

    def _go(self, until_s: float) -> None:
        while self.loop.next_at is not None and self.loop.next_at < until_s:
            self._one()

    def _one(self) -> None:
        self.loop.step()
        self.checks.after_step()
        if self.loop.steps > self._steps_max:
            raise AssertionError(f"no end after {self._steps_max} steps: something goes in circles")

    def _is_over(self) -> bool:
        engine = self.orchestrator
        if engine is None or engine.runs or len(engine.leases) or not engine.reconciled:
            return False
        if any(worker is None or worker.stopped or len(worker.holdings) for worker in self.workers.values()):
            return False
        if any(machine.living() for machine in self.machines.values()):
            return False
        return not any(
            engine.scheduler.pool.holders(name) for name in self.machines if name in engine.scheduler.pool
        )

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────
    def _died(self, process: Process) -> None:
        """A process is no more."""
        if not process.alive:
            return
        self.journal.remark(f"{process.name} dies")
        process.alive = False
        engine = self.orchestrator
        if engine is not None and process is engine.process:
            self.orchestrator = None
            self.incarnations += 1
            following = Process(f"orchestrator {self.incarnations}")
            self.disk = self.disk.found_by(following)
            self.checks.orchestrator_died()
            for _, wire in self.wires:
                wire.died(Side.ORCHESTRATOR)
            self.wires.clear()
            engine.keeper.kill_all()  # a new one starts when the directory is reaped
            delay_s = self.tempo.grace_s * self.chance.of("restart").choice((0.01, 0.1, 0.3, 1.2))
            self.loop.after(delay_s, None, self._start_orchestrator, following)
            return
        for name, worker in self.workers.items():
            if worker is not None and worker.process is process:
                worker.died()
                self.died_s[worker.instance] = self.loop.now
                self.workers[name] = None
                delay_s = self.tempo.grace_s * self.chance.of(f"restart/{name}").choice((0.02, 0.1, 0.5, 1.3))
                self.loop.after(delay_s, None, self._start_worker, name)

    def _start_orchestrator(self, process: Process) -> None:
        self.journal.remark(f"{process.name} starts")
        self.home.forget_dead()
        self.orchestrator_since = self.loop.now
        self.orchestrator = Orchestrator(self, process, self.disk)
        self.orchestrator.start()

    def _start_worker(self, name: str) -> None:
        if self.workers[name] is None:
            machine = self.machines[name]
            machine.forget_dead()
            self.journal.remark(f"worker {name} starts")
            token = f"{name}.{self.secrets[name]}"
            self.workers[name] = SimWorker(self, machine, name, token, self.capacities[name])

    def dial(self, worker: SimWorker) -> Signal:
        """A socket: the signal comes with this worker's end of it, or None when nobody listens."""
        opened, machine = Signal(), worker.machine.name
        self.wires = [one for one in self.wires if not all(end.closed for end in one[1].ends.values())]
        if self.weather.reachable(machine):
            self.loop.after(self.weather.delay(machine), worker.process, self._connected, worker, opened)
        return opened

    def _connected(self, worker: SimWorker, opened: Signal) -> None:
        machine = worker.machine.name
        engine = self.orchestrator
        if engine is None:
            opened.set(None)
            return
        wire = Wire(
            self.loop,
            worker.process,
            engine.process,
            lambda: self.weather.delay(machine),
            lambda side: self.weather.blocked_until(machine, side),
            as_bytes=self.weather.as_bytes,
        )
        self.wires.append((machine, wire))
        engine.desk.accept(wire.ends[Side.ORCHESTRATOR])
        opened.set(wire.ends[Side.WORKER])

    # ── the data plane ──────────────────────────────────────────────────────────────────────────────────────
    def write(self, execution: Execution, number: int) -> None:
        """Running code writes a record."""
        if not execution.ended:
            execution.asked += 1
            self._send_write(execution, number)

    def _send_write(self, execution: Execution, number: int) -> None:
        if execution.ended or number in execution.answered:
            return
        dice = self.chance.of(f"data/{execution.machine.name}")
        lossy = not self.weather.calm and dice.random() < self.weather.write_loss
        times = 0 if lossy and dice.random() < 0.5 else 2 if lossy else 1
        for _ in range(times):
            delay_s = self.weather.delay(execution.machine.name) * dice.choice((1, 1, 1, 20))
            self.loop.after(delay_s, None, self._write_arrives, execution, number)
        stray = self.chance.of(f"stray/{execution.machine.name}")
        if not self.weather.calm and stray.random() < self.weather.write_loss / 4:
            # Somebody on the way says it once more when all may be over: its lease, its step, the orchestrator that knew it.
            late_s = self.tempo.grace_s * stray.choice((0.5, 1.5, 4.0))
            self.loop.after(late_s, None, self._write_arrives, execution, number)
        self.loop.after(self.tempo.grace_s / 10, execution.machine.host, self._send_write, execution, number)

    def _write_arrives(self, execution: Execution, number: int) -> None:
        engine = self.orchestrator
        if engine is not None and engine.reconciled:
            key = f"{execution.dispatch.dispatch}:{number}"
            self.loop.at(self.loop.now, engine.process, engine.write_arrived, execution, number, key)

    def write_answered(self, execution: Execution, number: int, yes: bool | None) -> None:
        dice = self.chance.of(f"data/{execution.machine.name}")
        if self.weather.calm or dice.random() >= self.weather.write_loss / 2:
            self.loop.after(
                self.weather.delay(execution.machine.name),
                execution.machine.host,
                self._wrote,
                execution,
                number,
                yes,
            )

    def _wrote(self, execution: Execution, number: int, yes: bool | None) -> None:
        if yes:
            self.checks.write_heard(execution, number)
        if number not in execution.answered:
            execution.answered.add(number)
            execution.wrote += 1

    def data_batch(self, execution: Execution, number: int, key: str, lease: Lease, first: bool) -> Batch:
        record = self._out(execution.dispatch, f"out-{execution.dispatch.dispatch}-{number}", "write")
        if first:
            return Batch((record_of(lease), record), idempotency=IdempotencyKey(key, "x", lease.dispatch))
        guard = Guard(LEASES_ID, lease_record(lease.dispatch), lease.version)
        return Batch((record,), (guard,), IdempotencyKey(key, "x", lease.dispatch))

    def output(self, dispatch: Dispatch, fence: int) -> NewRecord:
        return self._out(dispatch, f"result-{dispatch.dispatch}", "step-output")

    def _out(self, dispatch: Dispatch, name: str, source: str) -> NewRecord:
        place = dispatch.place
        owner = Owner(
            OwnerType.WORKFLOW_STEP, run=place.run, job=place.job, step=place.step,
            dispatch=dispatch.dispatch, fence=dispatch.fence, source=source,
        )  # fmt: skip
        return NewRecord("command/shell", "m", "m", name, "out", json_content({}), owner=owner)

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────
    def _plan_people(self, dice: object) -> None:
        people = self.chance.of("people")
        for number in range(people.choice((1, 2, 3))):
            at_s = people.random() * self.tempo.grace_s * 4
            self.loop.at(at_s, None, self._submit, number)

    def _submit(self, number: int) -> None:
        engine = self.orchestrator
        if engine is None:
            self.loop.after(1.0, None, self._submit, number)
            return
        sizes = sorted({labels["size"] for labels in self.labels.values()})
        made = workflow(self.chance.of(f"workflow/{number}"), f"wf{number}", list(self.machines), sizes)
        self.loop.at(self.loop.now, engine.process, engine.submit, made)

    def _another_process(self, record: NewRecord) -> bool:
        """A command of somebody in a process of its own: its transaction is durable at once."""
        try:
            self.disk._apply(Batch((record,)))
        except (Conflict, StoreFull):
            return False
        return True

    def _mint(self, name: str) -> None:
        dice = self.chance.of(f"token/{name}")
        short = self.weather.short_tokens and not self.weather.calm and dice.random() < 0.7
        duration_ms = round(self.tempo.grace_s * 1000 * (1 + 6 * dice.random())) if short else LONG_MS
        mint_id = f"{name}/{self.chance.uuid()}"
        secret = f"secret-{mint_id[-47:-39]}"
        tokens = self.cores.tokens
        made = tokens.mint(
            read_token(self.disk, name), name=name, now_ms=self.wall_ms(), duration_ms=duration_ms,
            vault_name="v", secret_key="k", max_enrollments=1, mint_id=mint_id, secret_hash=secret,
        )  # fmt: skip
        if isinstance(made, tokens.Denied):
            return
        if self._another_process(token_record(made)):
            self.secrets[name] = secret

    def _new_token(self, name: str) -> None:
        """An operator mints the name again where it is over, and starts the worker with it."""
        token = read_token(self.disk, name)
        state = self.cores.tokens.effective_state(token, self.wall_ms())
        if state.value in ("revoked", "expired"):
            self._mint(name)
        worker = self.workers[name]
        if worker is not None and (worker.stopped or worker.token != f"{name}.{self.secrets[name]}"):
            self._died(worker.process)

    # ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────
    def _plan_faults(self, until_s: float) -> None:
        for fault in FAULTS:
            dice = self.chance.of(f"fault/{fault}")
            rate, at_s = self.weather.rates[fault] / self.tempo.grace_s, 0.0
            while rate:
                at_s += dice.expovariate(rate)
                if at_s >= until_s:
                    break
                self.loop.at(at_s, None, self._fault, fault)
        at_s = self.tempo.grace_s
        while at_s < until_s:  # somebody looks after the machines now and then
            self.loop.at(at_s, None, self._caretaker)
            at_s += 2 * self.tempo.grace_s

    def _caretaker(self) -> None:
        for name in self.workers:
            worker = self.workers[name]
            if worker is not None and worker.stopped:
                self._new_token(name)

    def _fault(self, fault: str) -> None:
        self.faults += 1
        self.journal.remark(f"weather: {fault}")
        getattr(self, f"_{fault}")()

    def _some(self, fault: str) -> str:
        return self.chance.of(f"fault/{fault}/who").choice(list(self.machines))

    def _span(self, fault: str) -> float:
        """How long it lasts: mostly a blip, sometimes longer than the grace window."""
        return self.tempo.grace_s * self.chance.of(f"fault/{fault}/span").choice(
            (0.02, 0.1, 0.3, 0.6, 0.9, 1.3, 2.5)
        )

    def _cut(self) -> None:
        self._cut_links(self._some("cut"))

    def _cut_links(self, name: str) -> None:
        dice = self.chance.of("fault/cut/how")
        for machine, wire in self.wires:
            if machine == name:
                notice = {side: dice.random() * 0.1 for side in Side if dice.random() < 0.7}
                wire.cut(notice)

    def _half_open(self) -> None:
        name = self._some("half_open")
        side = self.chance.of("fault/half_open/side").choice(list(Side))
        for machine, wire in self.wires:
            if machine == name:
                wire.mute[side] = True

    def _partition(self) -> None:
        dice = self.chance.of("fault/partition/how")
        span_s = self._span("partition")
        names = list(self.machines) if dice.random() < 0.3 else [self._some("partition")]
        sides = list(Side) if dice.random() < 0.6 else [dice.choice(list(Side))]
        for name in names:
            for side in sides:
                self.weather.block(name, side, span_s)

    def _kill_worker(self) -> None:
        worker = self.workers[self._some("kill_worker")]
        if worker is not None:
            self._died(worker.process)

    def _kill_at_effect(self) -> None:
        worker = self.workers[self._some("kill_at_effect")]
        if worker is not None:
            k = self.chance.of("fault/kill_at_effect/k").randint(1, 12)
            worker.process.dies_at_effect = worker.process.effects + k

    def _reboot(self) -> None:
        name = self._some("reboot")
        for machine, wire in self.wires:
            if machine == name:
                wire.mute[Side.WORKER] = True  # a machine that is gone says nothing
        machine_ = self.machines[name]
        machine_.reboot()
        worker = self.workers[name]
        if worker is not None:
            self._died(worker.process)

    def _stop_worker(self) -> None:
        worker = self.workers[self._some("stop_worker")]
        if worker is not None:
            worker.process.stop_until(self.loop.now + self._span("stop_worker"))

    def _stop_orchestrator(self) -> None:
        engine = self.orchestrator
        if engine is not None:
            engine.process.stop_until(self.loop.now + self._span("stop_orchestrator"))

    def _crash(self) -> None:
        if self.orchestrator is not None:
            self._died(self.orchestrator.process)

    def _crash_at_effect(self) -> None:
        engine = self.orchestrator
        if engine is not None:
            k = self.chance.of("fault/crash_at_effect/k").randint(1, 15)
            engine.process.dies_at_effect = engine.process.effects + k

    def _slow_disk(self) -> None:
        slow_s = self.tempo.grace_s * self.chance.of("fault/slow_disk/how").choice((0.01, 0.05, 0.2))
        span_s = self._span("slow_disk")
        self.slowest_commit_s = max(self.slowest_commit_s, slow_s)
        self.weather.slow_disk(span_s, slow_s)
        self.disk_was_bad_until = max(self.disk_was_bad_until, self.loop.now + span_s + 20 * slow_s)

    def _full_disk(self) -> None:
        span_s = self._span("full_disk")
        self.weather.full_disk(span_s)
        self.disk_was_bad_until = max(self.disk_was_bad_until, self.loop.now + span_s + 2.0)

    def _clock_step(self) -> None:
        self.wall_offset_ms += round(
            1000 * self.tempo.grace_s * self.chance.of("fault/clock_step/by").choice((-5, -0.5, 0.5, 5))
        )

    def moment(self, run: Run, work: Work) -> None:
        """A grant is on its way to the disk, or was sent, or a completion is about to be saved."""
        dice = self.chance.of("moment")
        if self.weather.calm or dice.random() >= self.weather.moments:
            return
        self.faults += 1
        what = dice.choice(("time_out", "time_out", "cut", "crash", "revoke", "slow_disk"))
        self.journal.remark(f"moment: {what}")
        worker = work.state.worker
        soon_s = dice.choice((0.0, self.weather.delay_s, self.weather.commit_s, self.tempo.grace_s / 20))
        match what:
            case "time_out":
                engine = self.orchestrator
                assert engine is not None
                self.loop.after(soon_s, engine.process, engine.time_out, run, work.state.key)
            case "cut" if worker is not None:
                self.loop.after(soon_s, None, self._cut_links, worker)
            case "revoke" if worker is not None:
                self.loop.after(soon_s, None, self._revoke_of, worker)
            case "crash":
                self.loop.after(soon_s, None, self._crash)
            case _:
                self._slow_disk()

    def cannot_be_sent(self) -> bool:
        return not self.weather.calm and self.chance.of("moment/size").random() < self.weather.moments / 10

    def _pick_run(self, fault: str) -> object:
        engine = self.orchestrator
        told = [] if engine is None else [run for run in engine.runs.values() if run.version]
        return self.chance.of(f"fault/{fault}/run").choice(told) if told else None

    def _cancel(self) -> None:
        engine, run = self.orchestrator, self._pick_run("cancel")
        if engine is not None and run is not None and self.chance.of("fault/cancel/luck").random() < 0.3:
            self.loop.at(self.loop.now, engine.process, engine.cancel_run, run, "an operator cancelled it")

    def _time_out(self) -> None:
        engine, run = self.orchestrator, self._pick_run("time_out")
        if engine is not None and run is not None and run.work:  # type: ignore[attr-defined]
            key = self.chance.of("fault/time_out/step").choice(list(run.work))  # type: ignore[attr-defined]
            self.loop.at(self.loop.now, engine.process, engine.time_out, run, key)

    def _revoke(self) -> None:
        self._revoke_of(self._some("revoke"))

    def _revoke_of(self, name: str) -> None:
        token = read_token(self.disk, name)
        over = self.cores.tokens.revoke(token, self.wall_ms())
        if over is not None and not self.weather.is_full() and self._another_process(token_record(over)):
            dice = self.chance.of("fault/revoke/how")
            if dice.random() < 0.5 and self.orchestrator is not None:
                self.orchestrator.desk.look_again()
            self.loop.after(self.tempo.grace_s * dice.choice((0.0, 0.1, 1.0)), None, self._new_token, name)

    def _renew(self) -> None:
        name = self._some("renew")
        token = read_token(self.disk, name)
        longer = self.cores.tokens.renew(token, self.wall_ms(), LONG_MS)
        if not isinstance(longer, self.cores.tokens.Denied) and not self.weather.is_full():
            self._another_process(token_record(longer))

    def _drain(self) -> None:
        name = self._some("drain")
        dice = self.chance.of("fault/drain/how")
        worker = self.workers[name]
        if dice.random() < 0.3 and worker is not None:
            worker.drain()
            self.loop.after(self._span("drain"), None, self._kill_worker_named, name)
            return
        state = read_worker(self.disk, name)
        if state is not None:
            self._set_drain(name, not state.operator_drain)

    def _set_drain(self, name: str, draining: bool) -> None:
        engine = self.orchestrator
        if engine is not None and name in engine.desk.members:
            when_safe = self.chance.of("fault/drain/when safe").random() < 0.5
            self.loop.spawn(engine.process, engine.desk.drain(name, draining, when_safe))
            return
        state = read_worker(self.disk, name)
        if state is not None:
            self._another_process(worker_record(attrs.evolve(state, operator_drain=draining)))

    def _kill_worker_named(self, name: str) -> None:
        worker = self.workers[name]
        if worker is not None:
            self._died(worker.process)

    def _end_elsewhere(self) -> None:
        """Another process ends a lease by compare-and-swap: one that has written, as failed."""
        found = [
            lease
            for lease in (self._read(record) for record in list(self.before)[-8:])
            if lease is not None and lease.active and lease.worker is not None
        ]
        if found and not self.weather.is_full():
            lease = self.chance.of("fault/end_elsewhere/which").choice(found)
            ended = attrs.evolve(
                lease,
                state=LeaseState.FAILED if lease.wrote else LeaseState.EXPIRED,
                reason=EndReason.WRITE_THEN_DROP if lease.wrote else EndReason.ABANDONED,
                cause="an operator ended it",
                ended_ms=self.wall_ms(),
                replace_ms=self.wall_ms() + round(self.tempo.grace_s * 1000),
            )
            self._another_process(record_of(ended))

    def _read(self, record: str) -> Lease | None:
        found = self.disk.latest(LEASES_ID, record)
        if found is None:
            return None
        attributes = self.disk.durable(LEASES_ID, record)
        assert attributes is not None
        return Lease.from_attributes(attributes, found.version)

    def _data_loss(self) -> None:
        self.weather.write_loss = self.chance.of("fault/data_loss/how").choice((0.0, 0.3, 0.8))

    # ── the end of the weather ──────────────────────────────────────────────────────────────────────────────
    def _heal(self) -> None:
        self.journal.remark("the weather clears")
        self.weather.clear_up()
        self.weather.write_loss = 0.0
        if self.orchestrator is not None:
            self.orchestrator.process.dies_at_effect = None
        for worker in self.workers.values():
            if worker is not None:
                worker.process.dies_at_effect = None
        self._make_well()

    def _make_well(self) -> None:
        """People see to it that everything is up, until all is over."""
        for name in self.machines:
            self._new_token(name)
            state = read_worker(self.disk, name)
            if state is not None and state.operator_drain:
                self._set_drain(name, False)
            worker = self.workers[name]
            if worker is not None and worker.slots.draining:
                self._died(worker.process)
        self.loop.after(2 * self.tempo.grace_s, None, self._make_well)

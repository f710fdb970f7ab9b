"""A reconnect storm: every worker of a pool comes back at once to an orchestrator that was killed and knows no secret by heart.

    python bench/bench_storm.py [--workers N] [--holding N] [--json]

The workers are lightweight: one process speaks the real protocol for all of them, over real sockets, each with its own token and the
real dialing rules. Some hold a dispatch. The orchestrator is killed with SIGKILL and started again on the same port; a step on
the loopback is submitted while they enroll. What is printed: how long until all are back, what the orchestrator weighed, how long
the step took to start, and that no lease was lost: the run of the held steps succeeds at their first attempt.
"""

import argparse
import json
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import attrs
import trio
from fleet import fleet, tree_pss_kib

from swamp_orch.api.client import HttpSession
from swamp_orch.definitions.repository import find
from swamp_proto import codec
from swamp_proto.envelope import Failure, Request, Response
from swamp_proto.errors import Broken
from swamp_proto.messages import RULE_BY_BODY
from swamp_proto.messages.dispatch import Accepted, Dispatch, Finished, Outcome
from swamp_proto.messages.enrollment import (
    Enroll,
    Enrolled,
    Heartbeat,
    HeartbeatAnswer,
    HeldDispatch,
    HeldPhase,
    Verdict,
)
from swamp_proto.trio_io import MessagePipe
from swamp_proto.version import PROTOCOL_VERSION, SWAMP_VERSION
from swamp_worker.core import dialing
from swamp_worker.shell.dial import Address, open_pipe

GOAL_S = 20.0
TASK = "        task: {type: model_method, modelIdOrName: noop, methodName: execute}"
LOOPBACK = ["name: meanwhile", "jobs:", "  - name: build", "    steps:", "      - name: s", TASK]


@attrs.define(eq=False)
class Light:
    """One worker: dials, enrolls, answers heartbeats, accepts what it is given and holds it until told to finish."""

    token: str
    address: Address
    storm: "Storm"
    machine: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    instance: str = attrs.field(factory=lambda: str(uuid.uuid4()))
    counter: int = 0
    enrolled: bool = False
    refusals: list[str] = attrs.field(factory=list)
    held: Dispatch | None = None
    pipe: MessagePipe | None = None
    next_id: int = 0
    enrolled_at: float = 0.0

    async def live(self) -> None:
        rules = dialing.Dialing(random.random)
        effects = rules.handle(dialing.Started(), trio.current_time())
        while True:
            (effect,) = effects
            if isinstance(effect, dialing.Wait):
                await trio.sleep(effect.delay_s)
                effects = rules.handle(dialing.WaitOver(), trio.current_time())
                continue
            assert isinstance(effect, dialing.Dial), effect
            event: dialing.Happening = dialing.DialFailed("no answer in time")
            with trio.move_on_after(effect.timeout_s) as scope:
                try:
                    async with open_pipe(self.address) as pipe:
                        event = await self._talk(pipe, rules, scope)
                except Broken as error:
                    gone = rules.phase is dialing.Phase.ENROLLED
                    event = dialing.LinkLost(str(error)) if gone else dialing.DialFailed(str(error))
            self._lost()
            effects = rules.handle(event, trio.current_time())

    def _lost(self) -> None:
        if self.enrolled:
            self.enrolled, self.pipe = False, None
            self.storm.connected -= 1

    async def _talk(
        self, pipe: MessagePipe, rules: dialing.Dialing, scope: trio.CancelScope
    ) -> dialing.Happening:
        self.counter += 1
        held = (
            ()
            if self.held is None
            else (HeldDispatch(self.held.dispatch, self.held.fence, HeldPhase.RUNNING, 0),)
        )
        enroll = Enroll(
            PROTOCOL_VERSION, SWAMP_VERSION, self.token, self.machine, "boot-1", self.instance, self.counter,
            "bench", os.getpid(), "linux", "x86_64", {}, 1, False, None, held,
        )  # fmt: skip
        await pipe.send(codec.encode(Request(1, enroll)))
        answer = codec.decode(await pipe.receive())
        if isinstance(answer, Failure):
            self.refusals.append(answer.failure.code.value)
            return dialing.Refused(answer.failure.code, answer.failure.retry_after_s)
        assert isinstance(answer, Response)
        assert isinstance(answer.body, Enrolled)
        scope.deadline = float("inf")
        rules.handle(dialing.Enrolled(), trio.current_time())
        dropped = [one.dispatch for one in answer.body.verdicts if one.verdict is not Verdict.KEEP]
        assert not dropped, "an execution was lost to the storm"
        self.enrolled, self.pipe, self.next_id = True, pipe, 2
        self.storm.connected += 1
        self.enrolled_at = time.perf_counter()
        self.storm.changed.unpark_all()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, pipe, answer.body.heartbeat_s)
                while True:
                    for frame in codec.decode_message(await pipe.receive()):
                        if not isinstance(frame, Request):
                            continue
                        name = RULE_BY_BODY[type(frame.body)].name
                        if isinstance(frame.body, Heartbeat):
                            beat = HeartbeatAnswer(frame.body.number)
                            await pipe.send(codec.encode(Response(frame.id, beat, name)))
                        elif isinstance(frame.body, Dispatch):
                            self.held = frame.body
                            taken = Accepted(frame.body.dispatch)
                            await pipe.send(codec.encode(Response(frame.id, taken, name)))
                            self.storm.changed.unpark_all()
        except* Broken:
            pass
        return dialing.LinkLost("the link ended")

    async def ask(self, pipe: MessagePipe, body: Any) -> None:
        number, self.next_id = self.next_id, self.next_id + 1
        await pipe.send(codec.encode(Request(number, body)))

    async def _beat(self, pipe: MessagePipe, every_s: float) -> None:
        await trio.sleep(random.random() * every_s)
        number = 0
        while True:
            number += 1
            await self.ask(pipe, Heartbeat(number))
            await trio.sleep(every_s)

    async def finish(self) -> None:
        assert self.pipe is not None
        assert self.held is not None
        now_ms = time.time_ns() // 1_000_000
        await self.ask(
            self.pipe,
            Finished(self.held.dispatch, self.held.fence, Outcome.SUCCEEDED, None, (), 0, 0, 0, now_ms, 1),
        )


class Storm:
    """All of them."""

    def __init__(self) -> None:
        self.workers: list[Light] = []
        self.connected = 0
        self.changed = trio.lowlevel.ParkingLot()

    async def until(self, count: int, within_s: float = 120.0) -> None:
        with trio.move_on_after(within_s):
            while self.connected < count:
                await self.changed.park()
            return
        raise SystemExit(f"only {self.connected} of {count} workers are connected")


def step_latency_s(session: HttpSession) -> float:
    """From asking for a run to the first word of its step on the loopback."""
    began = time.perf_counter()
    run_id = session.call("workflow.run", name="meanwhile")["runId"]
    for event in session.stream("run.attach", runId=run_id):
        if event["kind"] == "step_started":
            return time.perf_counter() - began
    raise SystemExit("the step never started")


async def bench(it: Any, workers: int, holding: int) -> dict[str, float]:
    found: dict[str, float] = {"workers": workers, "holding": holding}
    began = time.perf_counter()
    tokens = [
        await trio.to_thread.run_sync(
            lambda name=f"w{number}": it.session.call("token.create", name=name, durationMs=3_600_000)[
                "token"
            ]
        )
        for number in range(workers)
    ]
    found["mint_ms_each"] = (time.perf_counter() - began) * 1e3 / workers
    storm = Storm()
    address = Address.parse(it.url)
    found["serve_pss_idle_mib"] = tree_pss_kib(it.processes[-1].pid) / 1024
    async with trio.open_nursery() as nursery:
        began = time.perf_counter()
        for token in tokens:
            storm.workers.append(Light(token, address, storm))
            nursery.start_soon(storm.workers[-1].live)
        await storm.until(workers)
        found["first_enrollment_s"] = time.perf_counter() - began
        lines = ["name: held", "jobs:", "  - name: build", "    steps:"]
        for number in range(holding):
            lines += [f"      - name: s{number}", f"        target: w{number}", TASK]
        await trio.to_thread.run_sync(
            lambda: it.session.call(
                "workflow.create", name="held", text="\n".join([*lines, "version: 1", ""])
            )
        )
        run_id = await trio.to_thread.run_sync(lambda: it.session.call("workflow.run", name="held")["runId"])
        with trio.fail_after(60):
            while any(one.held is None for one in storm.workers[:holding]):
                await storm.changed.park()
        text = "\n".join([*LOOPBACK, "version: 1", ""])
        await trio.to_thread.run_sync(lambda: it.session.call("workflow.create", name="meanwhile", text=text))
        # Reports that were not noted would be sent again; let the acceptances become durable before the kill.
        await trio.sleep(1)
        found["serve_pss_full_mib"] = tree_pss_kib(it.processes[-1].pid) / 1024

        it.processes[-1].kill()
        it.processes[-1].wait()
        find(it.root).serve_file.unlink(missing_ok=True)
        for one in storm.workers:
            one.refusals.clear()
        killed = time.perf_counter()
        with trio.fail_after(30):
            while storm.connected:  # noqa: ASYNC110 - each worker notices by itself
                await trio.sleep(0.01)
        started = time.perf_counter()
        process = it.start("serve", "--port", str(address.port))
        serve_file: Path = find(it.root).serve_file
        with trio.fail_after(30):
            while not serve_file.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
                await trio.sleep(0.005)
        listening = time.perf_counter()
        latencies: list[float] = []
        peak_kib = 0

        async def probe() -> None:
            session = HttpSession.unix(find(it.root).socket_path())
            while storm.connected < workers:
                latencies.append(await trio.to_thread.run_sync(step_latency_s, session))
                await trio.sleep(0.2)

        async def weigh() -> None:
            nonlocal peak_kib
            while storm.connected < workers:
                peak_kib = max(peak_kib, tree_pss_kib(process.pid))
                await trio.sleep(0.25)

        nursery.start_soon(probe)
        nursery.start_soon(weigh)
        await storm.until(workers)
        back = time.perf_counter()
        found["serve_ready_s"] = listening - started
        found["back_since_start_s"] = back - started
        found["back_since_kill_s"] = back - killed
        ordered = sorted(one.enrolled_at - started for one in storm.workers)
        found["back_p50_s"], found["back_p90_s"] = ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10]
        refusals = [code for one in storm.workers for code in one.refusals]
        found["told_overloaded"] = refusals.count("overloaded")
        found["refused_otherwise"] = len(refusals) - refusals.count("overloaded")
        found["serve_pss_peak_mib"] = peak_kib / 1024
        for one in storm.workers[:holding]:
            await one.finish()
        session = HttpSession.unix(find(it.root).socket_path())
        with trio.fail_after(60):
            while True:
                run = await trio.to_thread.run_sync(lambda: session.call("run.get", runId=run_id))
                if run["status"] not in ("running", "queued", "pending"):
                    break
                await trio.sleep(0.1)
        leases = await trio.to_thread.run_sync(
            lambda: session.call(
                "data.query",
                predicate=f'modelType == "swamp/step-lease" && attributes.runId == "{run_id}" && attributes.state != ""',
                select="attributes.state",
                limit=10_000,
            )
        )
        assert run["status"] == "succeeded", run["status"]
        assert len(leases["results"]) == holding, "a step was placed again"
        found["leases_kept"] = sum(state == "completed" for state in leases["results"])
        with trio.move_on_after(10):
            while not latencies:  # noqa: ASYNC110 - the last probe is on its way
                await trio.sleep(0.05)
        found["step_start_s_worst"] = max(latencies)
        nursery.cancel_scope.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--holding", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)
    with fleet() as it:
        found = trio.run(bench, it, options.workers, options.holding)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:10.2f}")
    if found["back_since_start_s"] > GOAL_S:
        raise SystemExit(f"not all were back within {GOAL_S:g} s")


if __name__ == "__main__":
    main()

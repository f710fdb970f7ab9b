"""`./dev chaos --minutes N [--seed S]`: real processes under random kills, stops, cut and half-open links, full disks.

One orchestrator and three workers with a grace window of 4 s, real sockets, a real store; then a judge reads the history. The seed is
printed; the same seed is the same schedule of faults. Exit 0 when every promise was kept. See README.md.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e_enrollment"))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import disks
import weather
import workload
from e2e_site import Running, Site, processes, until
from history import judge
from people import People
from schedule import GRACE_S, ORCHESTRATOR, Fault, schedule

from swamp_orch.definitions.repository import find

WORKERS = ("w1", "w2", "w3")
CALM_S = 90.0  # for every run to end once nothing goes wrong any more
STORE_MIB, CACHE_MIB = 512, 48


class Chaos:
    """The processes, and what happens to them."""

    def __init__(self, site: Site, witness: Path, seed: int, *, disks_too: bool) -> None:
        self.site = site
        self.disks_too = disks_too
        self.counts: Counter[str] = Counter()
        self._healing = threading.Event()
        self._start_lock = threading.Lock()
        self._stopped: dict[str, Running] = {}
        self._timers: list[threading.Timer] = []
        self._seed = seed
        self._dice = random.Random(f"who {seed}")
        names = workload.lay_out(site, witness)
        if disks_too:
            disks.mount(site.root / ".swamp", STORE_MIB)
            for name in WORKERS:
                disks.mount(site.folder / f"cache-{name}", CACHE_MIB)
        site.serve("--grace", f"{GRACE_S:g}s")
        self.links = {name: weather.Weather(site.port) for name in WORKERS}
        for name in WORKERS:
            self.start(name)
        self.repository = find(site.root)
        self.people = People(self.repository, witness, names, seed)

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────
    def process(self, who: str) -> Running | None:
        return self.site.orchestrator if who == ORCHESTRATOR else self.site.workers.get(who)

    def start(self, who: str) -> None:
        with self._start_lock:
            running = self.process(who)
            if running is not None and running.process.poll() is None:
                return
            if who != ORCHESTRATOR:
                flags = ("--label", "pool=any", "--concurrency", "2")
                self.site.worker(who, *flags, url=self.links[who].url, enrolled=False)
                return
            flags = ("--port", str(self.site.port), "--grace", f"{GRACE_S:g}s")
            self.site.orchestrator = self.site.start("serve", *flags, name="serve")

    def keep_alive(self) -> None:
        """Like an init system: what ended by itself (on a full disk, say) is started again."""
        down: dict[str, float] = {}
        while not self._healing.wait(0.5):
            for who in (ORCHESTRATOR, *WORKERS):
                running = self.process(who)
                dead = running is not None and running.process.poll() is not None
                since = down.setdefault(who, time.monotonic()) if dead else down.pop(who, 0.0)
                if dead and time.monotonic() - since > 8.0:
                    self.start(who)

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────
    def happen(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)

    def _after(self, seconds: float, what: Callable[..., Any], *arguments: Any) -> None:
        timer = threading.Timer(seconds, what, arguments)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _signal(self, fault: Fault, number: signal.Signals) -> bool:
        running = self.process(fault.who)
        if running is None or running.process.poll() is not None:
            return False
        os.kill(running.pid, number)
        return True

    def _kill(self, fault: Fault) -> None:
        self._signal(fault, signal.SIGKILL)
        self._after(fault.span_s, self.start, fault.who)

    def _leave(self, fault: Fault) -> None:
        self._signal(fault, signal.SIGINT)
        self._after(fault.span_s + 2.0, self._start_when_gone, fault.who)

    def _start_when_gone(self, who: str) -> None:
        running = self.process(who)
        if running is not None and running.process.poll() is None and not self._healing.is_set():
            self._after(1.0, self._start_when_gone, who)
        else:
            self.start(who)

    def _stop(self, fault: Fault) -> None:
        running = self.process(fault.who)
        if running is not None and self._signal(fault, signal.SIGSTOP):
            self._stopped[fault.who] = running
            self._after(fault.span_s, self._go_on, fault.who)

    def _go_on(self, who: str) -> None:
        running = self._stopped.pop(who, None)
        if running is not None and running.process.poll() is None:
            os.kill(running.pid, signal.SIGCONT)

    def _cut(self, fault: Fault) -> None:
        self.links[fault.who].cut()

    def _half_open(self, fault: Fault) -> None:
        self.links[fault.who].silence()

    def _partition(self, fault: Fault) -> None:
        until_s = time.monotonic() + fault.span_s

        def silent() -> None:
            self.links[fault.who].silence()
            if time.monotonic() < until_s and not self._healing.is_set():
                self._after(0.1, silent)

        silent()

    def _full_disk(self, fault: Fault) -> None:
        if not self.disks_too:
            return
        folder = (
            self.site.root / ".swamp"
            if fault.who == ORCHESTRATOR
            else self.site.folder / f"cache-{fault.who}"
        )
        disks.fill(folder)
        self._after(fault.span_s, disks.empty, folder)

    def _drain(self, fault: Fault) -> None:
        self.people.ask("worker.drain", name=fault.who, draining=True, reason="chaos", whenSafe=True)
        self._after(fault.span_s, self._undrain, fault.who)

    def _undrain(self, who: str) -> None:
        for _ in range(100):
            if self.people.ask("worker.drain", name=who, draining=False) is not None:
                return
            time.sleep(0.3)

    def _cancel(self, fault: Fault) -> None:
        self.people.cancel(self._dice.random())

    # ── the end of it ───────────────────────────────────────────────────────────────────────────────────────
    def heal(self) -> None:
        """Nothing goes wrong any more, and everybody is there."""
        self._healing.set()
        for timer in self._timers:
            timer.cancel()
        for who in list(self._stopped):
            self._go_on(who)
        if self.disks_too:
            disks.empty(self.site.root / ".swamp")
            for name in WORKERS:
                disks.empty(self.site.folder / f"cache-{name}")
        for who in (ORCHESTRATOR, *WORKERS):
            running = self.process(who)
            if running is not None:
                time.sleep(0.2)
            self.start(who)
        until(lambda: self.people.ask("serve.status"), "the orchestrator answers", CALM_S)
        for name in WORKERS:
            self._start_when_gone(name)
            self._undrain(name)

    def verdict(self) -> list[str]:
        """Every broken promise."""
        left = self.people.wait(CALM_S)
        found = [f"run {run} did not end within {CALM_S:g} s of calm" for run in left]
        until(lambda: self._all_idle(), "every slot is free", 30.0)
        doctor = self.people.ask("run.doctor")
        found += [f"run doctor: {finding}" for finding in doctor["findings"]]
        runs = {run: self.people.ask("run.get", runId=run) for run in self.people.told.accepted}
        leases = self._leases()
        logs = {
            lease["dispatchId"]: self.people.ask("output.logs", id=lease["dispatchId"])["lines"]
            for lease in leases
            if lease["state"] == "completed"
        }
        notes: dict[str, set[tuple[int, int]]] = {}
        predicate = 'modelType == "@chaos/writer" && specName == "note" && version > 0'
        for name, fence, number in self._query(predicate, "[name, attributes.fence, attributes.number]"):
            notes.setdefault(name, set()).add((fence, number))
        self.counts["writes of running code"] = sum(map(len, notes.values()))
        known = {run: document for run, document in runs.items() if document is not None}
        found += judge(self.people.told, known, leases, logs, notes, self.people.witness)
        self.counts["runs"] = len(known)
        self.counts["dispatches"] = len(leases)
        for status, times in Counter(document["status"] for document in known.values()).items():
            self.counts[f"runs {status}"] = times
        errors = Counter(str(document["error"])[:110] for document in known.values() if document.get("error"))
        for error, times in errors.most_common(12):
            print(f"{times:7d}  run ended: {error}")
        for reason, times in Counter(lease.get("reason", lease["state"]) for lease in leases).items():
            self.counts[f"ended {reason}"] = times
        return found

    def _all_idle(self) -> bool:
        found = self.people.ask("worker.list")
        workers = found["workers"] if found is not None else []
        return len(workers) == len(WORKERS) and all(one["status"] == "idle" for one in workers)

    def _leases(self) -> list[dict[str, Any]]:
        return self._query('modelType == "swamp/step-lease" && attributes.state != ""', "attributes")

    def _query(self, predicate: str, select: str) -> list[Any]:
        answer = self.people.ask("data.query", predicate=predicate, select=select, limit=1_000_000)
        assert answer is not None, predicate
        return list(answer["results"])

    def said_wrong(self) -> list[str]:
        """What no process may ever print."""
        return [
            f"{name} printed a traceback: {text[text.index('Traceback') :][:3000]}"
            for name, text in self.site.story()
            if "Traceback" in text
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="the schedule; printed, random unless given")
    parser.add_argument("--keep", action="store_true", help="keep the folder also when all is well")
    options = parser.parse_args()
    disks_too = disks.enter()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    seconds = options.minutes * 60
    faults = schedule(seed, seconds, WORKERS)
    print(
        f"seed {seed}: {len(faults)} faults in {seconds:g} s, disks {'of their own' if disks_too else 'never full'}",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="swamp-chaos-"))
    witness = folder / "witness"
    witness.mkdir()
    found: list[str] = []
    with Site(folder / "site") as site:
        chaos = Chaos(site, witness, seed, disks_too=disks_too)
        try:
            began = time.monotonic()
            threading.Thread(target=chaos.keep_alive, daemon=True).start()
            chaos.people.start()
            for fault in faults:
                time.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                print(f"{time.monotonic() - began:7.2f} | {fault}", flush=True)
                chaos.happen(fault)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            chaos.people.stop_submitting()
            chaos.heal()
            found = chaos.verdict() + chaos.said_wrong()
        finally:
            for name, text in site.story():
                with (folder / "story.txt").open("a") as story:
                    story.write(f"──── {name}\n{text}\n")
        for name in WORKERS:
            running = site.workers[name]
            running.send(signal.SIGINT)
        for name in WORKERS:
            site.workers[name].process.wait(30)
        assert site.orchestrator is not None
        site.orchestrator.send(signal.SIGINT)
        site.orchestrator.process.wait(30)
        time.sleep(0.5)
        found += [f"still running: {process}" for process in processes(site.mark)]
    for name, times in sorted(chaos.counts.items()):
        print(f"{times:7d}  {name}")
    for sentence in found:
        print(f"BROKEN: {sentence}")
    print(
        f"seed {seed}: {'every promise was kept' if not found else f'{len(found)} promises broken; see {folder}'}"
    )
    if not found and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

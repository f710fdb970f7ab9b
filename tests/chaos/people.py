"""The people of a chaos run: they submit workflows, follow every run to its end, cancel, and drain.

They speak to the orchestrator's unix socket like every command, from threads of the harness, and remember what they were told.
"""

import random
import threading
import time
from pathlib import Path
from typing import Any

from history import Told, is_free

from swamp_orch.api.client import HttpSession
from swamp_orch.definitions.repository import Repository
from swamp_proto.errors import SwampError

AT_ONCE = 6  # runs at work


class People:
    def __init__(self, repository: Repository, witness: Path, workflows: tuple[str, ...], seed: int) -> None:
        self.told = Told()
        self._session = HttpSession.unix(repository.socket_path())
        self.witness = witness
        self._workflows = workflows
        self._dice = random.Random(f"people {seed}")
        self._active: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._submitter = threading.Thread(target=self._submit, daemon=True)

    def start(self) -> None:
        self._submitter.start()

    def stop_submitting(self) -> None:
        self._closing.set()
        self._submitter.join()

    def wait(self, within_s: float) -> list[str]:
        """Follow what is at work to its end; answers the runs that did not end."""
        until_s = time.monotonic() + within_s
        for thread in list(self._active.values()):
            thread.join(max(0.0, until_s - time.monotonic()))
        with self._lock:
            return sorted(self._active)

    def active(self) -> list[str]:
        with self._lock:
            return sorted(self._active)

    def ask(self, call: str, **parameters: Any) -> Any:
        """None when nobody answered, or not with yes."""
        try:
            return self._session.call(call, **parameters)
        except SwampError:
            return None

    def cancel(self, which: float) -> str:
        runs = self.active()
        if not runs:
            return "nothing is at work"
        run = runs[int(which * len(runs)) % len(runs)]
        if self.ask("run.cancel", runId=run, reason="chaos", wait=False) is None:
            return f"{run}: nobody answered"
        self.told.cancelled.add(run)
        return run

    def _submit(self) -> None:
        while not self._closing.is_set():
            if len(self._active) < AT_ONCE:
                name = self._dice.choice(self._workflows)
                answer = self.ask("workflow.run", name=name)
                if answer is not None:
                    run = answer["runId"]
                    self.told.accepted[run] = name
                    thread = threading.Thread(target=self._follow, args=(run,), daemon=True)
                    with self._lock:
                        self._active[run] = thread
                    thread.start()
            self._closing.wait(0.2)

    def _follow(self, run: str) -> None:
        while True:
            try:
                for event in self._session.stream("run.attach", runId=run):
                    if event["kind"] == "run_ended":
                        self._ended(run, event)
                        return
            except SwampError:
                time.sleep(0.2)

    def _ended(self, run: str, event: dict[str, Any]) -> None:
        self.told.ended[run] = event["status"]
        if event.get("left") == 0:
            living = [lock.name for lock in self.witness.glob(f"{run}.*.lock") if not is_free(lock)]
            if living:
                self.told.broken.append(
                    f"run {run} ended with `left: 0`, and {living} are held by something that lives"
                )
        with self._lock:
            del self._active[run]

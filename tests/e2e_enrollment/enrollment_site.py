"""What the rows of the restart table are told with: machines, their worker processes, tokens, and runs that can be watched.

A *machine* is a cache directory. `gate` steps begin, say so, and end when their gate file exists: nothing here waits for time alone.
"""

import json
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import attrs
from e2e_site import PROJECT, Running, Site, until
from weather import Weather

from swamp_orch.api.client import HttpSession
from swamp_orch.definitions.repository import find
from swamp_orch.store.interface import Batch
from swamp_orch.store.sqlite import open_store
from swamp_orch.tokens.records import read_token, token_record

PATCHED: Final = """
import sys
import swamp_proto.version as version
import swamp_worker.execution.registry as registry
{patch}
from swamp_orch.cli.main import main
sys.argv[0] = "swamp"
sys.exit(main())
"""
"""A worker that is another program in one respect: its version, or the boot it thinks it is in."""


class EnrollmentSite:
    """A site with a serving orchestrator, the weather before it, and the words for enrollment."""

    def __init__(self, site: Site, *flags: str) -> None:
        self.site = site
        self._flags = flags
        self.serve = site.serve(*flags)
        self.weather = Weather(site.port)
        self._session: HttpSession | None = None
        self._serial = 0

    def close(self) -> None:
        self.weather.close()

    # ── the orchestrator ────────────────────────────────────────────────────────────────────────────────────
    def call(self, name: str, /, **parameters: Any) -> Any:
        """A call through the private socket, without the cost of a command."""
        session = HttpSession.unix(find(self.site.root).socket_path())
        try:
            return session.call(name, **parameters)
        finally:
            session.close()

    def serve_again(self) -> None:
        self.serve = self.site.serve(*self._flags)
        self.weather.target = self.site.port

    # ── tokens and machines ─────────────────────────────────────────────────────────────────────────────────
    def mint(self, name: str, life_s: float = 3600, machines: int | str | None = None) -> str:
        extra = {} if machines is None else {"maxEnrollments": machines}
        made = self.call("token.create", name=name, durationMs=round(life_s * 1000), **extra)
        return str(made["token"])

    def age(self, name: str, left_s: float) -> None:
        """All of a token's life but `left_s` seconds is over: another process writes its record, as if it had been minted earlier."""
        repository = find(self.site.root)
        with closing(open_store(repository.data)) as store:
            token = read_token(store, name)
            assert token is not None
            ends_ms = time.time_ns() // 1_000_000 + round(left_s * 1000)
            begins_ms = token.created_ms + ends_ms - token.expires_ms
            older = attrs.evolve(token, created_ms=begins_ms, expires_ms=ends_ms)
            store.commit(Batch((token_record(older),)))

    def token_row(self, name: str) -> dict[str, Any]:
        (found,) = [row for row in self.call("token.list") if row["name"] == name]
        return dict(found)

    def worker_row(self, name: str) -> dict[str, Any]:
        (found,) = [row for row in self.call("worker.list", all=True)["workers"] if row["name"] == name]
        return dict(found)

    def machine(self, name: str) -> Path:
        return self.site.folder / f"machine-{name}"

    def copy_machine(self, name: str, copy: str) -> Path:
        """A directory with the same machine id, and nothing else of it."""
        found = self.machine(copy)
        found.mkdir(mode=0o700)
        shutil.copy(self.machine(name) / "machine-id", found / "machine-id")
        return found

    def connect(
        self,
        token: str,
        machine: Path | None,
        *flags: str,
        patch: str = "",
        enrolled: str = "",
        url: str = "",
    ) -> Running:
        """A worker process; `enrolled` waits until it is in under that name."""
        self._serial += 1
        file = self.site.folder / f"token-{self._serial}"
        file.write_text(token)
        argv = ["worker", "connect", url or self.weather.url, "--token-file", str(file), *flags]
        if machine is not None:
            argv += ["--cache-dir", str(machine)]
        if patch:
            running = Running(
                f"worker {self._serial}",
                [sys.executable, "-c", PATCHED.format(patch=patch), *argv],
                self.site.elsewhere,
                {**self.site.env, "PYTHONPATH": str(PROJECT)},
            )
            self.site._running.append(running)
        else:
            running = self.site.start(*argv, name=f"worker {self._serial}", cwd=self.site.elsewhere)
        if enrolled:
            running.wait_for(f'Enrolled as {enrolled}|workerId": "{enrolled}')
        return running

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────
    def gate(self, name: str, worker: str, **keys: Any) -> "Gate":
        """A run of one step on `worker` that waits for its gate."""
        return Gate(self, name, worker, keys)


class Gate:
    """A run with one step at its gate. `beginnings` counts how often the step really began."""

    def __init__(self, site: EnrollmentSite, name: str, worker: str, keys: dict[str, Any]) -> None:
        self._site = site
        self._began = site.site.folder / f"{name}.began"
        self._open = site.site.folder / f"{name}.open"
        text = (
            f"echo began $$ >> {self._began}; until test -e {self._open}; do sleep 0.05; done; echo through"
        )
        site.site.shell(name, text, target=worker, **keys)
        self.run = str(site.call("workflow.run", name=name)["runId"])
        until(self._began.exists, "the step began")

    @property
    def beginnings(self) -> int:
        return len(self._began.read_text().splitlines())

    def open(self) -> None:
        self._open.touch()

    def document(self) -> dict[str, Any]:
        return dict(self._site.call("run.get", runId=self.run))

    def status(self) -> str:
        return str(self.document()["status"])

    def ended(self, status: str) -> dict[str, Any]:
        until(lambda: self.status() not in ("running", "queued", "pending"), f"{self.run} ends")
        found = self.document()
        assert found["status"] == status, json.dumps(found, indent=1)
        return found

    def leases(self) -> list[dict[str, Any]]:
        """Every lease of the run, the ended ones too, oldest first."""
        predicate = (
            f'modelType == "swamp/step-lease" && attributes.runId == "{self.run}" && attributes.state != "x"'
        )
        found = self._site.call("data.query", predicate=predicate, select="attributes")["results"]
        return sorted(found, key=lambda one: str(one["createdAt"]))

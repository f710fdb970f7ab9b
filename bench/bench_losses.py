"""How soon what happened to a link or a worker is known and answered: real processes, real sockets, a proxy between them.

    python bench/bench_losses.py [--times N] [--json]

Counts and ratios of one run, none of which depends on how fast the machine is:

- a closed socket is noticed at once: in ms, and as a share of one heartbeat
- a silent one after three heartbeats: in heartbeats since the last frame that passed
- re-dispatch: ms between the instant the rules allow (`replaceAt`, or the proof of a reaped predecessor) and the grant of the next dispatch
- adoption: round trips between a socket that is open again and the verdict, counted over a link whose every direction takes 60 ms
- commits on a step's path: versions of its lease; 2 for a short step, 3 for one that is recorded as running
"""

import argparse
import json
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e_enrollment"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))

import weather
from e2e_site import Site, step, until

from swamp_proto.limits import Tempo

TEMPO = Tempo(4.0)
DELAY_S = 0.06  # each direction of the slow link
WAITS = "echo begun; until [ -e {go} ]; do sleep 0.02; done"


class SlowLink:
    """A proxy that delays what it carries; says when a connection was opened, and when each answer had passed."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.opened_s = time.monotonic()
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        while True:
            try:
                data = source.recv(65_536)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                time.sleep(DELAY_S)
                sink.sendall(data)
            except OSError:
                return

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                end.close() if end.fileno() < 0 else end.shutdown(socket.SHUT_RDWR)


def after(site: Site, name: str, pattern: str, what: Callable[[], Any]) -> float:
    """Seconds from an act to a new line of a process."""
    running = site.orchestrator if name == "serve" else site.workers[name]
    assert running is not None
    seen = len(running.lines)
    began = time.monotonic()
    what()
    running.wait_for(pattern, after=seen)
    return time.monotonic() - began


def ms(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() * 1000


def leases(site: Site, name: str) -> list[dict[str, Any]]:
    """Every lease of the workflow, as it is now, in order."""
    predicate = (
        f'modelType == "swamp/step-lease" && attributes.workflowName == "{name}" && attributes.state != ""'
    )
    return sorted(site.query(predicate, "attributes"), key=lambda one: int(one["fence"]))


def two(site: Site, name: str) -> list[dict[str, Any]] | None:
    found = leases(site, name)
    return found if len(found) == 2 else None


def notice(site: Site, link: weather.Weather, times: int) -> dict[str, float]:
    closed, silent = [], []
    for _ in range(times):
        closed.append(after(site, "serve", "worker disconnected worker=w1", link.cut))
        site.workers["w1"].wait_for("Enrolled as w1", after=len(site.workers["w1"].lines) - 1)
        time.sleep(1.0)
        began = len(site.workers["w1"].lines)
        silent.append(after(site, "serve", "worker disconnected worker=w1", link.silence))
        site.workers["w1"].wait_for("Enrolled as w1", after=began)
        time.sleep(1.0)
    return {
        "closed_socket_noticed_ms": 1000 * median(closed),
        "closed_socket_in_heartbeats": median(closed) / TEMPO.heartbeat_s,
        "silent_socket_in_heartbeats": median(silent) / TEMPO.heartbeat_s,
        "silent_socket_in_heartbeats_worst": max(silent) / TEMPO.heartbeat_s,
    }


def redispatch(site: Site, times: int) -> dict[str, float]:
    """A worker that stands still past the window; the other one takes over."""
    late, proved = [], []
    for number in range(times):
        name, go = f"moves{number}", site.folder / f"go-{number}"
        site.shell(name, WAITS.format(go=go), labels={"pool": "any"})
        watching = site.start("workflow", "run", name, "--json")
        first = json.loads(watching.wait_for('"step_started"').string)["worker"]
        site.workers[first].send(signal.SIGSTOP)
        old, new = until(lambda name=name: two(site, name), "the step is placed again")
        late.append(ms(new["createdAt"]) - ms(old["replaceAt"]))
        site.workers[first].send(signal.SIGCONT)
        go.touch()
        assert watching.end().code == 0
        until(lambda: all(w["status"] == "idle" for w in site.json("worker", "list")["workers"]), "idle")
        time.sleep(1.0)

        name, go = f"proved{number}", site.folder / f"go-proved-{number}"
        site.shell(name, WAITS.format(go=go), target="w2")
        watching = site.start("workflow", "run", name, "--json")
        watching.wait_for('"step_started"')
        site.workers["w2"].kill()
        site.worker("w2", "--label", "pool=any")
        old, new = until(lambda name=name: two(site, name), "the step is placed again")
        proved.append(ms(new["createdAt"]) - ms(old["endedAt"]))
        go.touch()
        assert watching.end().code == 0
    return {
        "redispatch_after_grace_ms": median(late),
        "redispatch_after_grace_ms_worst": max(late),
        "redispatch_after_proof_ms": median(proved),
        "redispatch_after_proof_ms_worst": max(proved),
    }


def adoption(site: Site, times: int) -> dict[str, float]:
    """A held step over a slow link: from the open socket (TCP) to the verdict, in round trips; the upgrade to a WebSocket is one."""
    slow = SlowLink(site.port)
    site.worker("far", "--label", "place=far", url=f"ws://localhost:{slow.port}")
    go = site.folder / "go-far"
    site.shell("held", WAITS.format(go=go), target="far")
    watching = site.start("workflow", "run", "held", "--json")
    watching.wait_for('"step_started"')
    trips = []
    for _ in range(times):
        time.sleep(1.0)
        after(site, "far", "Enrolled as far", slow.cut)
        trips.append((time.monotonic() - slow.opened_s) / (2 * DELAY_S))
    go.touch()
    assert watching.end().code == 0
    (lease,) = leases(site, "held")
    assert lease["state"] == "completed", "the step went on through every cut"
    return {"adoption_round_trips_with_upgrade": median(trips), "adoption_round_trips": median(trips) - 1}


def commits(site: Site) -> dict[str, float]:
    found = {}
    for name, run in (("short", "true"), ("long", "sleep 0.6")):
        site.model(f"{name}-step", run)
        steps = [
            step(f"s{n}", f"{name}-step", target="w1", **({"dependsOn": [f"s{n - 1}"]} if n else {}))
            for n in range(5)
        ]
        site.workflow(f"{name}-steps", *steps)
        site.ok("workflow", "run", f"{name}-steps")
        predicate = (
            f'modelType == "swamp/step-lease" && attributes.workflowName == "{name}-steps" && version > 0'
        )
        versions = site.query(predicate, "attributes.dispatchId")
        found[f"commits_on_path_{name}_step"] = len(versions) / len(set(versions))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Site(Path(folder)) as site:
        site.serve("--grace", f"{TEMPO.grace_s:g}s")
        link = weather.Weather(site.port)
        site.worker("w1", "--label", "pool=any", url=link.url)
        result |= commits(site)
        result |= notice(site, link, options.times)
        site.worker("w2", "--label", "pool=any")
        result |= redispatch(site, options.times)
        result |= adoption(site, options.times)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:40} {value:10.2f}")


if __name__ == "__main__":
    main()

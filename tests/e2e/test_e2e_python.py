"""Python model types with everything real: the very same locally and on a worker, whose machine has nothing but swamp."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_site import GRACE, Site, alive, ended, until

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("e2e_enrollment", "worker")]
from packing import wheel  # noqa: E402
from weather import Weather  # noqa: E402

INVENTORY = """
import hashlib
import os
from pathlib import Path

import attrs
import trio
from swamp_worker.sdk import Context, about, file, method, model, resource


@attrs.frozen
class Host:
    name: str
    port: int


@attrs.frozen
class Probe:
    names: list[str]


@attrs.frozen
class Dump:
    mib: int


@attrs.frozen
class Ask:
    folder: str


@attrs.frozen
class Hang:
    file: str


@attrs.frozen
class Tell:
    secret: str


@model("@e2e/inventory", version="2026.11.21.1")
class Inventory:
    '''Looks at hosts.'''

    host = resource(Host, "One host")
    listing = file("text/plain", "All of them")
    dump = file("application/octet-stream", "Bytes")

    @method
    async def probe(self, context: Context, arguments: Probe) -> None:
        '''Look.'''
        before = await context.read_resource("host")
        print("before:", None if before is None else before.version)
        for number, name in enumerate(arguments.names):
            await context.write_resource(self.host, Host(name, 1000 + number), name, tags={"os": "linux"})
        async with context.open_file(self.listing) as listing:
            await listing.write_line(context.extension_file("greeting.txt").read_text().strip())
            for name in arguments.names:
                await listing.write_line(name)
        rows = await context.query('name == "a"', select="attributes.port")
        context.log("found", rows=rows)

    @method
    async def tell(self, context: Context, arguments: Tell) -> None:
        '''Say a secret aloud.'''
        print("it is", arguments.secret)
        await context.write_resource(self.host, Host(arguments.secret, 1))

    @method
    async def big(self, context: Context, arguments: Dump) -> None:
        '''Many bytes.'''
        digest = hashlib.sha256()
        async with context.open_file(self.dump) as dump:
            for _ in range(arguments.mib):
                piece = os.urandom(1 << 20)
                digest.update(piece)
                await dump.write(piece)
            print("digest", digest.hexdigest())

    @method
    async def ask(self, context: Context, arguments: Ask) -> None:
        '''Ask and write when it is told to.'''
        folder = Path(arguments.folder)
        (folder / "begun").touch()
        for turn in ("1", "2"):
            while not (folder / turn).exists():
                await trio.sleep(0.02)
            await context.query('name == "a"')
            await context.write_resource(self.host, Host(turn, int(turn)))
            (folder / f"answered-{turn}").touch()

    @method
    async def hang(self, context: Context, arguments: Hang) -> None:
        '''Write, say so, and never end.'''
        await context.write_resource(self.host, Host("half", 1))
        Path(arguments.file).write_text(str(os.getpid()))
        await trio.sleep_forever()
"""
COUNTING = """
import attrs
from swamp_worker.sdk import Context, method, model


@attrs.frozen
class Count:
    by: int


@model("@e2e/counting", version="2026.11.21.1")
class Counting:
    '''Counts.'''

    @method
    def count(self, context: Context, arguments: Count) -> None:
        '''Count.'''
        from swamptest_numbers import answer

        print(answer * arguments.by)
"""
GREETING = "hosts of the house\n"
VOLATILE = {"id", "modelId", "modelName", "createdAt", "ownerDefinition", "contentPath"}
"""What differs between two runs of the same step on two models, wherever they ran."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("e2e")) as made:
        unit = made.root / "extensions" / "models" / "inventory"
        unit.mkdir(parents=True)
        (unit / "inventory.py").write_text(INVENTORY)
        (unit / "greeting.txt").write_text(GREETING)
        made.ok("vault", "put", "sandbox-vault", "door", "open-sesame-9000")
        made.serve(*GRACE)
        made.worker("w")
        yield made


def model(site: Site, name: str, method: str, **arguments: Any) -> None:
    flags = [f"--arg={method}.{key}={value}" for key, value in arguments.items()]
    site.ok("model", "create", "@e2e/inventory", name, *flags)


def flow(site: Site, name: str, model_name: str, method: str, **keys: Any) -> None:
    task = {"type": "model_method", "modelIdOrName": model_name, "methodName": method}
    site.workflow(name, {"name": "s", **keys, "task": task})


def test_the_same_records_locally_and_on_a_worker(site: Site) -> None:
    lines: dict[str, list[str]] = {}
    kept: dict[str, dict[str, Any]] = {}
    for where, keys in (("here", {}), ("there", {"target": "w"})):
        model(site, f"probe-{where}", "probe", names='["a","b"]')
        flow(site, f"probe-{where}", f"probe-{where}", "probe", **keys)
        events = site.ok("workflow", "run", f"probe-{where}", "--json").events
        end = ended(events, "s")
        assert end["status"] == "succeeded", end
        assert end["worker"] == (None if where == "here" else "w")
        lines[where] = [event["line"] for event in events if event["kind"] == "step_output"]
        log = site.json("data", "get", f"probe-{where}", "log")
        assert log["content"].splitlines() == lines[where]  # what a method printed is kept
        kept[where] = {}
        for name in ("a", "b", "listing"):
            got = site.json("data", "get", f"probe-{where}", name)
            for key in ("modelName", "workflow"):
                assert got["tags"].pop(key) == f"probe-{where}"
            kept[where][name] = {key: value for key, value in got.items() if key not in VOLATILE}
    assert lines["here"] == lines["there"]
    assert lines["here"][0] == "before: None"
    assert kept["here"] == kept["there"]
    assert kept["there"]["listing"]["content"] == GREETING + "a\nb\n"
    assert kept["there"]["a"]["content"] == {"name": "a", "port": 1000}
    site.workers["w"].wait_for("succeeded")
    assert site.workers["w"].said.count("succeeded") == 1


def test_the_code_is_shipped_once(site: Site) -> None:
    site.ok("workflow", "run", "probe-there")
    bundles = list((site.folder / "cache-w" / "bundles").iterdir())
    assert len(bundles) == 1
    assert (bundles[0] / "content" / "greeting.txt").read_text() == GREETING


def test_a_secret_reaches_the_method_and_nothing_else(site: Site) -> None:
    model(site, "tell", "tell", secret='${{ vault.get("sandbox-vault", "door") }}')
    flow(site, "tell", "tell", "tell", target="w")
    ran = site.ok("workflow", "run", "tell", "--json")
    assert "open-sesame-9000" not in ran.out
    assert [event["line"] for event in ran.events if event["kind"] == "step_output"] == ["it is ***"]
    assert site.json("data", "get", "tell", "host")["content"]["name"] == "***"


def test_a_big_file_goes_on_where_its_connection_was_cut(site: Site, tmp_path: Path) -> None:
    mib = 1 << 20
    weather = Weather(site.port, budgets=(3 * mib, 9 * mib, 5 * mib))
    try:
        site.worker("far", "--data-plane-url", f"http://localhost:{weather.port}")
        weather.budgets.insert(
            0, 10_000
        )  # the code of the type, or its upload: the first connection is cut early
        model(site, "big", "big", mib=24)
        flow(site, "big", "big", "big", target="far")
        events = site.ok("workflow", "run", "big", "--json").events
        assert ended(events, "s")["status"] == "succeeded", ended(events, "s")
        digest = next(e["line"] for e in events if e["kind"] == "step_output").split()[1]
        got = site.json("data", "get", "big", "dump", "--no-content")
        assert (got["checksum"], got["size"]) == (digest, 24 * mib)
        assert weather.budgets == [], "it was not cut"
        # What was still on its way when a connection was cut is sent again, and nothing else is.
        assert len(weather.offsets) > 3 and weather.offsets == sorted(weather.offsets), weather.offsets
        assert weather.offsets[0] == 0 < weather.offsets[-1], weather.offsets
    finally:
        weather.close()
        site.workers["far"].interrupt()


def test_a_call_survives_a_cut_link_and_a_restart_of_the_orchestrator(site: Site, tmp_path: Path) -> None:
    weather = Weather(site.port)
    try:
        worker = site.worker("steady", url=weather.url)
        model(site, "ask", "ask", folder=tmp_path)
        flow(site, "ask", "ask", "ask", target="steady")
        run = site.start("workflow", "run", "ask", "--detach", "--json")
        run_id = json.loads(run.end().out)["runId"]
        until((tmp_path / "begun").exists, "the method runs")
        weather.cut()
        (tmp_path / "1").touch()  # it asks with no link, or on the next one
        until((tmp_path / "answered-1").exists, "the call was answered")
        assert site.orchestrator is not None
        site.orchestrator.kill()
        (tmp_path / "2").touch()  # it asks while nobody is there
        site.serve(*GRACE, port=site.port)
        until((tmp_path / "answered-2").exists, "the call was answered by the next orchestrator")
        over = site.ok("run", "attach", run_id, "--json").events
        assert ended(over, "s")["status"] == "succeeded", ended(over, "s")
        assert ended(over, "s")["attempts"] == 1
        versions = site.json("data", "versions", "ask", "host")
        assert len(versions["versions"]) == 2, versions  # each write acted once
        assert "abandoned" not in worker.said
    finally:
        weather.close()
        site.workers["steady"].interrupt()


def test_dependencies_come_with_the_code_and_need_no_network(site: Site) -> None:
    unit = site.root / "extensions" / "models" / "counting"
    wheel(unit / "wheels", "swamptest_numbers", "1.0", "answer = 42")
    (unit / "requirements.txt").write_text("swamptest_numbers==1.0\n")
    (unit / "counting.py").write_text(COUNTING)
    site.ok("model", "create", "@e2e/counting", "count", "--arg=count.by=2")
    flow(site, "count", "count", "count", target="w")
    events = site.ok("workflow", "run", "count", "--json").events
    lines = [event["line"] for event in events if event["kind"] == "step_output"]
    assert lines[-1] == "84"
    assert any("Successfully installed swamptest_numbers-1.0" in line for line in lines), lines
    assert sum("installing the dependencies" in line for line in lines) == 1
    events = site.ok("workflow", "run", "count", "--json").events
    assert [event["line"] for event in events if event["kind"] == "step_output"] == ["84"]
    assert len(list((site.folder / "cache-w" / "environments").iterdir())) == 1


def test_a_worker_killed_after_a_write_fails_the_step_and_keeps_what_it_wrote(
    site: Site, tmp_path: Path
) -> None:
    worker = site.worker("doomed")
    file = tmp_path / "pid"
    model(site, "hang", "hang", file=file)
    flow(site, "hang", "hang", "hang", target="doomed", retry={"attempts": 3})
    run = site.start("workflow", "run", "hang", "--json")
    pid = int(until(lambda: file.exists() and file.read_text(), "the method has written"))
    worker.kill()
    # Its successor proves that nothing of it runs: nobody has to wait for the grace window.
    site.worker("doomed")
    over = run.end()
    assert over.code == 1, over
    end = ended(over.events, "s")
    assert end["status"] == "failed"
    assert "(write_then_drop)" in end["error"]
    assert end["attempts"] == 1
    assert site.json("data", "get", "hang", "host")["content"] == {"name": "half", "port": 1}
    until(lambda: not alive(pid), "the keeper has ended the method")
    predicate = 'modelType == "swamp/step-lease" && attributes.state == "failed" && attributes.reason == "write_then_drop"'
    assert site.query(predicate, "attributes.hasWrites").count(True) == 1

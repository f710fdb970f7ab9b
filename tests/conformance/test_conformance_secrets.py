"""A worker made of bytes that masks nothing: what it says of a secret is masked at the orchestrator's door, before anything is kept,
shown or decided on. Also by an orchestrator that did not make the dispatch itself.
"""

import base64
import json
import shutil
import sqlite3
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from wire import EVENT, FAILURE, REQUEST, RESPONSE, Wire, dial

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_site import DEADLINE_S, Ended, Running, Site

SECRET = 'Tr0ub4dor & "3+/%é'
LINE_MAX = 65_536
FORMS = {
    "plain": SECRET,
    "json": json.dumps(SECRET)[1:-1],
    "json, not ASCII": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "url": quote(SECRET, safe=""),
    "base64": base64.b64encode(SECRET.encode()).decode().rstrip("="),
}
REFERENCE = '${{ vault.get("sandbox-vault", "password") }}'


class Careless:
    """A worker's side of the conversation."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.instance, self.counter = str(uuid.uuid4()), 0
        self.machine = str(uuid.uuid4())
        self.dispatch: dict[str, Any] = {}
        self.number = 1
        self.wire: Wire

    @asynccontextmanager
    async def linked(self) -> AsyncIterator[None]:
        self.counter += 1
        held = {
            "dispatch": self.dispatch.get("dispatch"),
            "fence": self.dispatch.get("fence"),
            "phase": "running",
            "last_line": 0,
        }
        offer = {
            "protocol_version": 1, "swamp_version": "0.1.0", "token": self.site.tokens[self.name], "machine_id": self.machine,
            "boot_id": "7e57ab1e-0000-4000-8000-00000000b007", "instance": self.instance, "counter": self.counter, "host": "careless",
            "pid": 1, "platform": "linux", "arch": "x86_64", "labels": {}, "capacity": 1, "draining": False, "predecessor": None,
            "held": [held] if self.dispatch else [],
        }  # fmt: skip
        async with dial(self.site.port) as self.wire:
            await self.wire.send([REQUEST, 1, "worker.enroll", offer])
            kind, _, _, body = await self.wire.hear()
            assert kind == RESPONSE, body
            assert [one["verdict"] for one in body["verdicts"]] == (["keep"] if self.dispatch else [])
            yield

    async def request(self, name: str) -> Any:
        """The number of the orchestrator's next request of that name, and its body."""
        while True:
            _, number, said, body = await self.wire.hear_of(REQUEST)
            if said == name:
                return number, body
            if said == "link.heartbeat":
                await self.wire.send([RESPONSE, number, said, body])

    async def start(self) -> None:
        number, self.dispatch = await self.request("dispatch.start")
        await self.wire.send([RESPONSE, number, "dispatch.start", {"dispatch": self.dispatch["dispatch"]}])

    @property
    def named(self) -> dict[str, Any]:
        return {"dispatch": self.dispatch["dispatch"], "fence": self.dispatch["fence"]}

    async def lines(self, first: int, *lines: str) -> None:
        said = [{"stream": 1, "text": text} for text in lines]
        await self.wire.send([EVENT, "dispatch.log", {**self.named, "first": first, "blocks": said}])

    async def finish(self, *outputs: dict[str, Any], error: str | None = None, last_line: int = 0) -> None:
        body = {
            **self.named, "outcome": "failed" if error else "succeeded", "error": error, "outputs": list(outputs), "last_line": last_line,
            "lines_lost": 0, "left": 0, "started_ms": 1_767_225_600_000, "duration_ms": 12,
        }  # fmt: skip
        self.number += 1
        await self.wire.send([REQUEST, self.number, "dispatch.finished", body])
        answer = await self.wire.hear_of(RESPONSE)
        assert answer is not None, "the orchestrator closed"
        assert answer[3] == {"dispatch": self.dispatch["dispatch"], "accepted": True}


def output(content: Any, name: str = "result", **changes: Any) -> dict[str, Any]:
    data = json.dumps(content).encode()
    return {
        "spec": "result", "name": name, "kind": "resource", "content_type": "application/json", "tags": {}, "staged": None,
        "sha256": "0" * 64, "size": len(data), "content": data, **changes,
    }  # fmt: skip


def shown(site: Site, *said: str) -> list[str]:
    """Every place in which a form of the secret can be read."""
    forms = {name: form.encode() for name, form in FORMS.items()}
    found = [
        f"{path.relative_to(site.root)}: {name}"
        for path in sorted(site.root.rglob("*"))
        if path.is_file()
        for name, form in forms.items()
        if form in path.read_bytes()
    ]
    for path in (site.root / ".swamp" / "data").glob("*.db"):
        with sqlite3.connect(path) as store:
            for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                rows = repr(store.execute(f'SELECT * FROM "{table}"').fetchall()).encode()
                found += [f"table {table}: {name}" for name, form in forms.items() if form in rows]
        store.close()
    assert site.orchestrator is not None
    for text in (*said, site.orchestrator.said):
        found += [f"output: {name}" for name, form in FORMS.items() if form in text]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("careless")) as made:
        made.ok("vault", "put", "sandbox-vault", "password", stdin=SECRET)
        made.serve()
        for name in ("liar", "keeper", "orphan"):
            made.token(name)
        yield made


async def run(site: Site, name: str, behave: Callable[[Careless], Any]) -> tuple[Running, Ended]:
    """Run a workflow whose step uses the secret, on a worker that behaves like that."""
    site.shell(name, 'echo "$P" $Q', model={"env": {"P": REFERENCE}}, target="liar")
    client = site.start("workflow", "run", name, "--json")
    liar = Careless(site, "liar")
    liar.machine = "f3b1c2d4-e5f6-4789-8abc-def012345678"
    with trio.fail_after(DEADLINE_S):
        async with liar.linked():
            await behave(liar)
        ended = await trio.to_thread.run_sync(client.end)
    return client, ended


async def test_lines_results_errors_and_tags(site: Site) -> None:
    long = "x" * (LINE_MAX - 7) + SECRET  # cut in the middle of it, at a full line

    async def behave(liar: Careless) -> None:
        await liar.start()
        assert SECRET in liar.dispatch["secrets"]
        first, *more = (f"{name}: <{form}>" for name, form in FORMS.items())
        await liar.lines(1, first, "\n".join(more))  # a block of one line, and one of all others
        await liar.lines(6, long[:LINE_MAX])
        await liar.lines(7, long[LINE_MAX:] + " end of it")
        result = {
            "command": "x", "exitCode": 3, "stdout": f"it is {SECRET}\n{FORMS['base64']}", "stderr": FORMS["json"], "durationMs": 1,
            "executedAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        await liar.finish(
            output(result, tags={"note": f"made with {SECRET}"}),
            error=f"could not log in with {SECRET}",
            last_line=7,
        )

    _, done = await run(site, "careless", behave)
    assert done.code == 1
    said = [event["line"] for event in done.events if event["kind"] == "step_output"]
    assert said[:5] == [f"{name}: <***>" for name in FORMS]
    assert (said[5] + said[6]).lstrip("x") == "*** end of it", [line[-40:] for line in said[5:]]
    assert "could not log in with ***" in done.out
    (record,) = site.query('modelName == "careless" && specName == "result"', "attributes")
    assert record["stdout"] == "it is ***\n***" and record["stderr"] == "***" and record["exitCode"] == 3
    documents = [
        site.ok("workflow", "history", "get", "careless", "--json").out,
        site.ok("data", "get", "careless", "result", "--json").out,
        site.ok("data", "export", "careless", "log").out,
        site.ok("data", "query", "version > 0", "--json").out,
        site.ok("run", "doctor", "--json").out,
    ]
    assert shown(site, done.out, done.err, *documents) == []


async def test_a_secret_in_a_name_is_refused(site: Site) -> None:
    async def behave(liar: Careless) -> None:
        await liar.start()
        await liar.finish(output({}, name=f"result {SECRET}"))

    _, done = await run(site, "named", behave)
    assert done.code == 1
    assert "1 output(s) with a secret in their name were refused" in done.out
    assert shown(site, done.out, done.err) == []


async def test_a_refusal_that_quotes_its_dispatch(site: Site) -> None:
    async def behave(liar: Careless) -> None:
        number, body = await liar.request("dispatch.start")
        told = {
            "code": "too_large",
            "message": f"can not hold {body['arguments']} {SECRET}",
            "retry_after_s": None,
        }
        await liar.wire.send([FAILURE, number, "dispatch.start", told])
        await liar.wire.send([REQUEST, 99, "link.heartbeat", {"number": 1}])
        await liar.wire.hear_of(RESPONSE)

    _, done = await run(site, "quoted", behave)
    assert done.code == 1
    assert "can not hold" in done.out
    assert shown(site, done.out, done.err) == []


@pytest.mark.parametrize("readable", [True, False], ids=["the vault is there", "the vault is gone"])
async def test_an_orchestrator_that_did_not_make_the_dispatch(site: Site, readable: bool) -> None:
    """It reads the secrets again; what can not be read is said."""
    name = "keeper" if readable else "orphan"
    site.shell(name, "echo $P", model={"env": {"P": REFERENCE}}, target=name)
    held = Careless(site, name)
    with trio.fail_after(3 * DEADLINE_S):
        started = await trio.to_thread.run_sync(lambda: site.json("workflow", "run", name, "--detach"))
        async with held.linked():
            await held.start()
        assert site.orchestrator is not None
        await trio.to_thread.run_sync(site.orchestrator.kill)
        vault = site.root / ".swamp" / "secrets"
        if not readable:
            shutil.move(vault, site.elsewhere / "secrets")
        await trio.to_thread.run_sync(lambda: site.serve(port=site.port))
        text = SECRET if readable else "what the worker had masked: ***"
        async with held.linked():
            await held.lines(1, f"it is {text}")
            await held.finish(output({"stdout": text}), error=f"not with {text}", last_line=1)
        attached = await trio.to_thread.run_sync(
            lambda: site.swamp("run", "attach", started["runId"], "--json")
        )
    warned = [event["message"] for event in attached.events if event["kind"] == "warning"]
    if readable:
        assert "not with ***" in attached.out
        assert not any("masked by its executor only" in text for text in warned), warned
    else:
        shutil.move(site.elsewhere / "secrets", vault)
        assert any("'password'" in text and "masked by its executor only" in text for text in warned), (
            attached.out
        )
    assert shown(site, attached.out, attached.err) == []
    assert site.orchestrator.process.poll() is None

"""`http/request`, `file/write`, `file/read` in real runner processes, against a real server on loopback."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
import pytest
from conftest import Lines, Site

from swamp_proto.limits import FILE_READ_KEPT_MAX, HTTP_BODY_KEPT_MAX
from swamp_proto.messages.dispatch import Finished, Outcome, Program
from swamp_worker.models.built_in import BUILT_IN


class Answers(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        status, kind, data = (
            200,
            "application/json",
            json.dumps({"method": self.command, "body": body.decode()}).encode(),
        )
        if self.path == "/missing":
            status, kind, data = 404, "text/plain", b"no such thing"
        elif self.path == "/large":
            kind, data = "text/plain; charset=utf-8", b"x" * (HTTP_BODY_KEPT_MAX + 10)
        elif self.path == "/bytes":
            kind, data = "image/png", bytes(range(256))
        elif self.path == "/moved":
            status, kind, data = 302, "text/plain", b""
        elif self.path == "/secret":
            kind, data = "text/plain", f"you sent {self.headers['authorization']}".encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        if status == 302:
            self.send_header("location", "/")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815 - what the server looks for

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def run(
    site: Site, kind: str, method: str, secrets: tuple[str, ...] = (), /, **arguments: Any
) -> tuple[Finished, Lines]:
    model_type = BUILT_IN[kind]
    site.access.outputs = model_type.outputs
    dispatch = site.dispatch("", method, arguments=arguments, model_type=kind, secrets=secrets)
    program = Program("", model_type.entry, (), ())
    from attrs import evolve

    found = await site.execute(evolve(dispatch, program=program))
    for output in found[0].outputs:
        schema = model_type.outputs[output.spec].schema
        jsonschema.validate(json.loads(output.content), schema)
    return found


def result(finished: Finished) -> dict[str, Any]:
    (output,) = finished.outputs
    found: dict[str, Any] = json.loads(output.content)
    return found


async def test_a_request_and_what_came_back(site: Site, address: str) -> None:
    finished, lines = await run(site, "http/request", "request", url=address + "/moved")
    found = result(finished)
    assert (found["status"], found["url"], found["json"]) == (
        200,
        address + "/",
        {"method": "GET", "body": ""},
    )
    assert lines.text.startswith(f"GET {address}/ → 200, ")

    finished, _ = await run(site, "http/request", "request", url=address, method="POST", json={"a": 1})
    assert result(finished)["json"] == {"method": "POST", "body": '{"a": 1}'}

    finished, _ = await run(site, "http/request", "request", url=address + "/large")
    found = result(finished)
    assert (found["size"], len(found["text"]), found["truncated"]) == (
        HTTP_BODY_KEPT_MAX + 10,
        HTTP_BODY_KEPT_MAX,
        True,
    )

    finished, _ = await run(site, "http/request", "request", url=address + "/bytes", saveAs="picture")
    assert (result(finished)["file"], result(finished)["size"]) == ("picture", 256)
    (record,) = site.access.records
    assert (record.name, record.content_type, record.content) == ("picture", "image/png", bytes(range(256)))

    headers = {"Authorization": "Bearer top-secret"}
    finished, lines = await run(
        site, "http/request", "request", ("top-secret",), url=address + "/secret", headers=headers
    )
    assert result(finished)["text"] == "you sent Bearer ***"


async def test_a_request_that_does_not_work_says_why_and_keeps_what_came(site: Site, address: str) -> None:
    finished, _ = await run(site, "http/request", "request", url=address + "/missing")
    assert finished.outcome is Outcome.FAILED
    assert finished.error is not None
    assert finished.error.startswith(f"GET {address}/missing answered 404")
    assert result(finished)["text"] == "no such thing"

    finished, _ = await run(site, "http/request", "request", url=address + "/missing", expectedStatuses=[404])
    assert finished.error is None

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        finished, _ = await run(site, "http/request", "request", url=url)
        assert finished.error is not None
        assert finished.error.startswith(f"GET {url}: ")
        nobody.listen()
        finished, _ = await run(site, "http/request", "request", url=url, timeout=0.2)
        assert finished.error is not None
        assert finished.error.startswith(f"GET {url}: no answer within 0.2 s")
    for url in ("ftp://127.0.0.1/", "/etc/passwd"):
        finished, _ = await run(site, "http/request", "request", url=url)
        assert finished.error is not None
        assert finished.error.startswith(f"{url} is no http or https address")


async def test_files_are_written_and_read_as_records(site: Site) -> None:
    finished, _ = await run(site, "file/write", "write", name="notes", content="größe\n")
    assert (result(finished)["version"], result(finished)["size"]) == (1, 8)
    assert site.access.records[0].content_type == "text/plain"
    encoded = base64.b64encode(bytes(range(256))).decode()
    finished, _ = await run(site, "file/write", "write", name="raw", base64=encoded, contentType="image/x")
    assert site.access.records[1].content == bytes(range(256))

    finished, _ = await run(site, "file/read", "read", name="notes")
    found = result(finished)
    assert (found["text"], found["contentType"], found["truncated"]) == ("größe\n", "text/plain", False)
    finished, _ = await run(site, "file/read", "read", name="raw")
    assert base64.b64decode(result(finished)["base64"]) == bytes(range(256))

    site.access.put("large", b"a" * (FILE_READ_KEPT_MAX - 1) + "ö".encode() * 3)
    finished, _ = await run(site, "file/read", "read", name="large")
    assert result(finished)["truncated"] is True
    assert result(finished)["text"] == "a" * (FILE_READ_KEPT_MAX - 1)
    for wrong, said in (
        ({"name": "nothing"}, "this model has no artefact 'nothing'"),
        ({"name": "notes", "version": 9}, "this model has no artefact 'notes' in version 9"),
        ({"name": "x", "model": "stranger"}, "this step may not read the model 'stranger'"),
    ):
        finished, _ = await run(site, "file/read", "read", **wrong)
        assert finished.error is not None
        assert finished.error.startswith(said)
    finished, _ = await run(site, "file/write", "write", name="x")
    assert finished.error is not None
    assert finished.error.startswith("give `content` or `base64`, and not both")

"""`http/request`: one HTTP request, and what came back as a resource; a large body as a file artefact.

Written with the SDK, as an extension would be. httpx is imported by the method and not by this module: the command line describes
types with it.
"""

import contextlib
import json
import time
from typing import Any, Final, Literal

import attrs

from swamp_proto.limits import HTTP_BODY_KEPT_MAX
from swamp_worker.sdk import PlainContext, StepFailed, about, file, method, model, resource

_TEXTUAL: Final = (
    "text/",
    "application/json",
    "application/xml",
    "application/yaml",
    "application/x-www-form-urlencoded",
)


@attrs.frozen
class Request:
    """What is asked."""

    url: str = attrs.field(metadata=about("Where: an http or https address", minLength=1))
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = attrs.field(
        default="GET", metadata=about("HTTP method")
    )
    headers: dict[str, str] = attrs.field(factory=dict, metadata=about("Request headers"))
    body: str | None = attrs.field(default=None, metadata=about("Request body, as text"))
    json: Any = attrs.field(default=None, metadata=about("Request body, sent as JSON; instead of `body`"))
    timeout: float = attrs.field(
        default=30.0, metadata=about("Seconds without an answer until it fails", exclusiveMinimum=0)
    )
    expected_statuses: list[int] = attrs.field(
        factory=list,
        metadata=about("Statuses that are a success (default: 200 to 299)", name="expectedStatuses"),
    )
    follow_redirects: bool = attrs.field(
        default=True, metadata=about("Whether redirects are followed", name="followRedirects")
    )
    save_as: str = attrs.field(
        default="",
        metadata=about("Keep the body, of any size, as the file artefact of this name", name="saveAs"),
    )


@attrs.frozen
class Response:
    """What came back."""

    url: str = attrs.field(metadata=about("Where the answer came from, after redirects"))
    method: str
    status: int
    headers: dict[str, str] = attrs.field(metadata=about("By lower-case name"))
    size: int = attrs.field(metadata=about("Bytes of the body", minimum=0))
    duration_ms: int = attrs.field(metadata=about(name="durationMs", minimum=0))
    text: str | None = attrs.field(default=None, metadata=about("The body, when it is text"))
    json: Any = attrs.field(default=None, metadata=about("The body, when it is JSON"))
    truncated: bool = attrs.field(default=False, metadata=about("Whether `text` is only the beginning"))
    file: str | None = attrs.field(default=None, metadata=about("Name of the artefact that holds the body"))


@model("http/request", version="2026.02.09.1")
class HttpRequest:
    """Send an HTTP request"""

    response = resource(Response, "Status, headers and body of the answer")
    body = file("application/octet-stream", "The body of the answer")

    @method(returns=response)
    def request(self, context: PlainContext[None], arguments: Request) -> Response:
        """Send the request and keep what comes back; a status that was not expected fails the step"""
        if arguments.body is not None and arguments.json is not None:
            raise StepFailed("give `body` or `json`, not both")
        if not arguments.url.lower().startswith(("http://", "https://")):
            raise StepFailed(f"{arguments.url} is no http or https address")
        found = _send(self, context, arguments)
        context.log(
            f"{found.method} {found.url} → {found.status}, {found.size} bytes in {found.duration_ms} ms"
        )
        expected = (
            found.status in arguments.expected_statuses
            if arguments.expected_statuses
            else 200 <= found.status < 300
        )
        if not expected:
            raise StepFailed(f"{found.method} {found.url} answered {found.status}", found)
        return found


def _send(own: HttpRequest, context: PlainContext[None], arguments: Request) -> Response:
    import httpx

    content = (
        json.dumps(arguments.json).encode() if arguments.json is not None else (arguments.body or "").encode()
    )
    headers = httpx.Headers(arguments.headers)
    if arguments.json is not None:
        headers.setdefault("content-type", "application/json")
    began = time.perf_counter()
    try:
        with (
            httpx.Client(timeout=arguments.timeout, follow_redirects=arguments.follow_redirects) as client,
            client.stream(
                arguments.method, arguments.url, headers=headers, content=content or None
            ) as answer,
        ):
            kept, size = _take(own, context, arguments, answer)
            duration_ms = int((time.perf_counter() - began) * 1000)
    except httpx.TimeoutException:
        raise StepFailed(
            f"{arguments.method} {arguments.url}: no answer within {arguments.timeout:g} s"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = str(error) or type(error).__name__
        raise StepFailed(f"{arguments.method} {arguments.url}: {problem}") from None
    kind = answer.headers.get("content-type", "").lower()
    text: str | None = None
    parsed: Any = None
    if arguments.save_as == "" and (
        kind.startswith(_TEXTUAL) or kind.partition(";")[0].strip().endswith(("+json", "+xml"))
    ):
        text = kept.decode(answer.encoding or "utf-8", "replace")
        if "json" in kind and size == len(kept):
            with contextlib.suppress(ValueError):  # it says JSON and may be none: then it is kept as text
                parsed, text = json.loads(text), None
    return Response(
        url=str(answer.url),
        method=arguments.method,
        status=answer.status_code,
        headers={name.lower(): value for name, value in answer.headers.items()},
        size=size,
        duration_ms=duration_ms,
        text=text,
        json=parsed,
        truncated=text is not None and size > len(kept),
        file=arguments.save_as or None,
    )


def _take(
    own: HttpRequest, context: PlainContext[None], arguments: Request, answer: Any
) -> tuple[bytes, int]:
    """The beginning of the body, and the size of all of it; the whole goes to the artefact when one is asked for."""
    kept, size = bytearray(), 0
    if arguments.save_as:
        kind = answer.headers.get("content-type", "").partition(";")[0].strip() or "application/octet-stream"
        with context.open_file(own.body, arguments.save_as, content_type=kind) as into:
            for chunk in answer.iter_bytes():
                into.write(chunk)
                size += len(chunk)
        return b"", size
    for chunk in answer.iter_bytes():
        kept += chunk[: HTTP_BODY_KEPT_MAX - len(kept)]
        size += len(chunk)
    return bytes(kept), size

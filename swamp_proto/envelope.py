"""Frames: the five shapes that travel on a control link.

On the wire each is a msgpack array whose first item is its kind:

    [0, id, name, body]            Request    answered by exactly one Response or Failure with the same id
    [1, id, name, body]            Response   name is the request's
    [2, id, name, failure]         Failure    name is the request's; failure is {code, message, retry_after_s}
    [3, name, body]                Event      no answer
    [4, id]                        Cancel     the sender of request `id` no longer waits

Ids are chosen by the sender of the request, positive, and grow per link; the two directions count apart. A
body is a map from field name to value in the field order of its class.
"""

from typing import Any

import attrs

from swamp_proto.errors import RefusalCode


@attrs.frozen
class FailureBody:
    code: RefusalCode
    message: str
    retry_after_s: float | None


@attrs.frozen
class Request:
    id: int
    body: Any  # an instance of a request class of `messages.RULES`


@attrs.frozen
class Response:
    id: int
    body: Any  # the reply class that the rule of the request names
    name: str  # wire name of the request


@attrs.frozen
class Failure:
    id: int
    name: str
    failure: FailureBody


@attrs.frozen
class Event:
    body: Any


@attrs.frozen
class Cancel:
    id: int


Frame = Request | Response | Failure | Event | Cancel

"""What a running step may ask of its orchestrator: the port between the executor and whoever owns the data.

On a worker it is the control link and the data plane, on the loopback a call in the same process; both end at the
same desk, with the same checks. Rules that hold here:

- `number` is the dispatch's own count (from 1, never reused); whoever implements this repeats a request with its
  number as often as it must, and it acts once.
- A refusal is `CallRefused`. `LEASE_ENDED` is final: the step is over.
- It returns only what is durable.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from swamp_proto.messages.capability import Verb, Written
from swamp_proto.messages.dispatch import Dispatch, Output

Sent = Callable[[int, int], object]
"""Hears how many bytes are safe, and of how many."""


class Access(Protocol):
    async def call(
        self, dispatch: Dispatch, number: int, verb: Verb, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A capability; what it gives as `swamp_proto.capabilities` says. Raises `CallRefused`."""
        ...

    async def write(self, dispatch: Dispatch, number: int, records: tuple[Output, ...]) -> Written:
        """Records that commit together. Content over `INLINE_WRITE_MAX` is uploaded before (`Output.staged`).
        Raises `CallRefused`.
        """
        ...

    async def upload(
        self, dispatch: Dispatch, number: int, file: Path, sha256: str = "", sent: Sent | None = None
    ) -> tuple[str, int]:
        """The whole of `file`, resumed where it was cut; a write or an output at the end names it by `number`, with what this returns: the
        sha256 (computed on the way, when it is not said) and the size. Raises `CallRefused`, and OSError when the file can not be read.
        """
        ...

    async def download(self, dispatch: Dispatch, record: str, into: Path) -> None:
        """The content of a record version as a new file, verified. Raises `CallRefused`, and OSError."""
        ...

    async def fetch_bundle(self, dispatch: Dispatch, sha256: str, into: Path) -> None:
        """A bundle as a new file, unverified: whoever unpacks it checks. Raises `CallRefused`, and OSError."""
        ...

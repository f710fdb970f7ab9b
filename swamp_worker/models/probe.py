"""`swamp/probe`: what `swamp worker verify` runs on a worker in Python. Its definitions exist for one verification only.

Written with the SDK, as an extension would be, so that it can travel as a bundle too. Each seam has its own bound, and what is wrong
with one does not keep the others from being tried.
"""

import hashlib
import os
from collections.abc import Awaitable, Callable

import attrs
import trio

from swamp_worker.sdk import Context, SdkError, file, method, model, resource

SEAM_S = 8.0  # for one seam
ARTEFACT_BYTES = 1_500_000  # more than a write holds: it is uploaded


@attrs.frozen
class Scratch:
    nonce: str


@attrs.frozen
class Findings:
    """What was wrong with each seam; empty: nothing."""

    problems: dict[str, str]


@model("swamp/probe", version="2026.11.21.1")
class Probe:
    """Exercises the seams of a worker"""

    scratch = resource(Scratch, "Written, read back, deleted", lifetime="1h", keep=1)
    artefact = file("application/octet-stream", "Uploaded, downloaded, deleted", lifetime="1h", keep=1)
    findings = resource(Findings, "What was wrong", lifetime="1h", keep=1)

    @method(returns=findings)
    async def ask(self, context: Context[None]) -> Findings:
        """Ask the orchestrator for everything that a step may ask for."""
        seams: dict[str, Callable[[Context[None]], Awaitable[str]]] = {
            "capability call": self._call,
            "write and read back": self._write,
            "upload and download": self._move,
        }
        problems: dict[str, str] = {}

        async def tried(name: str) -> None:
            problems[name] = await self._tried(seams[name], context)

        async with trio.open_nursery() as nursery:
            for name in seams:
                nursery.start_soon(tried, name)
        return Findings(problems)

    @method(returns=findings)
    async def show(self, context: Context[None]) -> Findings:
        """Show that the files of the bundle are there."""
        await trio.lowlevel.checkpoint()
        return Findings({"nonce": context.extension_file("nonce.txt").read_text()})

    async def _tried(self, seam: Callable[[Context[None]], Awaitable[str]], context: Context[None]) -> str:
        problem = f"no answer within {SEAM_S:g} s"
        with trio.move_on_after(SEAM_S):
            try:
                problem = await seam(context)
            except (SdkError, OSError) as error:
                problem = str(error)
        return problem

    async def _call(self, context: Context[None]) -> str:
        rows = await context.query('name == "no such record"')
        return "" if rows == [] else "a query for nothing found something"

    async def _write(self, context: Context[None]) -> str:
        nonce = os.urandom(16).hex()
        await context.write_resource(self.scratch, Scratch(nonce))
        found = await context.read_resource("scratch")
        if found is None or found.json() != {"nonce": nonce}:
            return "what was read back is not what was written"
        return "" if await context.delete_resource("scratch") else "the record could not be deleted"

    async def _move(self, context: Context[None]) -> str:
        content = os.urandom(ARTEFACT_BYTES)
        async with context.open_file(self.artefact) as target:
            await target.write(content)
        found = await context.read_file("artefact")
        if (
            found is None
            or hashlib.sha256(found.path.read_bytes()).digest() != hashlib.sha256(content).digest()
        ):
            return "what was downloaded is not what was uploaded"
        return "" if await context.delete_resource("artefact") else "the artefact could not be deleted"

"""The extension that a runner rehearses with, before it has a step: loaded like an author's, and forgotten (`main.rehearse`)."""

import trio

from swamp_worker.sdk import Context, method, model


@model("swamp/practice", version="2026.1.1")
class Practice:
    @method
    async def act(self, context: Context[None]) -> None:
        await trio.lowlevel.checkpoint()

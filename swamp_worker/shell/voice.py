"""What a worker says while it works: one line per happening, for a person or, with `--json`, one object per
line.

The words are a contract (docs/reference/worker-connect.md). Standard output carries them in both forms;
warnings for a person go to standard error. It formats and writes; it decides nothing.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from swamp_proto.errors import RefusalCode
from swamp_proto.messages.dispatch import Dispatch, Finished, Outcome
from swamp_proto.version import SWAMP_VERSION

TROUBLE: Final[dict[RefusalCode, tuple[str, str, str]]] = {
    RefusalCode.PROTOCOL_MISMATCH: (
        "protocol_mismatch",
        "Worker and orchestrator are on different Swamp versions",
        f"Upgrade both to the same version (this worker is {SWAMP_VERSION})",
    ),
    RefusalCode.ALREADY_CONNECTED: (
        "already_connected",
        "A worker with this token is already connected",
        "Check for duplicate worker processes; revoke and re-create the token",
    ),
    RefusalCode.ALREADY_BOUND: (
        "already bound to another machine",
        "Token was enrolled by a different machine identity",
        "Use a new token, or restore the original --cache-dir",
    ),
    RefusalCode.EXPIRED: (
        "expired",
        "Token lifetime has elapsed",
        "Create a new token with swamp worker token create",
    ),
    RefusalCode.REVOKED: ("revoked", "Token was manually revoked", "Create a new token"),
    RefusalCode.DOES_NOT_MATCH: (
        "does not match",
        "Token secret doesn't match the stored hash",
        "Check for typos in the token value; create a new token if needed",
    ),
    RefusalCode.INVALID_TOKEN: (
        "invalid_token",
        "The token does not have the form <name>.<secret>",
        "Pass the whole line that swamp worker token create printed",
    ),
}
"""Keyword, cause and fix of every refusal that stops a worker for good."""


class Voice:
    """Writes to `out` and `err`, flushed line by line; to `log` with the time before each line, whatever `quiet` says. `level` is
    the least that is said: `debug`, `info`, `warn` or `error`."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        log: TextIO | None = None,
        level: str = "info",
    ) -> None:
        self._json = as_json
        self._quiet = quiet
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._log = log
        self._informs = level in ("debug", "info")
        self._warns = self._informs or level == "warn"

    # ── the link ────────────────────────────────────────────────────────────────────────────────────────────
    def connecting(self, url: str, attempt: int) -> None:
        self._say(f"Connecting to {url} (attempt {attempt})...", "connecting", url=url, attempt=attempt)

    def enrolled(self, worker: str, reconnect: bool, slots: int) -> None:
        self._say(f"✓ Enrolled as {worker}", "enrolled", workerId=worker, reconnect=reconnect, capacity=slots)
        self._say(f"Waiting for work ({slots} slot{'s' if slots != 1 else ''})", "waiting", capacity=slots)

    def disconnected(self, reason: str) -> None:
        self._say(f"Disconnected: {reason}", "disconnected", reason=reason)

    def retrying(self, delay_s: float) -> None:
        self._say(f"Reconnecting in {delay_s:.1f}s", "retrying", delayMs=round(delay_s * 1000))

    def refreshed(self, until: str) -> None:
        self._say(f"Session credential refreshed, valid until {until}", "session_refreshed", expiresAt=until)

    def refused(self, code: RefusalCode, message: str) -> None:
        """A permanent one: keyword, cause and fix."""
        keyword, cause, fix = TROUBLE[code]
        said = message if keyword in message else f"{keyword}: {message}"
        self._record(f"ERROR {said}")
        if self._json:
            self._write(self._err, json.dumps({"error": said, "code": code.value, "hint": fix}))
        else:
            self._write(self._err, f"Error: {said}\nCause: {cause}\nFix:   {fix}")

    # ── dispatches ──────────────────────────────────────────────────────────────────────────────────────────
    def dispatch_started(self, dispatch: Dispatch) -> None:
        self._say(
            f"▶ Dispatch {_label(dispatch)} ({dispatch.place.workflow} › {dispatch.place.step})",
            "dispatch_started",
            dispatchId=dispatch.dispatch,
            modelType=dispatch.model_type,
            methodName=dispatch.method,
            workflowName=dispatch.place.workflow,
            stepName=dispatch.place.step,
        )

    def dispatch_finished(self, dispatch: Dispatch, finished: Finished) -> None:
        mark = "✓" if finished.outcome is Outcome.SUCCEEDED else "✗"
        word = finished.outcome.value.replace("_", " ")
        cause = f" — {finished.error}" if finished.error else ""
        extra = {"error": finished.error} if finished.error else {}
        self._say(
            f"{mark} Dispatch {_label(dispatch)} {word} in {finished.duration_ms}ms{cause}",
            "dispatch_finished",
            dispatchId=dispatch.dispatch,
            modelType=dispatch.model_type,
            methodName=dispatch.method,
            status=finished.outcome.value,
            durationMs=finished.duration_ms,
            **extra,
        )

    # ── leaving ─────────────────────────────────────────────────────────────────────────────────────────────
    def draining(self, reason: str) -> None:
        self._say(f"Draining ({reason}) — finishing in-flight work...", "draining", reason=reason)

    def undrained(self) -> None:
        self._say("Taking new work again", "undrained")

    def drain_complete(self) -> None:
        self._say("Drain complete — disconnecting", "drain_complete")

    def stopped(self, reason: str) -> None:
        self._say(f"Worker stopped: {reason}", "stopped", reason=reason)

    # ── the rest ────────────────────────────────────────────────────────────────────────────────────────────
    def notice(self, level: str, message: str) -> None:
        """Something the orchestrator, or this worker itself, wants its operator to know."""
        if not {"warn": self._warns, "error": True}.get(level, self._informs):
            return
        self._record(f"{level.upper()} {message}" if level != "info" else message)
        if self._json:
            self._write(self._out, json.dumps({"kind": "notice", "level": level, "message": message}))
        elif level == "warn":
            self._write(self._err, f"Warning: {message}")
        elif not self._quiet:
            self._write(self._out, message)

    def warn(self, message: str) -> None:
        self.notice("warn", message)

    def _say(self, text: str, kind: str, **fields: Any) -> None:
        if not self._informs:
            return
        self._record(text)
        if self._json:
            self._write(self._out, json.dumps({"kind": kind, **fields}, ensure_ascii=False))
        elif not self._quiet:
            self._write(self._out, text)

    def _record(self, text: str) -> None:
        if self._log is not None:
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._write(self._log, f"{at} {text}")

    @staticmethod
    def _write(to: TextIO, text: str) -> None:
        try:
            to.write(text + "\n")
            to.flush()
        except (OSError, ValueError):  # a reader that went away must not end the worker
            pass


def _label(dispatch: Dispatch) -> str:
    return f"{dispatch.dispatch[:8]}: {dispatch.model_type}.{dispatch.method}"

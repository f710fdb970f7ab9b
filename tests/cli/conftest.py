"""Driving the command line in process, with captured streams."""

import io
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cli_twins import Ended, FakeSession

from swamp_orch.cli import invocation as invocation_module
from swamp_orch.cli.main import run


class _Stream(io.StringIO):
    """A text stream with bytes below it, as the real ones are."""

    def __init__(self, tty: bool = False, text: str = "") -> None:
        super().__init__(text)
        self.buffer = io.BytesIO()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


Run = Callable[..., Ended]


@pytest.fixture
def swamp(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Run:
    """`swamp("worker", "list", answers={...})` -> what happened. `tty` makes all three streams terminals."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "SWAMP_REPO_DIR",
        "SWAMP_SERVE_URL",
        "SWAMP_SERVER_TOKEN",
        "SWAMP_LOG_LEVEL",
        "SWAMP_CA_CERT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def go(
        *argv: str,
        answers: Mapping[str, Any] | None = None,
        events: Mapping[str, list[dict[str, Any]]] | None = None,
        stdin: str = "",
        tty: bool = False,
        session: Any = None,
    ) -> Ended:
        fake = session if session is not None else FakeSession(answers or {}, events)
        out, err = _Stream(tty), _Stream(tty)
        with monkeypatch.context() as patch:
            if answers is not None or events is not None or session is not None:
                patch.setattr(invocation_module.Invocation, "session", lambda self: fake)
            patch.setattr(sys, "stdin", _Stream(tty, stdin))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = run(argv)
        text = out.getvalue() + out.buffer.getvalue().decode(errors="replace")
        return Ended(code, text, err.getvalue(), fake)

    return go

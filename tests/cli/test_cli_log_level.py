"""`--log` and `--log-level` of the two daemons: what is said, and what is written."""

import io
from pathlib import Path

import pytest

from swamp_orch.definitions.repository import find, init
from swamp_orch.serve import Reporter, ServeOptions
from swamp_proto.errors import UsageError
from swamp_worker.shell.voice import Voice

SERVE = [
    ("info", False, "iwe", "iwe"),
    ("info", True, "we", "iwe"),
    ("warn", False, "we", "we"),
    ("error", False, "e", "e"),
]


@pytest.mark.parametrize(("level", "quiet", "said", "written"), SERVE)
def test_serve(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], level: str, quiet: bool, said: str, written: str
) -> None:
    init(tmp_path / "repo")
    log = tmp_path / "serve.log"
    report = Reporter(ServeOptions(find(tmp_path / "repo"), log=log, log_level=level, quiet=quiet))
    capfd.readouterr()
    report.info("i-event", run="r")
    report.warning("w-event")
    report.fault("e-event", ValueError("x"))
    report.plain("listening on somewhere")
    assert report._file is not None
    report._file.close()
    out = capfd.readouterr().out
    for text, wanted in ((out, said), (log.read_text(), written)):
        assert [letter for letter in "iwe" if f"{letter}-event" in text] == list(wanted)
        assert "listening on somewhere" in text


@pytest.mark.parametrize(
    ("level", "quiet", "said", "written"),
    [
        ("info", False, "id", "iwd"),
        ("info", True, "", "iwd"),
        ("warn", False, "", "w"),
        ("error", False, "", ""),
    ],
)
def test_worker(level: str, quiet: bool, said: str, written: str) -> None:
    out, err, log = io.StringIO(), io.StringIO(), io.StringIO()
    voice = Voice(quiet=quiet, out=out, err=err, log=log, level=level)
    voice.notice("info", "i-event")
    voice.warn("w-event")
    voice.draining("d-event")
    assert [letter for letter in "iwd" if f"{letter}-event" in out.getvalue()] == list(said)
    assert [letter for letter in "iwd" if f"{letter}-event" in log.getvalue()] == list(written)
    assert ("w-event" in err.getvalue()) == (level != "error")


def test_a_log_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    init(tmp_path / "repo")
    with pytest.raises(UsageError, match="nowhere"):
        Reporter(ServeOptions(find(tmp_path / "repo"), log=tmp_path / "nowhere" / "x"))

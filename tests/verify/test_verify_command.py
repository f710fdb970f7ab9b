"""`swamp worker verify` as it is typed, with a real orchestrator and a real worker."""

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from e2e_site import Site

import swamp_orch.cli

SEAMS = [
    "dispatch", "log lines", "secret delivery", "secret masking", "environment", "runner", "capability call", "write and read back",
    "upload and download", "bundle", "cancel",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("verify")) as made:
        made.serve()
        yield made


def left_behind(site: Site) -> list[Any]:
    """Records that are no bookkeeping, and bundles."""
    data = site.query('!modelType.startsWith("swamp/") && version > 0', "modelName + '/' + name")
    return [*data, *(path.name for path in (site.root / ".swamp").rglob("*.zip"))]


def test_every_seam_of_a_worker_that_is_well_passes(site: Site) -> None:
    nobody = site.swamp("worker", "verify")
    assert nobody.code == 1 and "no worker is connected" in nobody.err
    worker = site.worker("w", "--label", "a=b")
    told = site.ok("worker", "verify")
    assert told.out.splitlines() == [
        f"w ({sys.platform}/{platform.machine()})",
        *(f"  ✓ {seam}" for seam in SEAMS),
        "All 1 worker(s) passed.",
    ]
    document = site.json("worker", "verify", "--label", "a=b")
    schema = json.loads((Path(swamp_orch.cli.__file__).parent / "schemas" / "worker-verify.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert (document["total"], document["passed"], document["failed"]) == (1, 1, 0)
    assert [one["seam"] for one in document["workers"][0]["seams"]] == SEAMS
    assert left_behind(site) == []
    assert "probe-" not in worker.said.replace("probe-shell", "")
    assert site.swamp("worker", "verify", "--label", "a=c").code == 1
    unknown = site.swamp("worker", "verify", "nobody")
    assert unknown.code != 0 and "'nobody' is not connected" in unknown.err


def test_a_busy_worker_is_waited_for_and_no_longer_than_asked(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    site.shell("holds", f"echo begun; until [ -e {gate} ]; do sleep 0.02; done", target="w")
    running = site.start("workflow", "run", "holds", "--json")
    running.wait_for('"line": "begun"')
    document = site.swamp("worker", "verify", "w", "--wait", "300ms", "--json")
    assert document.code == 1
    (found,) = document.json["workers"]
    assert found["status"] == "busy" and found["detail"].startswith("busy: no worker matching target=w")
    assert {one["status"] for one in found["seams"]} == {"skipped"}
    text = site.swamp("worker", "verify", "w", "--wait", "300ms")
    assert text.code == 1 and "! busy: no worker matching" in text.out
    waiting = site.start("worker", "verify", "w", "--json")
    assert site.orchestrator is not None
    site.orchestrator.wait_for("run started .*worker-verify", after=len(site.orchestrator.lines) - 1)
    gate.touch()
    assert waiting.end().code == 0
    assert running.end().code == 0
    refused = site.swamp("worker", "verify", "w", "--wait", "10m")
    assert refused.code == 2 and "at most 120 seconds" in refused.err

"""A secret goes to the one step that names it, and to no other place: no command line, record, log, event, output or file."""

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from e2e_site import Site, processes, step

SECRET = 'Tr0ub4dor & "3+/%é'
FORMS = tuple(
    form.encode()
    for form in (
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
    )
)


@pytest.fixture(scope="module")
def pool(site: Site) -> Iterator[Site]:
    site.ok("vault", "put", "sandbox-vault", "password", stdin=SECRET)
    site.serve()
    site.worker("w")
    yield site


def leaks(site: Site) -> list[str]:
    """Every place below the site's folder, and every value of its store, in which the secret can be read."""
    found = []
    for path in sorted(site.folder.rglob("*")):
        if path.is_file() and any(form in path.read_bytes() for form in FORMS):
            found.append(str(path.relative_to(site.folder)))
    for path in (site.root / ".swamp" / "data").glob("*.db"):
        with sqlite3.connect(path) as store:
            tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in store.execute(f'SELECT * FROM "{table}"'):
                    text = repr(row).encode() + b"".join(v for v in row if isinstance(v, bytes))
                    found.extend(f"table {table}" for form in FORMS if form in text)
        store.close()
    for running in (site.orchestrator, *site.workers.values()):
        if running is not None and any(form in running.said.encode() for form in FORMS):
            found.append(f"output of {running.name}")
    return found


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


REFERENCE = '${{ vault.get("sandbox-vault", "password") }}'
ASKS = {
    "in run": {"run": f"printf '%s\\n' {REFERENCE} | sha256sum; {{rest}}"},
    "in double quotes": {"run": f'printf "%s\\n" "{REFERENCE}" | sha256sum; {{rest}}'},
    "in an argument": {
        "run": 'printf "%s\\n" "$PASSWORD" | sha256sum; {rest}',
        "env": {"PASSWORD": REFERENCE},
    },
    "through an input": {
        "run": 'printf "%s\\n" ${{ inputs.given }} | sha256sum; {rest}',
        "inputs": {"type": "object", "properties": {"given": {"type": "string"}}, "required": ["given"]},
    },
}


@pytest.mark.parametrize("placement", [{}, {"target": "w"}], ids=["loopback", "worker"])
@pytest.mark.parametrize("way", ASKS)
def test_the_step_has_it_and_nobody_else(
    pool: Site, tmp_path: Path, way: str, placement: dict[str, Any]
) -> None:
    """The shell gets the right bytes; while it runs no process shows them; afterwards nothing has kept them."""
    gate = tmp_path / "gate"
    arguments = dict(ASKS[way])
    text = arguments.pop("run").replace("{rest}", f"echo begun; until [ -e {gate} ]; do sleep 0.02; done")
    pool.model("asks", text, **arguments)
    inputs = {"given": REFERENCE} if way == "through an input" else None
    pool.workflow("asks", step("s", "asks", inputs=inputs, **placement))
    running = pool.start("workflow", "run", "asks", "--json")
    running.wait_for('"line": "begun"')
    for pid, _ in processes(pool.mark):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except FileNotFoundError:
            continue
        assert not any(form in line for form in FORMS), line
    gate.touch()
    done = running.end()
    assert done.code == 0, done
    digest = hash_of(SECRET + "\n")
    assert f"{digest}  -" in done.out
    assert not any(form in (done.out + done.err).encode() for form in FORMS)
    assert leaks(pool) == []


@pytest.mark.parametrize("placement", [{}, {"target": "w"}], ids=["loopback", "worker"])
def test_what_a_step_prints_of_it_is_masked(pool: Site, placement: dict[str, Any]) -> None:
    """Whole, in pieces, encoded, on either stream, in a step that fails, and beyond what a row holds."""
    pool.shell(
        "tells",
        'printf "%s\\n" "whole: $P"; a=${P%é}; printf %s "pieces: $a"; sleep 0.1; printf "%s\\n" "${P#$a}";'
        ' printf "base64: "; printf %s "$P" | base64 -w0; echo; echo "err: $P" >&2;'
        ' n=0; while [ $n -lt 2000 ]; do echo "filler $n $P"; n=$((n+1)); done; exit 3',
        model={"env": {"P": REFERENCE}},
        **placement,
    )
    done = pool.swamp("workflow", "run", "tells", "--json")
    assert done.code == 1
    said = [event["line"] for event in done.events if event["kind"] == "step_output"]
    for start in ("whole: ***", "pieces: ***", "base64: ***==", "err: ***", "filler 1999 ***"):
        assert start in said, start
    assert not any(form in (done.out + done.err).encode() for form in FORMS)
    (result,) = pool.query('modelName == "tells" && specName == "result"', "attributes")
    assert result["exitCode"] == 3 and "whole: ***" in result["stdout"] and "err: ***" in result["stderr"]
    for argv in (
        ("data", "get", "tells", "result"),
        ("data", "export", "tells", "log"),
        ("workflow", "history", "logs", "tells"),
        ("workflow", "history", "get", "tells", "--json"),
        ("workflow", "get", "tells"),
        ("model", "get", "tells"),
        ("data", "query", "version > 0", "--json"),
    ):
        shown = pool.ok(*argv)
        assert not any(form in (shown.out + shown.err).encode() for form in FORMS), argv
    assert leaks(pool) == []


def test_a_text_that_looks_like_a_reference_stays_text(pool: Site) -> None:
    """Only what the author of the definition wrote is an expression; an input, an output and a file are not."""
    pool.model(
        "echoes",
        'printf "%s\\n" "$T"',
        env={"T": "${{ inputs.text }}"},
        inputs={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    )
    pool.workflow(
        "echoes",
        step("first", "echoes", inputs={"text": "${{ inputs.text }}"}),
        step(
            "second",
            "echoes",
            inputs={"text": '${{ data.latest("echoes", "result").attributes.stdout }}'},
            dependsOn=["first"],
            target="w",
        ),
        inputs={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    )
    done = pool.ok("workflow", "run", "echoes", "--input", f"text={REFERENCE}", "--json")
    said = [event["line"] for event in done.events if event["kind"] == "step_output"]
    assert said == [REFERENCE, REFERENCE]
    assert leaks(pool) == []


def test_an_input_that_is_sensitive_is_not_stored(pool: Site) -> None:
    pool.model(
        "login",
        "printf '%s\\n' ${{ inputs.password }} | sha256sum",
        inputs={"type": "object", "properties": {"password": {"type": "string", "sensitive": True}}},
    )
    pool.workflow(
        "login",
        step("s", "login", inputs={"password": "${{ inputs.password }}"}, target="w"),
        inputs={"password": {"type": "string", "sensitive": True, "required": True}},
    )
    done = pool.ok("workflow", "run", "login", "--stdin", "--json", stdin=json.dumps({"password": SECRET}))
    assert hash_of(SECRET + "\n") in done.out
    document = pool.json("workflow", "history", "get", done.events[0]["runId"])
    assert document["inputs"] == {"password": "***"}
    assert leaks(pool) == []


def test_a_secret_that_is_not_there(pool: Site) -> None:
    for reference, told in (
        ('${{ vault.get("sandbox-vault", "absent") }}', "absent"),
        ('${{ vault.get("no-such-vault", "password") }}', "no-such-vault"),
    ):
        pool.shell("lacks", f"echo {reference}", target="w")
        done = pool.swamp("workflow", "run", "lacks")
        assert done.code == 1 and told in done.out + done.err and "swamp vault" in done.out + done.err, done


def test_a_worker_token_is_never_read_by_a_step(pool: Site) -> None:
    reference = '${{ vault.get("sandbox-vault", "worker-token-w") }}'
    pool.shell("steals", f"printf '%s\\n' {reference} | sha256sum", target="w")
    done = pool.swamp("workflow", "run", "steals")
    assert done.code == 1, done
    assert hash_of(pool.tokens["w"] + "\n") not in done.out


def test_a_worker_shows_no_token(pool: Site) -> None:
    """Neither in its command line nor in its environment; nor do the shells it starts, nor the store."""
    token = pool.tokens["w"].encode()
    pool.shell(
        "environment",
        "cat /proc/self/environ /proc/$PPID/environ /proc/$PPID/cmdline | tr '\\0' '\\n'",
        target="w",
    )
    assert token.decode() not in pool.ok("workflow", "run", "environment", "--verbose").out
    for pid, line in processes(pool.mark):
        assert token.decode() not in line
        assert token not in Path(f"/proc/{pid}/environ").read_bytes()
    secret = token.partition(b".")[2]
    for path in (pool.root / ".swamp").rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


def test_the_environment_of_a_step(pool: Site) -> None:
    """Fence and key are there for the step's own use; what is swamp's own is not."""
    pool.shell("variables", "env", target="w")
    done = pool.ok("workflow", "run", "variables", "--json")
    found = dict(event["line"].partition("=")[::2] for event in done.events if event["kind"] == "step_output")
    assert found["SWAMP_FENCE"] == "1" and found["SWAMP_ATTEMPT_KEY"]
    others = {name for name in found if name.startswith("SWAMP_")} - {"SWAMP_FENCE", "SWAMP_ATTEMPT_KEY"}
    assert not {name for name in others if "TOKEN" in name or "CREDENTIAL" in name or "SERVE" in name}, others

"""Bad input: each gets one clear message with the place and the fix, the documented exit code, and changes nothing."""

import hashlib
import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from e2e_site import DEADLINE_S, SWAMP, Ended, Site, step


@pytest.fixture(scope="module")
def there(site: Site) -> Iterator[Site]:
    """A repository with a model and a workflow, and nothing that runs."""
    site.model("hello", "echo hello")
    site.workflow("fine", step("s", "hello"))
    yield site


def state(site: Site) -> Mapping[str, str]:
    """Every file of the repository and its fingerprint; what the system keeps for its own use excepted."""
    own = (".swamp/data/", ".swamp/loopback/", ".swamp/serve.lock", ".swamp/tokens.lock")
    found = {}
    for path in sorted(site.root.rglob("*")):
        name = str(path.relative_to(site.root))
        if path.is_file() and not name.startswith(own):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def refused(
    site: Site, *argv: str, code: int, says: tuple[str, ...], stdin: str = "", in_json: bool = True
) -> Ended:
    """One error, on the error stream only, in text and as JSON with the same words; nothing was changed."""
    before = state(site)
    text = site.swamp(*argv, stdin=stdin)
    assert (text.code, text.out) == (code, ""), text
    assert text.err.startswith("Error: ") and text.err.count("Error: ") == 1, text
    for words in says:
        assert words in text.err, text
    if in_json:
        document = site.swamp(*argv, "--json", stdin=stdin)
        assert (document.code, document.out) == (code, ""), document
        told = json.loads(document.err)
        assert set(told) <= {"error", "code", "hint"} and told["error"] in text.err, (told, text)
    assert state(site) == before
    return text


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("wrokflow", "run", "fine"), ("wrokflow", "workflow")),
        (("worker", "tokn", "list"), ("tokn", "token")),
        (("workflow", "run", "fine", "--jsn"), ("--jsn", "--json")),
        (("workflow", "run"), ("WORKFLOW",)),
        (("workflow", "run", "fine", "extra"), ("extra",)),
        (("serve", "--port", "many"), ('"many"', "--port")),
        (("serve", "--port", "70000"), ("70000", "65535")),
        (("worker", "token", "create", "w", "--duration", "soon"), ("soon", "1h")),
        (("worker", "token", "create", "w"), ("--duration",)),
        (("workflow", "run", "fine", "--timeout", "x"), ('"x"', "30s")),
        (("workflow", "run", "fine", "--input", "no-equals"), ("no-equals",)),
        (("--log-level", "loud", "worker", "list"), ("loud", "debug")),
        (("worker", "connect", "ws://localhost:1"), ("token", "SWAMP_WORKER_TOKEN")),
        (("worker", "connect", "localhost:1", "--token", "a.b"), ("localhost:1", "ws://")),
        (
            ("worker", "connect", "ws://localhost:1", "--token", "a.b", "--label", "gpu"),
            ("'gpu'", "key=value"),
        ),
        (("worker", "list", "--server", "ftp://example"), ("ftp://example",)),
        (("model", "create", "@me/own", "b", "--arg", "n=3"), ("--arg METHOD.n", "--global-arg n=")),
    ],
    ids=lambda value: " ".join(value)[:48] if isinstance(value, tuple) else None,
)
def test_a_command_line_that_is_wrong(there: Site, argv: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(there, *argv, code=2, says=says)


def test_a_token_without_a_dot(there: Site) -> None:
    argv = ("worker", "connect", "ws://localhost:1", "--token", "no-dot")
    refused(there, *argv, code=16, says=("<name>.<secret>", "swamp worker token create"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("workflow", "run", "fin"), ("fin", "fine")),
        (("model", "method", "run", "helo", "execute"), ("helo", "hello")),
        (("model", "method", "run", "hello", "exec"), ("exec", "execute")),
        (("model", "method", "run", "hello", "execute", "--input", "rum=x"), ("rum", "Did you mean 'run'?")),
        (("model", "create", "command/shel", "x"), ("command/shel", "command/shell")),
        (("data", "query", 'modelNam == "hello"'), ("modelNam", "modelName")),
        (("data", "query", 'modelName == "hello'), ("modelName",)),
        (("vault", "put", "no-such-vault", "k", "v"), ("no-such-vault", "sandbox-vault")),
        (
            ("worker", "token", "create", "w", "--duration", "1h", "--vault", "other"),
            ("other", "sandbox-vault"),
        ),
        (("worker", "token", "revoke", "nobody"), ("nobody",)),
        (
            ("run", "attach", "00000000-0000-4000-8000-000000000000"),
            ("00000000-0000-4000-8000-000000000000",),
        ),
    ],
    ids=lambda value: " ".join(value)[:48] if isinstance(value, tuple) else None,
)
def test_something_that_is_not_there(there: Site, argv: tuple[str, ...], says: tuple[str, ...]) -> None:
    refused(there, *argv, code=1, says=says)


# ── definitions ─────────────────────────────────────────────────────────────────────────────────────────────────────
WORKFLOW = """\
id: 6ecd8c99-4036-403d-bf84-cf8400f67836
name: broken
jobs:
  - name: job
    steps:
      - name: s
{extra}
        task:
          type: model_method
          modelIdOrName: hello
          methodName: execute
version: 1
"""


@pytest.mark.parametrize(
    ("extra", "line", "says"),
    [
        ("        target: a\n        labels: {gpu: 'true'}", 8, ("target", "labels")),
        ("        labels: {gpu: true}", 7, ("gpu", '"true"')),
        ("        labels: {count: 1}", 7, ("count", '"1"')),
        ("        lables: {gpu: 'true'}", 7, ("lables", "labels")),
        ("        dependsOn: [s]", None, ("s -> s",)),
        ("        dependsOn: [nobody]", 7, ("nobody",)),
        ("        timeout: soon", 7, ("soon",)),
        ("        retry: [", None, ()),
        ("       name: twice", None, ()),
        ("        allowFailure: maybe", 7, ("allowFailure",)),
    ],
    ids=[
        "target and labels",
        "label true",
        "label 1",
        "key",
        "cycle",
        "dependency",
        "timeout",
        "flow",
        "indent",
        "boolean",
    ],
)
@pytest.mark.parametrize("way", ["create", "run"])
def test_a_workflow_file_that_is_wrong(
    there: Site, extra: str, line: int | None, says: tuple[str, ...], way: str
) -> None:
    """File and line, whether it is given to `create` (nothing is written) or was written by hand and is run."""
    text = WORKFLOW.format(extra=extra)
    place = f":{line}: " if line else ":"
    if way == "create":
        path = there.elsewhere / "broken.yaml"
        path.write_text(text)
        refused(there, "workflow", "create", "--file", str(path), code=1, says=(place, *says), in_json=False)
        assert not (there.root / "workflows" / "workflow-broken.yaml").exists()
        return
    path = there.root / "workflows" / "workflow-broken.yaml"
    path.write_text(text)
    try:
        refused(there, "workflow", "run", "broken", code=1, says=(f"workflow-broken.yaml{place}", *says))
    finally:
        path.unlink()


def test_a_broken_workflow_does_not_disappear_and_its_neighbours_do_not_suffer(there: Site) -> None:
    path = there.root / "workflows" / "workflow-broken.yaml"
    path.write_text("name: broken\njobs: [\n")
    try:
        assert there.ok("workflow", "run", "fine").code == 0
        listed = there.ok("workflow", "search")
        assert "fine" in listed.out and "workflow-broken.yaml" in listed.err
        told = there.swamp("workflow", "validate")
        assert told.code == 1 and "workflow-broken.yaml" in told.out + told.err
    finally:
        path.unlink()


def test_a_cycle_is_shown(there: Site) -> None:
    jobs = [
        {"name": "a", "dependsOn": ["b"], "steps": [step("s", "hello")]},
        {"name": "b", "dependsOn": ["c"], "steps": [step("s", "hello")]},
        {"name": "c", "dependsOn": ["a"], "steps": [step("s", "hello")]},
    ]
    refused(
        there,
        "workflow",
        "create",
        "--stdin",
        code=1,
        says=("a -> b -> c -> a",),
        stdin=json.dumps({"name": "circle", "jobs": jobs}),
    )


def test_a_model_file_that_does_not_parse(there: Site) -> None:
    path = there.root / "models" / "command" / "shell" / "torn.yaml"
    path.write_text("type: command/shell\nname: torn\nmethods: {execute: {arguments: {run: 'no end}}}\n")
    try:
        refused(there, "model", "method", "run", "torn", "execute", code=1, says=("torn.yaml:3",))
        assert "torn.yaml" in there.ok("model", "search").err
        assert there.ok("model", "method", "run", "hello", "execute").code == 0
    finally:
        path.unlink()


def test_inside_single_quotes_an_expression_is_refused(there: Site) -> None:
    """There it would be text of the shell's: the error names the ways that are safe."""
    there.model("quoted", "echo '${{ inputs.x }}'", inputs={"x": {"type": "string"}})
    try:
        told = there.swamp("model", "method", "run", "quoted", "execute", "--input", "x=1")
        assert told.code == 1 and "env" in told.err + told.out and "raw(" in told.err + told.out, told
    finally:
        (there.root / "models" / "command" / "shell" / "quoted.yaml").unlink()


# ── surroundings ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_outside_of_a_repository(there: Site) -> None:
    told = there.swamp("worker", "list", cwd=there.elsewhere)
    assert told.code in (1, 2) and "swamp repo init" in told.err and told.out == ""
    assert list(there.elsewhere.glob(".*")) == []


def test_an_orchestrator_that_is_not_there(there: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"ws://localhost:{port}"
    told = refused(
        there, "worker", "list", "--server", url, code=3, says=(url, "connection refused", "swamp serve")
    )
    assert told.err.startswith("Error: cannot reach the orchestrator")
    token = f"w.{'0' * 64}"
    dialling = there.swamp(
        "worker", "connect", url, "--token", token, "--cache-dir", "cache", "--no-reconnect"
    )
    assert dialling.code == 3 and "refused" in (dialling.out + dialling.err).lower(), dialling


def test_none_or_two_vaults_and_no_word_which(own_site: Site) -> None:
    own_site.ok("vault", "create", "local_encryption", "second")
    refused(
        own_site,
        "worker",
        "token",
        "create",
        "w",
        "--duration",
        "1h",
        code=2,
        says=("sandbox-vault", "second", "--vault"),
    )
    own_site.ok("worker", "token", "create", "w", "--duration", "1h", "--vault", "second")
    empty = own_site.elsewhere / "empty"
    own_site.ok("repo", "init", str(empty))
    told = own_site.swamp("worker", "token", "create", "w", "--duration", "1h", cwd=empty)
    assert told.code == 1 and "swamp vault create local_encryption" in told.err
    assert own_site.json("worker", "token", "list", cwd=empty) == []


@pytest.mark.parametrize("damage", ["garbage", "cut", "newer"])
def test_a_store_file_that_is_corrupt(own_site: Site, damage: str) -> None:
    """Named and not touched: no command and no serve makes a new one over it."""
    own_site.model("hello", "echo hello")
    own_site.ok("model", "method", "run", "hello", "execute")
    (path,) = (own_site.root / ".swamp" / "data").glob("*.db")
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"this is not a database, it only has the name of one\n" * 100)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2 - 100])
    else:
        with sqlite3.connect(path) as store:
            store.execute("PRAGMA user_version = 9999")
        store.close()
    damaged = path.read_bytes()
    for argv in (
        ("data", "query", 'modelName == "hello"'),
        ("worker", "list"),
        ("model", "method", "run", "hello", "execute"),
        ("serve", "--port", "0"),
    ):
        told = own_site.swamp(*argv)
        assert told.code == 1 and told.err.startswith("Error: ") and "defect" not in told.err, (argv, told)
        assert path.name in told.err and "Hint: " in told.err, (argv, told)
    assert path.read_bytes() == damaged


UNPRIVILEGED = """\
import ctypes, os, sys
for capability in (1, 2):  # what lets root write and read where the file mode says no
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def unprivileged(site: Site, *argv: str, cwd: Path | None = None) -> Ended:
    """A command for which the modes of files count, also where the tests run as root."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, *SWAMP, *argv],
        cwd=cwd or site.root,
        env=site.env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_read_only_folder(own_site: Site) -> None:
    own_site.model("hello", "echo hello")
    own_site.ok("model", "method", "run", "hello", "execute")
    before = state(own_site)
    folders = [own_site.root, *(path for path in own_site.root.rglob("*") if path.is_dir())]
    modes = {path: path.stat().st_mode for path in folders}
    for path in reversed(folders):
        path.chmod(0o500)
    try:
        for argv in (
            ("serve", "--port", "0"),
            ("vault", "create", "local_encryption", "another"),
            ("model", "create", "command/shell", "new"),
            ("workflow", "create", "new"),
            ("worker", "token", "create", "w", "--duration", "1h"),
            ("repo", "init", "inside"),
        ):
            told = unprivileged(own_site, *argv)
            assert told.code == 1 and told.err.startswith("Error: "), (argv, told)
            assert "defect" not in told.err and "Traceback" not in told.err, (argv, told)
            assert str(own_site.root) in told.err or ".swamp" in told.err, (argv, told)
            assert "writ" in told.err.lower() or "permission" in told.err.lower(), (argv, told)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert state(own_site) == before
    assert own_site.ok("model", "method", "run", "hello", "execute").code == 0


def test_a_file_where_a_folder_is_expected(own_site: Site) -> None:
    (own_site.elsewhere / "file").write_text("mine")
    told = own_site.swamp("repo", "init", str(own_site.elsewhere / "file"))
    assert told.code == 1 and str(own_site.elsewhere / "file") in told.err and "defect" not in told.err, told
    cache = own_site.swamp(
        "worker",
        "connect",
        "ws://localhost:1",
        "--token",
        "a.b",
        "--cache-dir",
        str(own_site.elsewhere / "file"),
    )
    assert (
        cache.code in (1, 2) and str(own_site.elsewhere / "file") in cache.err and "defect" not in cache.err
    ), cache
    (own_site.root / ".swamp" / "secrets").rename(own_site.elsewhere / "secrets")
    (own_site.root / ".swamp" / "secrets").write_text("mine")
    told = own_site.swamp("vault", "put", "sandbox-vault", "key", "value")
    assert told.code == 1 and "defect" not in told.err and "secrets" in told.err, told
    assert (own_site.root / ".swamp" / "secrets").read_text() == "mine"
    assert (own_site.elsewhere / "file").read_text() == "mine"

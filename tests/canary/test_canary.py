"""Canaries: secrets of every shape, planted wherever an author can put one, shouted by the steps in every way; then looked for everywhere.

Everything is real: orchestrator, worker, vault, commands. That a step has the right value is proved by its digest.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from canary_secrets import ENVIRONMENT, FORMS, SECRETS, SENSITIVE, TOO_SHORT, in_bytes, places
from e2e_site import Site, step

PLACES = {"here": {}, "there": {"target": "w"}}


def reference(name: str) -> str:
    return f'${{{{ vault.get("sandbox-vault", "{name}") }}}}'


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("canary")) as made:
        for name, secret in {**SECRETS, "short": TOO_SHORT}.items():
            made.ok("vault", "put", "sandbox-vault", name, stdin=secret)
        made.env |= (
            planted := {"CANARY_OF_SERVE": "1", "CANARY_VALUE": ENVIRONMENT, "CANARY_DENIED": ENVIRONMENT}
        )
        made.serve("--env-deny", "*_denied", "--env-deny", "CANARY_OF_*")
        for variable in planted:
            del made.env[variable]
        made.env |= {"SWAMP_WORKER_LABELS": "a=b", "PYTHONDONTWRITEBYTECODE": "1", "OF_WORKER": "kept"}
        made.worker("w")
        yield made


SAYS = r"""
printf 'digest %s\n' "$(printf %s "$V" | sha256sum | cut -c-64)"
printf '%s\n' "whole: $V"; printf '%s\n' "on stderr: $V" >&2
"""
SHOUTS = rf"""{SAYS}
half=$(printf %s "$V" | cut -c-9 | head -1); printf %s "$half"; sleep 0.03; printf '%s\n' "${{V#"$half"}}"
printf %s "$V" | base64; printf %s "$V" | base64 -w0; echo; printf 'user:%s' "$V" | base64 -w0; echo
python3 -c '
import json, os, urllib.parse as u
v = os.environ["V"]
print(json.dumps({{"v": v}}), json.dumps([v], ensure_ascii=False), u.quote(v), u.quote(v, safe=""), u.urlencode({{"q": v}}), repr(v))
print("z" * 65530 + v)'
printf '%s\n' "$V" > beside.txt; cat beside.txt; (set -x; : "$V")
tr '\0' '\n' < /proc/self/cmdline; tr '\0' '\n' < /proc/$$/cmdline
"""


def shouting(site: Site, name: str) -> list[dict[str, Any]]:
    """Models that are given the secret in every way, and their steps, here and there; they fail."""
    value = reference(name)
    given = {"type": "object", "properties": {"given": {"type": "string"}}}
    site.model(f"{name}-env", SHOUTS + "exit 3", env={"V": value})
    site.model(f"{name}-text", f"V={value}; export V; {SAYS} exit 3")
    site.model(f"{name}-input", SAYS + "exit 3", env={"V": "${{ inputs.given }}"}, inputs=given)
    path = site.root / "models" / "command" / "shell" / f"{name}-env.yaml"
    document = json.loads(path.read_text())
    document |= {"id": digest(name)[:8] + "-0000-4000-8000-000000000000", "name": f"{name}-global"}
    document["globalArguments"] = {"login": {"password": value, "why": f"for {value} only"}}
    document["methods"]["execute"]["arguments"] = {
        "run": SAYS + "exit 3",
        "env": {"V": "${{ self.globalArguments.login.password }}"},
    }
    path.with_name(f"{name}-global.yaml").write_text(json.dumps(document))
    return [
        step(f"{name}-{way}-{where}", f"{name}-{way}", allowFailure=True, inputs={"given": value} if way == "input" else None, **placement)
        for way in ("env", "text", "input", "global")
        for where, placement in PLACES.items()
    ]  # fmt: skip


def test_a_secret_that_is_shouted_is_read_nowhere(site: Site) -> None:
    site.workflow("shouts", *(each for name in SECRETS for each in shouting(site, name)))
    done = site.swamp("workflow", "run", "shouts", "--json")
    assert done.code == 0, done
    lines = [event["line"] for event in done.events if event["kind"] == "step_output"]
    for name, secret in SECRETS.items():
        assert lines.count(f"digest {digest(secret)}") == 8, f"a step was not given {name}"
    assert lines.count("whole: ***") == lines.count("on stderr: ***") == 8 * len(SECRETS)
    for argv in (
        ("workflow", "history", "get", done.events[0]["runId"], "--json"),
        ("workflow", "history", "logs", "shouts"),
        ("data", "query", "version > 0", "--json"),
        ("data", "export", "pem-env", "log"),
        ("model", "get", "special-global", "--json"),
        ("run", "doctor", "--json"),
    ):
        site.ok(*argv)
    assert places(site) == []


PYTHON = """
import base64
import json

import attrs
from swamp_worker.sdk import CallFailed, Context, Findings, Report, about, file, method, model, report, resource


@attrs.frozen
class Shout:
    password: str = attrs.field(metadata=about("Masked", sensitive=True))


@attrs.frozen
class Told:
    text: str
    of: dict[str, str]


@attrs.frozen
class Kept:
    password: str = attrs.field(metadata=about("In a vault", sensitive=True))
    said: str = ""


@model("@canary/shouter", version="2026.11.21.1", secrets=["sandbox-vault/*"], arguments=Shout)
class Shouter:
    told = resource(Told)
    kept = resource(Kept)
    paper = file("text/plain")
    large = file("application/json")

    @method
    async def shout(self, context: Context, arguments: Shout) -> None:
        values = [arguments.password, context.global_arguments.password]
        for key in NAMES:
            values.append(await context.secret("sandbox-vault", key))
        for value in values:
            print("whole:", value, repr(value), json.dumps(value), base64.b64encode(value.encode()).decode())
            context.log("a word", value=value)
            await context.write_resource(self.told, Told(value, {value: value}), "told", tags={"of": value.split("\\n")[0]})
            try:
                await context.write_resource(self.told, Told("", {}), f"of {value}"[:200])
            except CallFailed as error:
                print("refused", error)
            await context.write_resource(self.kept, Kept(value, value), "kept")
            await context.query(f"attributes.text == {json.dumps(value)}")
        async with context.open_file(self.paper) as paper:
            for value in values:
                await paper.write("x" * 400_000 + value)
        async with context.open_file(self.large) as large:
            await large.write(json.dumps(values) + " " * 10)
        await context.put_secret("sandbox-vault", "plain", values[2])
        raise ValueError(f"not with {values}")

    @report
    async def summary(self, context: Context, findings: Findings) -> Report:
        secret = await context.secret("sandbox-vault", "special")
        return Report(f"# it was {secret}: {findings.error}", {"it": secret, secret: findings.error})
"""


def test_a_python_step_that_shouts_is_read_nowhere(site: Site) -> None:
    declared = ", ".join(f'"sandbox-vault/{name}"' for name in SECRETS)
    text = PYTHON.replace('"sandbox-vault/*"', declared).replace(
        "NAMES", repr(["plain", *(name for name in SECRETS if name != "plain")])
    )
    (site.root / "extensions" / "models" / "shouter.py").write_text(text)
    folder = site.root / "models" / "@canary" / "shouter"
    folder.mkdir(parents=True)
    document = {
        "type": "@canary/shouter", "id": "c0000000-0000-4000-8000-00000000000c", "name": "shouter", "version": 1,
        "globalArguments": {"password": reference("base64ish")},
        "methods": {"shout": {"arguments": {"password": reference("special")}}},
    }  # fmt: skip
    (folder / "shouter.yaml").write_text(json.dumps(document))
    steps = [step(where, "shouter", allowFailure=True, **placement) for where, placement in PLACES.items()]
    for one in steps:
        one["task"]["methodName"] = "shout"
        one["dataOutputOverrides"] = [{"specName": "kept", "vaultName": "sandbox-vault"}]
    site.workflow("shouter", *steps)
    done = site.ok("workflow", "run", "shouter", "--json")
    ends = [event for event in done.events if event["kind"] == "step_ended"]
    assert all(event["error"].startswith("ValueError: not with ['***', '***', '***'") for event in ends), ends
    assert (
        sum(
            event["kind"] == "step_output" and "refused the name of a record holds a secret" in event["line"]
            for event in done.events
        )
        >= 8
    )
    for argv in (
        ("data", "query", "version > 0", "--json"),
        ("data", "query", 'modelType == "swamp/access"', "--json"),
        ("data", "export", "shouter", "paper"),
        ("data", "export", "shouter", "large"),
        ("workflow", "history", "get", done.events[0]["runId"], "--json"),
    ):
        site.ok(*argv)
    assert places(site) == []


def test_nothing_shows_it_while_the_step_runs(site: Site) -> None:
    """All at once, in running steps on both sides: command lines, environments of others, files."""
    gate = site.folder / "gate"
    values = {f"V{number}": reference(name) for number, name in enumerate(sorted(SECRETS))}
    site.model(
        "holds",
        f"echo begun; until [ -e {gate} ]; do sleep 0.02; done; : {' '.join(values.values())}",
        env=values,
    )
    site.workflow("holds", *(step(where, "holds", **placement) for where, placement in PLACES.items()))
    running = site.start("workflow", "run", "holds", "--json")
    for where in PLACES:
        running.wait_for(f'"step": "{where}".*"line": "begun"|"line": "begun".*"step": "{where}"')
    try:
        assert places(site) == []
    finally:
        gate.touch()
    assert running.end().code == 0


def test_a_sensitive_input_is_read_nowhere(site: Site) -> None:
    field = {"type": "string", "sensitive": True}
    site.model(
        "login",
        SHOUTS,
        env={"V": "${{ inputs.password }}"},
        inputs={"type": "object", "properties": {"password": field}},
    )
    steps = [
        step(where, "login", inputs={"password": "${{ inputs.password }}"}, **placement)
        for where, placement in PLACES.items()
    ]
    site.workflow("login", *steps, inputs={"password": {**field, "required": True}})
    done = site.ok("workflow", "run", "login", "--stdin", "--json", stdin=json.dumps({"password": SENSITIVE}))
    assert done.out.count(f"digest {digest(SENSITIVE)}") == 2
    site.ok("workflow", "history", "get", done.events[0]["runId"], "--json")
    direct = site.ok(
        "model",
        "method",
        "run",
        "login",
        "execute",
        "--stdin",
        "--json",
        stdin=json.dumps({"password": SENSITIVE}),
    )
    assert f"digest {digest(SENSITIVE)}" in direct.out
    assert places(site) == []


def test_the_environment_goes_with_a_step_and_is_kept_nowhere(site: Site) -> None:
    site.model(
        "environs",
        'printf %s "$CANARY_VALUE" | sha256sum; env | cut -d= -f1 | grep -v CANARY_VALUE; : > /dev/null',
    )
    site.workflow("environs", *(step(where, "environs", **placement) for where, placement in PLACES.items()))
    done = site.ok("workflow", "run", "environs", "--json")
    for where in PLACES:
        lines = [
            event["line"]
            for event in done.events
            if event["kind"] == "step_output" and event["step"] == where
        ]
        assert lines[0] == f"{digest(ENVIRONMENT)}  -", where
        names = set(lines[1:])
        assert ("OF_WORKER" in names) == (where == "there")
        assert not {name for name in names if name.startswith(("CANARY", "PYTHON"))}, where
        own = {name for name in names if name.startswith("SWAMP_")}
        assert own == {
            "SWAMP_DISPATCH", "SWAMP_FENCE", "SWAMP_ATTEMPT", "SWAMP_ATTEMPT_KEY", "SWAMP_RUN_ID", "SWAMP_WORKFLOW", "SWAMP_JOB",
            "SWAMP_STEP", "SWAMP_MODEL",
        }, where  # fmt: skip
    assert places(site) == []


def test_what_is_swamps_own_in_the_environment_is_no_expressions_to_read(site: Site) -> None:
    site.shell("reads-env", "echo ${{ env.SWAMP_SERVER_TOKEN }}")
    site.env["SWAMP_SERVER_TOKEN"] = "canary"
    try:
        told = site.swamp("model", "method", "run", "reads-env", "execute")
    finally:
        del site.env["SWAMP_SERVER_TOKEN"]
    assert told.code != 0 and "canary" not in told.out + told.err


def test_a_value_that_is_too_short_to_be_masked_is_told_to_the_author(site: Site) -> None:
    site.model(
        "whispers", 'printf "%s|%s\n" "$V" "$W"', env={"V": reference("short"), "W": reference("brief")}
    )
    site.workflow("whispers", *(step(where, "whispers", **placement) for where, placement in PLACES.items()))
    done = site.ok("workflow", "run", "whispers")
    assert done.out.count("1 secret(s) shorter than 3 characters cannot be masked") == 2
    assert done.out.count(f"{TOO_SHORT}|***") == 2
    assert (
        site.query('modelName == "whispers" && specName == "result"', "attributes.stdout")[0]
        == f"{TOO_SHORT}|***"
    )


def test_the_search_finds_what_is_there(site: Site) -> None:
    """The canaries would be heard: the same search over a file, a database and words that do hold them."""
    for name, forms in FORMS.items():
        for form in forms:
            assert name in in_bytes(b"x" + form + b"y")
    beside = site.root / "leak.txt"
    beside.write_text(SECRETS["pem"].split("\n")[3])
    try:
        assert places(site) == ["repo/leak.txt: pem"]
    finally:
        beside.unlink()

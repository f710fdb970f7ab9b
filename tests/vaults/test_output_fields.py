"""Sensitive fields of outputs: in a vault, and never in a record, a log or a file in clear. On the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.api.inprocess import InProcessSession
from swamp_orch.definitions.repository import find, init
from swamp_orch.vaults import VaultSet

ACCOUNTS = '''
import attrs
from swamp_worker.sdk import Context, PlainContext, StepFailed, about, method, model, resource


@attrs.frozen
class Account:
    user: str
    password: str = attrs.field(metadata=about("Of the user", sensitive=True, minLength=8))
    pins: list[int] = attrs.field(factory=list, metadata=about(sensitive=True))
    note: str = ""


@model("@acme/accounts", version="2026.11.21.1")
class Accounts:
    """Accounts."""

    account = resource(Account, "An account")
    made = resource(Account, "What was made")

    @method
    async def make(self, context: Context) -> None:
        password = bytes.fromhex("67656865696d2d63616e6172792d31").decode()
        await context.write_resource(self.account, Account("ada", password, [int('828172'[::-1])], f"not {password}"), "ada")
        print("made", password, "with pin", int("828172"[::-1]))
        found = (await context.read_resource("ada")).json()
        vault, key = found["password"].split('"')[1::2]
        print("read back:", await context.secret(vault, key) == password)

    @method(returns=made)
    def give(self, context: PlainContext) -> Account:
        return Account("eve", bytes.fromhex("67656865696d2d63616e6172792d32").decode())

    @method(returns=made)
    def fail(self, context: PlainContext) -> Account:
        raise StepFailed("it is broken", Account("eve", bytes.fromhex("67656865696d2d63616e6172792d33").decode()))
'''


class Place:
    def __init__(self, root: Path, *vaults: str) -> None:
        init(root)
        self.root = root
        self.runs = 0
        self.vaults = VaultSet(find(root))
        for vault in vaults:
            self.vaults.create("local_encryption", vault)
        (root / "extensions/models").mkdir(parents=True, exist_ok=True)
        (root / "extensions/models/accounts.py").write_text(ACCOUNTS)
        self.session = InProcessSession(find(root))
        self.call("model.create", type="@acme/accounts", name="accounts")

    def call(self, call: str, /, **parameters: Any) -> Any:
        return self.session.call(call, **parameters)

    def run(self, method: str, *overrides: dict[str, Any], model: str = "accounts") -> dict[str, Any]:
        task = {"type": "model_method", "modelIdOrName": model, "methodName": method}
        step = {"name": "s", "task": task} | ({"dataOutputOverrides": list(overrides)} if overrides else {})
        self.runs += 1
        name = f"w{self.runs}"
        document = {"name": name, "version": 1, "jobs": [{"name": "j", "steps": [step]}]}
        self.call("workflow.create", name=name, text=json.dumps(document))
        run_id = self.call("workflow.run", name=name, inputs={})["runId"]
        events = list(self.session.stream("run.attach", runId=run_id))
        self.warnings = [event["message"] for event in events if event["kind"] == "warning"]
        return dict(events[-1])

    def content(self, name: str, **which: Any) -> Any:
        return self.call("data.get", model="accounts", name=name, **which)["content"]

    def in_clear(self) -> list[str]:
        return [
            str(path)
            for path in sorted((self.root / ".swamp").rglob("*"))
            if path.is_file()
            and any(word in path.read_bytes() for word in (b"geheim-", b"canary-", b"271828"))
        ]


def secret_of(place: Place, reference: str) -> str:
    """What a reference in a record names."""
    assert reference.startswith("${{ vault.get(") and reference.endswith(") }}")
    vault, key = json.loads(f"[{reference[14:-4]}]")
    return place.vaults.choose(vault).get(key)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[Place]]:
    made: list[Place] = []
    yield made
    for place in made:
        place.session.close()


def test_they_go_into_the_vault_that_the_step_names(places: list[Place], tmp_path: Path) -> None:
    place = Place(tmp_path, "first", "second")
    places.append(place)
    ended = place.run("make", {"specName": "account", "vaultName": "second"})
    assert (ended["status"], place.warnings) == ("succeeded", []), ended
    found = place.content("ada")
    assert (found["user"], found["note"]) == ("ada", "not ***")
    assert secret_of(place, found["password"]) == "geheim-canary-1"
    assert [secret_of(place, pin) for pin in found["pins"]] == ["271828"]
    assert place.vaults.choose("first").keys() == []
    assert 'vault.get("second", "acme-accounts-' in found["password"]
    log = place.content("log")
    assert "made *** with pin ***" in log and "read back: True" in log
    assert place.in_clear() == []
    # An expression in a definition that names vault and key is given the value; the text in a record is text.
    vault, key = found["password"].split('"')[1::2]
    run = f'printf %s "${{{{ vault.get("{vault}", "{key}") }}}}" | wc -c'
    place.call("model.create", type="command/shell", name="uses", arguments={"execute": {"run": run}})
    shown = 'printf %s "${{ data.latest("accounts", "ada").attributes.password }}"'
    place.call("model.create", type="command/shell", name="shows", arguments={"execute": {"run": shown}})
    for model, printed in (("uses", "15"), ("shows", found["password"])):
        list(
            place.session.stream(
                "run.attach",
                runId=place.call("model.method_run", name=model, method="execute", inputs={})["runId"],
            )
        )
        assert place.call("data.get", model=model, name="result")["content"]["stdout"].strip() == printed


def test_what_a_method_returns_or_fails_with_goes_into_the_only_vault(
    places: list[Place], tmp_path: Path
) -> None:
    place = Place(tmp_path, "main")
    places.append(place)
    assert place.run("give")["status"] == "succeeded"
    assert secret_of(place, place.content("made")["password"]) == "geheim-canary-2"
    ended = place.run("fail")
    assert ended["error"].startswith("it is broken")
    assert secret_of(place, place.content("made")["password"]) == "geheim-canary-3"
    keys = place.vaults.choose("main").keys()
    assert len(keys) == 2 and all(key.endswith("-made-made-password") for key in keys)
    assert place.in_clear() == []


def test_without_a_vault_that_is_meant_the_step_fails_and_nothing_is_in_clear(
    places: list[Place], tmp_path: Path
) -> None:
    none = Place(tmp_path / "none")
    several = Place(tmp_path / "several", "one", "two")
    places += [none, several]
    ended = none.run("make")
    assert ended["status"] == "failed"
    assert (
        "No vaults are configured — the sensitive fields of an output must be stored in a vault"
        in ended["error"]
    )
    ended = several.run("give")
    assert "Multiple vaults are configured (one, two)" in ended["error"]
    ended = several.run("give", {"specName": "made", "vaultName": "three"})
    assert "Vault 'three' is not configured. Available vaults: one, two" in ended["error"]
    several.call("model.create", type="command/shell", name="echo", arguments={"execute": {"run": "true"}})
    ended = several.run("execute", {"specName": "result", "vaultName": "one"}, model="echo")
    told = "dataOutputOverrides names a vault for 'result', in which command/shell declares nothing sensitive"
    assert ended["error"].endswith(told)
    assert none.in_clear() == several.in_clear() == []

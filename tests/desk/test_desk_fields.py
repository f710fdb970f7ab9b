"""Sensitive fields of outputs: where running code puts them, and what stands in the record whoever writes it."""

import json
from pathlib import Path

import attrs
import desk_site
import pytest
from desk_site import open_site, output

from swamp_proto.capabilities import CallRefused
from swamp_proto.messages.capability import CallCode, Verb


@pytest.fixture
def hiding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's item holds something sensitive."""
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "token": {"type": "string", "sensitive": True, "minLength": 20},
        },
        "additionalProperties": False,
    }
    item = attrs.evolve(desk_site.WRITER.outputs["item"], schema=schema)
    outputs = {**desk_site.WRITER.outputs, "item": item}
    monkeypatch.setattr(desk_site, "WRITER", attrs.evolve(desk_site.WRITER, outputs=outputs))


@pytest.mark.parametrize("where", ["loopback", "worker"])
async def test_a_sensitive_field_is_never_stored_whoever_writes_it(
    hiding: None, tmp_path: Path, where: str
) -> None:
    """A holder that puts it into the record instead of the vault is not believed; nor one that points at another's secret."""
    async with open_site(tmp_path) as site:
        site.parts.application.call("vault.create", {"type": "local_encryption", "name": "main"})
        vault = site.parts.application.vaults.choose("main")
        vault.put("other", "somebody else's", True)
        step = await site.step(None if where == "loopback" else await site.worker(await site.mint("w1")))
        written = [
            {"n": 1, "token": "a canary in clear text"},
            {"n": 2, "token": '${{ vault.get("main", "other") }}'},
        ]
        for number, value in enumerate(written):
            await step.write(output(name=f"clear-{number}", content=json.dumps(value).encode()))
        await step.call(Verb.PUT_SECRET, vault="@item", key='["kept", "token"]', value="a canary in a vault")
        await step.write(output(name="kept", content=b'{"n":3,"token":"***"}'))
        for key, spec in (('["kept", "token"]', "artifact"), ("kept", "item"), ("[1", "item")):
            with pytest.raises(CallRefused) as caught:
                await step.call(Verb.PUT_SECRET, vault=f"@{spec}", key=key, value="x")
            assert caught.value.call_code is CallCode.INVALID

        def token(name: str) -> str:
            record = site.store.latest(desk_site.IDS["writer"], name)
            assert record is not None and record.content is not None
            return str(json.loads(record.content)["token"])

        assert (token("clear-0"), token("clear-1")) == ("***", "***")
        (key,) = set(vault.keys()) - {"other"}
        assert token("kept") == f'${{{{ vault.get("main", "{key}") }}}}'
        assert vault.get(key) == "a canary in a vault"
        assert (await step.call(Verb.SECRET, vault="main", key=key))["value"] == "a canary in a vault"
        with pytest.raises(CallRefused):
            await step.call(Verb.SECRET, vault="main", key="other")
        accesses = await site.accesses()
        assert [one["key"] for one in accesses if one["verb"] == "put_secret" and one["allowed"]] == [key]
    for path in (tmp_path / ".swamp" / "data").rglob("*"):
        assert not path.is_file() or b"canary in" not in path.read_bytes(), path

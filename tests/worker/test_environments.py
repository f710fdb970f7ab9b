"""Dependencies of a unit: pinned, installed once, offline from shipped wheels, and every refusal with its fix."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from packing import digest, wheel

from swamp_worker.execution import environments as e
from swamp_worker.execution.environments import Environments, NotInstalled
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.requirements import BadRequirements, check

H = "sha256:" + "0" * 64


# ── requirements.txt ────────────────────────────────────────────────────────────────────────────────────────


def test_exact_pins_with_hashes_are_understood() -> None:
    text = f"""
# made by pip-compile
attrs==24.2.0 \\
    --hash={H} \\
    --hash={H.replace("0", "1", 1).replace("sha1", "sha2")}
requests[socks]==2.32.3 ; python_version >= "3.11" --hash={H}   # a comment
six == 1.16.0 --hash={H}
"""
    assert check(text, has_wheels=False) == 3
    assert check("attrs==24.2.0\nsix==1.16\n", has_wheels=True) == 2
    assert check("\n# nothing\n", has_wheels=False) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("attrs>=24", "does not pin one version"),
        ("attrs", "does not pin one version"),
        ("attrs==24.*", "does not pin one version"),
        ("attrs===24", "does not pin one version"),
        ("attrs==1,<2", "does not pin one version"),
        ("attrs @ https://example.org/attrs.whl", "does not pin one version"),
        ("./attrs.whl", "does not pin one version"),
        ("git+https://example.org/attrs", "does not pin one version"),
        ("-r other.txt", "options are not understood: -r"),
        ("-e .", "options are not understood: -e"),
        ("--index-url https://example.org", "options are not understood: --index-url"),
        ("attrs==24.2.0", "attrs==24.2.0 has no hash"),
        ("attrs==24.2.0 --hash=md5:abc", "is no hash"),
        (f"good==1 --hash={H}", "good is pinned already, in line 2"),
    ],
)
def test_anything_else_is_an_error_that_names_the_line(line: str, words: str) -> None:
    with pytest.raises(BadRequirements, match=words) as bad:
        check(f"# first\ngood==1 --hash={H}\n\n{line}\n", has_wheels=False)
    assert bad.value.message.startswith("requirements.txt:4: ")
    assert bad.value.hint or "already" in words


def test_with_wheels_hashes_are_for_all_or_for_none() -> None:
    with pytest.raises(BadRequirements, match=r"requirements.txt:2: it has no hash, but line 1 has one"):
        check(f"a==1 --hash={H}\nb==1\n", has_wheels=True)


# ── installing ──────────────────────────────────────────────────────────────────────────────────────────────


def answer(folder: Path, module: str) -> object:
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found.answer


async def test_a_unit_that_declares_nothing_has_no_environment(tmp_path: Path, keeper: Keeper) -> None:
    (tmp_path / "unit").mkdir()
    assert await Environments(tmp_path / "cache", keeper).of(tmp_path / "unit", "step") is None
    assert not (tmp_path / "cache").exists()


async def test_shipped_wheels_are_installed_once_without_any_index(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody")
    unit = tmp_path / "unit"
    wheel(unit / "wheels", "swamptest_a", "1.0", "from swamptest_b import answer", ("swamptest_b==2.0",))
    wheel(unit / "wheels", "swamptest_b", "2.0", "answer = 42")
    (unit / "requirements.txt").write_text("swamptest_a==1.0\n")
    said: list[str] = []
    environments = Environments(tmp_path / "cache", keeper)
    found: list[Path | None] = []

    async def use() -> None:
        found.append(await environments.of(unit, "step", said.append))

    with trio.fail_after(60):
        async with trio.open_nursery() as users:
            for _ in range(5):
                users.start_soon(use)
    assert len(set(found)) == 1
    assert found[0] is not None
    assert answer(found[0], "swamptest_b") == 42
    assert sum("installing the dependencies" in line for line in said) == 1
    assert any("Successfully installed" in line for line in said)
    again = await Environments(tmp_path / "cache", keeper).of(unit, "step", said.append)
    assert again == found[0]
    assert sum("installing the dependencies" in line for line in said) == 1


async def test_pins_come_from_the_operators_index_and_must_have_their_hash(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's index is a folder here: pip's own configuration decides, and a folder needs no server."""
    made = wheel(tmp_path / "index", "swamptest_c", "1.0", "answer = 7")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_USER", "1")
    unit = tmp_path / "unit"
    unit.mkdir()
    (unit / "requirements.txt").write_text(f"swamptest_c==1.0 --hash=sha256:{digest(made)}\n")
    with trio.fail_after(60):
        found = await Environments(tmp_path / "cache", keeper).of(unit, "step")
        assert found is not None
        assert answer(found, "swamptest_c") == 7
        other = tmp_path / "other"
        other.mkdir()
        (other / "requirements.txt").write_text(f"swamptest_c==1.0 --hash={H}\n")
        with pytest.raises(NotInstalled, match="from this worker's package index") as refused:
            await Environments(tmp_path / "cache", keeper).of(other, "step")
    assert "PIP_INDEX_URL or pip.conf" in (refused.value.hint or "")
    assert len(list((tmp_path / "cache" / "environments").iterdir())) == 1


async def test_without_an_index_the_error_says_so_with_the_fix(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    unit = tmp_path / "unit"
    unit.mkdir()
    (unit / "requirements.txt").write_text(f"swamptest_c==1.0 --hash={H}\n")
    said: list[str] = []
    with (
        trio.fail_after(60),
        pytest.raises(NotInstalled, match=r"pip ended with 1: .*swamptest_c==1.0") as refused,
    ):
        await Environments(tmp_path / "cache", keeper).of(unit, "step", said.append)
    assert "ship the wheels in wheels/" in (refused.value.hint or "")
    assert any("ERROR" in line for line in said)


def test_the_pip_that_comes_with_python_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = e._bundled_pip()
    assert bundled is not None, "this Python comes without ensurepip"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = e._pip()
    assert command == [sys.executable, "-I", f"{bundled}/pip"]
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert str(bundled) in said.stdout
    monkeypatch.setattr(e, "_bundled_pip", lambda: None)
    with pytest.raises(NotInstalled, match="has no pip") as refused:
        e._pip()
    assert "-m ensurepip" in (refused.value.hint or "")


async def test_an_installation_that_takes_too_long_is_ended_whole(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e, "_pip", lambda: [sys.executable, "-c", "import time; print('x'); time.sleep(60)"])
    unit = tmp_path / "unit"
    wheel(unit / "wheels", "swamptest_b", "2.0", "answer = 42")
    with trio.fail_after(60), pytest.raises(NotInstalled, match="not installed within 0 s"):
        await Environments(tmp_path / "cache", keeper, install_s=0.2).of(unit, "step")
    assert list((tmp_path / "cache" / "environments").iterdir()) == []
    assert keeper._registry.entries() == []


async def test_a_cancelled_installation_leaves_no_process(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        e, "_pip", lambda: [sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"]
    )
    unit = tmp_path / "unit"
    wheel(unit / "wheels", "swamptest_b", "2.0", "answer = 42")
    said: list[str] = []
    with trio.fail_after(60), trio.CancelScope() as scope:

        def hear(line: str) -> None:
            said.append(line)
            if line == "x":
                (running,) = keeper._registry.entries()
                assert running.group
                scope.cancel()

        await Environments(tmp_path / "cache", keeper).of(unit, "step", hear)
    assert scope.cancelled_caught
    assert keeper._registry.entries() == []


async def test_an_installation_may_not_talk_without_end(
    tmp_path: Path, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = "import sys\nfor n in range(20000): print('line', n, 'x' * 100)\nsys.exit(3)"
    monkeypatch.setattr(e, "_pip", lambda: [sys.executable, "-c", loud])
    unit = tmp_path / "unit"
    wheel(unit / "wheels", "swamptest_b", "2.0", "answer = 42")
    said: list[str] = []
    with trio.fail_after(60), pytest.raises(NotInstalled, match=r"pip ended with 3: .*line 19999"):
        await Environments(tmp_path / "cache", keeper).of(unit, "step", said.append)
    assert sum(map(len, said)) < 300_000
    assert "pip said more" in said[-1]

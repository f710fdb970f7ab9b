"""Units of `extensions/models/`: bundles, what they declare, and what is wrong with them."""

import fcntl
import hashlib
import io
import os
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from swamp_orch.definitions.bundles import BundleFiles, find_units, pack
from swamp_orch.definitions.dependencies import holding
from swamp_orch.definitions.describing import Described, Problem, read_description
from swamp_orch.definitions.describing import describe as in_a_process
from swamp_orch.definitions.extensions import LINKED, Extensions
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.types import INTERNAL, TypeRegistry, types_of
from swamp_proto.errors import Broken, InvalidDefinition, NotFound
from swamp_proto.limits import BUNDLE_FILE_MAX
from swamp_worker.models.built_in import BUILT_IN
from swamp_worker.models.interface import MethodSpec, ModelType, OutputSpec

INVENTORY = '''\
import attrs
from swamp_worker.sdk import Context, about, check, method, model, report, resource


@attrs.frozen
class Host:
    name: str


@attrs.frozen
class Settings:
    region: str = "eu"


@attrs.frozen
class Probe:
    hosts: list[str] = attrs.field(metadata=about("What to look at", minItems=1))


@model("@acme/inventory", version="2026.02.09.1", arguments=Settings, reads=["network"], secrets=["ops/token"])
class Inventory:
    """Hosts, and whether they answer."""

    host = resource(Host, "One host", keep=5)

    @method
    async def probe(self, context: Context, arguments: Probe) -> None:
        """Look at every host."""

    @check
    def reachable(self, context: Context) -> None:
        """Hosts answer."""

    @report
    def overview(self, context: Context, findings: object) -> str:
        """All hosts."""
        return ""
'''


class Describer:
    """A twin of the describing process: a line `type NAME` in a file declares one, `broken TEXT` is a problem of that line."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, folder: Path, dependencies: Path | None) -> Described:
        self.asked += 1
        types, problems = [], []
        for path in sorted(folder.rglob("*.py")):
            file = path.relative_to(folder).as_posix()
            for number, line in enumerate(path.read_text().splitlines(), 1):
                word, _, rest = line.partition(" ")
                if word == "type":
                    types.append(simple(rest, entry=f"{file}:T"))
                elif word == "broken":
                    problems.append(Problem(file, number, rest))
        return Described(tuple(types), tuple(problems))


def later() -> int:
    """A clock that stands long after every file was written."""
    return time.time_ns() + 60_000_000_000


def simple(name: str, **changes: Any) -> ModelType:
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    parts: dict[str, Any] = {
        "name": name,
        "version": "2026.01.01.1",
        "description": "A type",
        "global_arguments": nothing,
        "methods": {"go": MethodSpec("go", "", nothing)},
        "outputs": {},
    }
    return ModelType(**parts | changes)


@pytest.fixture
def units(repository: Repository) -> Path:
    return repository.extensions / "models"


@pytest.fixture
def describer() -> Describer:
    return Describer()


@pytest.fixture
def write(units: Path) -> Callable[[str, str], Path]:
    """Writes a file of a unit that has not changed for a while, each time later than the last."""
    count = 0

    def put(name: str, text: str) -> Path:
        nonlocal count
        count += 1
        path = units / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (count, count))
        return path

    return put


@pytest.fixture
def extensions(repository: Repository, describer: Describer) -> Extensions:
    return Extensions(repository, BUILT_IN, describe=describer, wall_ns=later)


def registry(extensions: Extensions) -> TypeRegistry:
    return TypeRegistry([*BUILT_IN.values(), *INTERNAL], extensions)


# ── bundles ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_sources_make_equal_bundles_wherever_and_whenever(tmp_path: Path) -> None:
    made = []
    for number, order in enumerate((("b.py", "a.py", "data/x.bin"), ("data/x.bin", "a.py", "b.py"))):
        unit = tmp_path / str(number) / "acme"
        for name in order:
            path = unit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
            path.chmod(0o644 if number else 0o600)
            os.utime(path, (number, number))
        (found,) = find_units(unit.parent)
        made.append(pack(found))
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert archive.namelist() == ["a.py", "b.py", "data/x.bin"]


def test_a_bundle_has_no_caches_hidden_files_or_links(units: Path) -> None:
    for name in (
        "acme/a.py",
        "acme/.secret",
        "acme/__pycache__/a.pyc",
        "acme/a.pyc",
        "acme/.git/config",
        "acme/w/x.whl",
    ):
        (units / name).parent.mkdir(parents=True, exist_ok=True)
        (units / name).write_bytes(b"x")
    (units / "acme/link.py").symlink_to("/etc/passwd")
    (units / "acme/linked").symlink_to("/etc")
    (units / "elsewhere.py").symlink_to("/etc/passwd")
    (units / "README.md").write_text("no unit")
    (units / "notes").mkdir()
    (units / "notes/readme.txt").write_text("no unit either")
    (found,) = find_units(units)
    assert (found.name, [file.path for file in found.files]) == ("acme", ["a.py", "w/x.whl"])


def test_a_link_among_the_units_is_said(
    extensions: Extensions, write: Any, units: Path, tmp_path: Path
) -> None:
    types = registry(extensions)
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere/unit.py", "alone.py"):
        (tmp_path / name).write_text("type @a/linked\n")
    (units / "folder").symlink_to(tmp_path / "elsewhere")
    (units / "alone.py").symlink_to(tmp_path / "alone.py")
    (units / "assets").symlink_to("/etc/ssl")
    told = [f"extensions/models/{name}: {LINKED}" for name in ("alone.py", "folder")]
    with pytest.raises(NotFound) as caught:
        types.get("@a/linked")
    assert all(text in str(caught.value) for text in told)
    assert [problem.text for problem in types.problems()] == told
    write("good.py", "type @a/good\n")
    assert types.get("@a/good").name == "@a/good"
    (units / "folder").unlink()
    (units / "alone.py").unlink()
    assert types.problems() == ()


def test_a_file_that_can_be_executed_stays_so(units: Path, tmp_path: Path, repository: Repository) -> None:
    (units / "acme").mkdir()
    (units / "acme/a.py").write_text("")
    (units / "acme/tool").write_text("#!/bin/sh\n")
    (units / "acme/tool").chmod(0o700)
    files = BundleFiles(repository.bundles)
    sha256 = files.put(pack(find_units(units)[0]))
    (tmp_path / "out").mkdir()
    files.unpack(sha256, tmp_path / "out")
    assert os.access(tmp_path / "out/tool", os.X_OK)
    assert not (tmp_path / "out/a.py").stat().st_mode & 0o111


def test_a_bundle_is_named_by_its_content_and_repaired_when_cut(
    units: Path, repository: Repository, tmp_path: Path
) -> None:
    (units / "a.py").write_text("x = 1\n")
    files = BundleFiles(repository.bundles)
    data = pack(find_units(units)[0])
    sha256 = files.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert files.path(sha256).read_bytes() == data
    assert files.path(sha256) == repository.bundles / f"{sha256}.zip"
    files.path(sha256).write_bytes(data[:10])
    with pytest.raises(InvalidDefinition, match="not what its name says"):
        files.unpack(sha256, tmp_path)
    assert files.put(data) == sha256
    assert files.path(sha256).read_bytes() == data


def test_a_unit_that_is_too_large_is_refused_by_name(units: Path, extensions: Extensions, write: Any) -> None:
    write("good.py", "type @a/good\n")
    write("big/a.py", "type @a/big\n")
    with (units / "big/huge").open("wb") as file:
        file.truncate(BUNDLE_FILE_MAX + 1)
    found = extensions.catalogue()
    assert list(found.types) == ["@a/good"]
    (problem,) = found.problems
    assert problem.text.startswith("extensions/models/big has 64.0 MiB; a bundle may have 64 MiB")


# ── what is looked at again ─────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_described_twice_not_even_by_another_process(
    repository: Repository, extensions: Extensions, describer: Describer, write: Any
) -> None:
    write("one.py", "type @a/one\n")
    write("two/a.py", "type @a/two\n")
    first = extensions.catalogue()
    assert list(first.types) == ["@a/one", "@a/two"]
    assert describer.asked == 2
    assert extensions.catalogue() is first
    other = Extensions(repository, BUILT_IN, describe=describer, wall_ns=later)
    assert other.catalogue().types == first.types
    assert describer.asked == 2


def test_a_change_is_noticed_at_the_next_use(
    extensions: Extensions, describer: Describer, write: Any, units: Path
) -> None:
    types = registry(extensions)
    write("one.py", "type @a/one\n")
    before = types.get("@a/one")
    write("one.py", "type @a/one\ntype @a/more\n")
    assert types.get("@a/more").bundle != before.bundle
    assert types.get("@a/one").bundle == types.get("@a/more").bundle
    (units / "one.py").unlink()
    with pytest.raises(NotFound):
        types.get("@a/one")
    assert types.names() == sorted(BUILT_IN)
    assert describer.asked == 2


def test_a_change_in_the_instant_of_the_last_look_is_noticed(
    repository: Repository, describer: Describer, units: Path
) -> None:
    """File times are coarse: same size, same time, another content."""
    path = units / "one.py"
    path.write_text("type @a/one\n")
    extensions = Extensions(repository, BUILT_IN, describe=describer)
    assert list(extensions.catalogue().types) == ["@a/one"]
    unit = find_units(units)[0]
    with path.open("r+") as file:  # in place: the same inode
        file.write("type @a/two\n")
    os.utime(path, ns=(unit.newest_ns, unit.newest_ns))
    assert list(extensions.catalogue().types) == ["@a/two"]


def test_what_is_kept_by_another_version_of_swamp_is_described_again(
    repository: Repository, describer: Describer, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one.py", "type @a/one\n")
    Extensions(repository, BUILT_IN, describe=describer, wall_ns=later).catalogue()
    monkeypatch.setattr("swamp_orch.definitions.extensions.FORMAT", "another")
    assert list(Extensions(repository, BUILT_IN, describe=describer, wall_ns=later).catalogue().types) == [
        "@a/one"
    ]
    assert describer.asked == 2


def test_a_broken_cache_is_made_anew(repository: Repository, describer: Describer, write: Any) -> None:
    write("one.py", "type @a/one\n")
    Extensions(repository, BUILT_IN, describe=describer, wall_ns=later).catalogue()
    for path in (repository.state / "types").iterdir():
        path.write_text('{"format": 1}')
    for path in repository.bundles.iterdir():
        path.unlink()
    found = Extensions(repository, BUILT_IN, describe=describer, wall_ns=later).catalogue()
    assert list(found.types) == ["@a/one"]
    assert (repository.bundles / f"{found.types['@a/one'].bundle}.zip").is_file()


def test_a_bundle_that_is_not_current_any_more_still_says_its_types(
    extensions: Extensions, repository: Repository, write: Any
) -> None:
    write("one.py", "type @a/one\n")
    old = extensions.catalogue().types["@a/one"]
    write("one.py", "nothing\n")
    assert extensions.catalogue().types == {}
    other = Extensions(repository, BUILT_IN, describe=Describer())
    assert other.of_bundle("@a/one", old.bundle) == old
    (repository.bundles / f"{old.bundle}.zip").unlink()
    with pytest.raises(
        NotFound, match=r"the code of @a/one that this run started with is not there any more"
    ):
        other.of_bundle("@a/one", old.bundle)


# ── what is wrong ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_broken_unit_is_an_error_for_its_types_and_nobody_else(extensions: Extensions, write: Any) -> None:
    types = registry(extensions)
    write("good.py", "type @a/good\n")
    write("bad.py", "\n# @a/bad\nbroken SyntaxError: invalid syntax\n")
    assert types.get("@a/good").name == "@a/good"
    assert types.get("command/shell").name == "command/shell"
    with pytest.raises(InvalidDefinition) as caught:
        types.get("@a/bad")
    assert str(caught.value) == (
        "the model type @a/bad can not be used: extensions/models/bad.py:3: SyntaxError: invalid syntax"
    )
    assert caught.value.error_code == "broken_extension"
    with pytest.raises(NotFound) as unknown:
        types.get("@a/goot")
    assert str(unknown.value) == (
        "Unknown model type: @a/goot. Did you mean '@a/good'?"
        " Extensions that can not be used: extensions/models/bad.py:3: SyntaxError: invalid syntax"
    )
    assert types.names() == ["@a/good", *sorted(BUILT_IN)]
    assert [problem.text for problem in types.problems()] == [
        "extensions/models/bad.py:3: SyntaxError: invalid syntax"
    ]


def test_a_type_in_two_units_can_be_used_from_neither(
    extensions: Extensions, write: Any, units: Path
) -> None:
    types = registry(extensions)
    write("one.py", "'''\ntype @a/t\n'''\nclass T: pass\n")
    write("two/models/b.py", "'''\ntype @a/t\n'''\n\nclass T: pass\n")
    with pytest.raises(InvalidDefinition) as caught:
        types.get("@a/t")
    assert str(caught.value).endswith(
        "extensions/models/one.py:4: the type @a/t is declared more than once, also in extensions/models/two/models/b.py:5"
    )
    (units / "two/models/b.py").unlink()
    assert types.get("@a/t").name == "@a/t"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("command/shell", "the type command/shell comes with swamp and can not be declared again"),
        ("swamp/worker", "names that start with swamp/ are swamp's own"),
        ("@a/b.c", "'@a/b.c' is not a type name"),
    ],
)
def test_names_that_can_not_be_declared(extensions: Extensions, write: Any, name: str, said: str) -> None:
    types = registry(extensions)
    write("one.py", f"type {name}\ntype @a/fine\n")
    assert types.get("@a/fine").name == "@a/fine"
    (problem,) = types.problems()
    assert problem.text.startswith("extensions/models/one.py: ")
    assert said in problem.text
    assert name not in [found.name for found in extensions.catalogue().types.values()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_arguments": {"type": "array"}}, "the schema of global arguments must be of type object"),
        (
            {
                "methods": {
                    "go": MethodSpec("go", "", {"type": "object", "properties": {"a": {"format": "phone"}}})
                }
            },
            "the schema of the arguments of 'go': $.a: there is no format \"phone\"",
        ),
        (
            {
                "methods": {
                    "go": MethodSpec("go", "", {"type": "object", "properties": {"a": {"$ref": "#/x"}}})
                }
            },
            "$.a: the keyword '$ref' is not understood",
        ),
        ({"methods": {}}, "@a/t has no methods"),
        ({"entry": "gone.py:T"}, "its entry 'gone.py:T' names no class in a file of its unit"),
        ({"outputs": {"o": OutputSpec("o", "stream", "", "")}}, "the output 'o' is a 'stream'"),
        ({"reads": frozenset({"Big Model"})}, "@a/t reads 'Big Model', which is not a model name"),
        ({"secrets": frozenset({"token"})}, "@a/t declares the secret 'token'; write VAULT/KEY"),
    ],
)
def test_a_type_that_says_nonsense_of_itself(
    repository: Repository, write: Any, changes: dict[str, Any], said: str
) -> None:
    write("one.py", "class T: pass\n")
    found = simple("@a/t", **{"entry": "one.py:T", **changes})
    types = registry(Extensions(repository, BUILT_IN, describe=lambda folder, _: Described((found,))))
    with pytest.raises(InvalidDefinition) as caught:
        types.get("@a/t")
    assert said in str(caught.value)


def test_what_describing_prints_is_read_strictly() -> None:
    assert (
        read_description(b"not json")
        .problems[0]
        .text.startswith("describing it gave no description but: 'not json'")
    )
    found = read_description(b'{"types": [{"name": "@a/t"}], "problems": []}')
    assert found.types == ()
    assert found.problems[0].text == "the type '@a/t' does not describe itself properly: version is missing"


def test_who_wants_a_type_that_did_not_change_does_not_wait_while_another_is_described(
    repository: Repository, write: Any
) -> None:
    twin, slow, go_on = Describer(), threading.Event(), threading.Event()

    def describe(folder: Path, dependencies: Path | None) -> Described:
        if (folder / "slow.py").exists():
            slow.set()
            assert go_on.wait(60)
        return twin(folder, dependencies)

    types = registry(Extensions(repository, BUILT_IN, describe=describe, wall_ns=later))
    write("quick.py", "type @a/quick\n")
    found = types.get("@a/quick")
    write("slow.py", "type @a/slow\n")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(types.get, "@a/slow")
        try:
            assert slow.wait(60)
            assert types.get("@a/quick") == found
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result(20).name == "@a/slow"


# ── with real processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_type_is_described_by_its_own_code(
    call: Callable[..., Any], write: Any, repository: Repository
) -> None:
    write("inventory.py", INVENTORY)
    found = call("model.type_describe", type="@acme/inventory")
    assert found["description"] == "Hosts, and whether they answer."
    assert found["methods"] == [
        {
            "name": "probe",
            "description": "Look at every host.",
            "arguments": {
                "type": "object",
                "properties": {
                    "hosts": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "What to look at",
                        "minItems": 1,
                    }
                },
                "required": ["hosts"],
                "additionalProperties": False,
            },
        }
    ]
    assert found["checks"] == [
        {"name": "reachable", "description": "Hosts answer.", "labels": [], "appliesTo": []}
    ]
    assert [report["name"] for report in found["reports"]] == ["overview"]
    assert (found["secrets"], found["reads"]) == (["ops/token"], ["network"])
    assert (repository.bundles / f"{found['bundle']}.zip").is_file()
    assert found["entry"] == "inventory.py:Inventory"
    types = types_of(repository)  # another process would find it kept
    assert types.get("@acme/inventory").bundle == found["bundle"]


def wait_for_death(pid: int) -> None:
    """Until a process runs no more; whose child it became reaps it in its own time."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} lives")


def test_code_that_does_harm_while_it_is_imported_harms_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAMP_TOKEN", "a.secret")
    pid = tmp_path / "pid"

    def asked(text: str) -> Described:
        (tmp_path / "unit").mkdir(exist_ok=True)
        (tmp_path / "unit/unit.py").write_text(text)
        return in_a_process(tmp_path / "unit")

    for limit_s in (4.0, 40.0):  # the first in which the import gets so far
        monkeypatch.setattr("swamp_orch.definitions.describing.DESCRIBE_S", limit_s)
        late = asked(
            f"import os, time\nif not os.fork():\n    open({str(pid)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)\n"
        )
        assert late.problems[0].text.startswith(f"importing it took more than {limit_s:g} s")
        assert late.passing
        if pid.exists() and pid.read_text():
            break
    wait_for_death(int(pid.read_text()))
    monkeypatch.setattr("swamp_orch.definitions.describing.DESCRIBE_S", 30.0)
    ended = asked("import os\nos._exit(7)\n")
    assert ended.problems[0].text.startswith("importing it ended the process with exit code 7")
    greedy = asked("x = bytearray(2 * 1024 ** 3)\n")
    assert greedy.problems == (Problem("unit.py", 1, "MemoryError"),)
    told = asked("import os\nprint('noise')\nraise ValueError(os.environ.get('SWAMP_TOKEN'))\n")
    assert told.problems == (Problem("unit.py", 3, "ValueError: None"),)


def test_a_unit_is_described_with_what_it_depends_on(call: Callable[..., Any], units: Path) -> None:
    """Without an index: from the wheel that is shipped with it."""
    (units / "acme/wheels").mkdir(parents=True)
    about = "swamptest_units-1.0.dist-info"
    with zipfile.ZipFile(units / "acme/wheels/swamptest_units-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("swamptest_units.py", "NAME = '@acme/metres'\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: swamptest_units\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    (units / "acme/metres.py").write_text(
        "import swamptest_units\nfrom swamp_worker.sdk import method, model\n\n\n"
        "@model(swamptest_units.NAME, version='2026.02.09.1')\nclass Metres:\n"
        "    @method\n    def measure(self, context):\n        pass\n"
    )
    assert call("model.type_describe", type="@acme/metres")["entry"] == "metres.py:Metres"
    (units / "acme/wheels/swamptest_units-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(NotFound, match="the dependencies could not be installed from the wheels shipped"):
        call("model.type_describe", type="@acme/metres")


def test_an_environment_is_in_use_while_a_unit_is_described_with_it(tmp_path: Path) -> None:
    """The lock is the one that who makes room asks for; what is gone already is said, and tried again."""
    content = tmp_path / "key" / "content"
    content.mkdir(parents=True)
    other = os.open(content.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with holding(content), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)
    content.rmdir()
    for _ in range(2):
        with pytest.raises(Broken, match="taken away"), holding(content):
            raise AssertionError("it is not there")
        if content.parent.exists():
            content.parent.rmdir()
    with holding(None):
        pass

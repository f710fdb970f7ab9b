"""Steps of extension types: what an order says, which code a run keeps, and what a step may see."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from swamp_orch.api.application import Application, LiveApplication
from swamp_orch.core.runplan import StepKey
from swamp_orch.definitions.describing import Described
from swamp_orch.definitions.extensions import Extensions
from swamp_orch.definitions.models import Models
from swamp_orch.definitions.repository import Repository, find, init
from swamp_orch.definitions.types import INTERNAL, TypeRegistry
from swamp_orch.definitions.workflows import Workflows
from swamp_orch.engine.assembly import Assembled, assemble
from swamp_orch.engine.orders import Order, Orders, TypeNotFixed
from swamp_orch.engine.runs import Run
from swamp_orch.expressions.secret import SecretRef
from swamp_orch.serve import wall_ms
from swamp_orch.store.sqlite import open_store
from swamp_proto.errors import SwampError
from swamp_proto.limits import BUNDLE_UNUSED_KEPT_S, Tempo
from swamp_proto.messages.dispatch import Dispatch, Finished, Outcome, Program
from swamp_worker.execution.interface import Control, LogSink
from swamp_worker.models.built_in import BUILT_IN
from swamp_worker.models.interface import CheckSpec, MethodSpec, ModelType, OutputSpec, ReportSpec

TEXT = {"type": "string"}
PROBE = {
    "type": "object",
    "properties": {
        "hosts": {"type": "array", "items": TEXT},
        "count": {"type": "integer"},
        "note": TEXT,
        "options": {"type": "object", "properties": {"pin": {"type": "string", "sensitive": True}}},
    },
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SHARED = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "default": "eu"},
        "token": {"type": "string", "sensitive": True},
        "size": {"type": "integer", "maximum": 9},
    },
    "additionalProperties": False,
}


def inventory(entry: str) -> ModelType:
    return ModelType(
        name="@acme/inventory",
        version="2026.02.09.1",
        description="Hosts",
        global_arguments=SHARED,
        methods={
            "probe": MethodSpec("probe", "", PROBE),
            "look": MethodSpec("look", "", NOTHING, mutates=False),
        },
        outputs={"log": OutputSpec("log", "file", "text/plain", "")},
        entry=entry,
        reads=frozenset({"network"}),
        secrets=frozenset({"ops/declared", "ops/worker-token-w1"}),
        checks={
            "always": CheckSpec("always", ""),
            "looks": CheckSpec("looks", "", applies_to=("look",)),
        },
        reports={
            "@acme/overview": ReportSpec("@acme/overview", ""),
            "@acme/all": ReportSpec("@acme/all", "", scope="workflow"),
            "costs": ReportSpec("costs", ""),
        },
    )


def describer(folder: Path, dependencies: Path | None) -> Described:
    """A twin of the describing process: every unit with a file `inventory.py` declares the type."""
    found = [path for path in folder.rglob("inventory.py") if "broken" not in path.read_text()]
    return Described(tuple(inventory(f"{path.name}:Inventory") for path in found))


class Place:
    def __init__(self, root: Path) -> None:
        init(root)
        self.repository: Repository = find(root)
        self.source = root / "extensions/models/inventory.py"
        self.write("# one")

    def write(self, text: str) -> str:
        """The sources of the type; answers the name of their bundle."""
        self.source.write_text(text)
        return self.types().get("@acme/inventory").bundle if "broken" not in text else ""

    def types(self) -> TypeRegistry:
        extensions = Extensions(self.repository, BUILT_IN, describe=describer)
        return TypeRegistry([*BUILT_IN.values(), *INTERNAL], extensions)

    def model(self, name: str, more: str = "", kind: str = "@acme/inventory") -> None:
        path = self.repository.models / kind / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"type: '{kind}'\nid: {_uuid(name)}\nname: {name}\n{more}")

    def workflow(self, steps: str, more: str = "") -> None:
        path = self.repository.workflows / "workflow-w.yaml"
        path.write_text(f"id: {_uuid('w')}\nname: w\n{more}jobs:\n  - name: j\n    steps:\n{steps}")


def _uuid(name: str) -> str:
    text = hashlib.sha256(name.encode()).hexdigest()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:32]}"


def step(name: str, inputs: str = "{}", model: str = "hosts", method: str = "probe", more: str = "") -> str:
    task = f"{{type: model_method, modelIdOrName: {model}, methodName: {method}, inputs: {inputs}}}"
    return f"      - {{name: {name}, task: {task}{more}}}\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ── one order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.define
class Desk:
    """Orders of the first step of a place's workflow, with secrets and data at hand."""

    place: Place
    secrets: dict[tuple[str, str], str] = attrs.field(factory=dict)
    records: dict[tuple[str, str], Any] = attrs.field(factory=dict)

    def order(self, **inputs: Any) -> Order:
        types = self.place.types()
        orders = Orders(
            types,
            Models(self.place.repository, types),
            Workflows(self.place.repository),
            functions={
                "data.latest": lambda model, name: self.records.get((model, name)),
                "data.query": lambda *_: [],
            },
            read_secret=self._read,
            environment={},
        )
        request = orders.workflow_request({"name": "w", "inputs": inputs}, {})
        run = Run(self, orders, request)  # type: ignore[arg-type] # an order needs only its clock
        state = run.state(StepKey("j", "s"))
        try:
            found = orders.make(run, state)
        except TypeNotFixed as missing:
            orders.code.fix(run.id, missing.definition)
            found = orders.make(run, state)
        assert found is not None
        return found

    def _read(self, reference: SecretRef) -> str:
        return self.secrets[reference.vault, reference.key]

    @staticmethod
    def clock_ms() -> int:
        return 1_700_000_000_000


@pytest.fixture
def desk(place: Place) -> Desk:
    return Desk(place)


def sent(order: Order) -> Dispatch:
    return order.dispatch("d", attempt=1, fence=1)


def test_a_dispatch_names_the_code_and_everything_that_runs_with_it(desk: Desk) -> None:
    desk.place.model("hosts", "version: 3\ntags: {team: net}\n")
    desk.place.workflow(step("s"))
    message = sent(desk.order())
    bundle = desk.place.types().get("@acme/inventory").bundle
    assert message.program == Program(
        bundle, "inventory.py:Inventory", ("always",), ("@acme/overview", "costs")
    )
    assert (desk.place.repository.bundles / f"{bundle}.zip").is_file()
    assert (message.model_version, message.model_tags) == (3, {"team": "net"})
    assert message.global_arguments == {"region": "eu"}


def test_a_shell_step_names_no_code(desk: Desk) -> None:
    desk.place.model("sh", "methods: {execute: {arguments: {run: echo}}}\n", kind="command/shell")
    desk.place.workflow(step("s", model="sh", method="execute"))
    message = sent(desk.order())
    assert (message.program, message.global_arguments) == (None, {})


@pytest.mark.parametrize(
    ("definition", "workflow", "method", "checks", "reports"),
    [
        ("", "", "probe", ("always",), ("@acme/overview", "costs")),
        ("", "", "look", ("looks",), ("@acme/overview", "costs")),
        ("checks: {skip: [always, looks]}\n", "", "look", (), ("@acme/overview", "costs")),
        ("checks: {require: [always]}\n", "", "look", ("always", "looks"), ("@acme/overview", "costs")),
        ("checks: {require: [always], skip: [always]}\n", "", "probe", (), ("@acme/overview", "costs")),
        ("reports: {skip: [costs]}\n", "", "probe", ("always",), ("@acme/overview",)),
        ("", "reports: {skip: [costs]}\n", "probe", ("always",), ("@acme/overview",)),
        ("reports: {skip: [costs]}\n", "reports: {require: [costs]}\n", "probe", ("always",), ("@acme/overview", "costs")),
        ("reports: {require: [costs], skip: [costs]}\n", "", "probe", ("always",), ("@acme/overview",)),
    ],
)  # fmt: skip
def test_checks_and_reports_are_those_the_definition_and_the_workflow_choose(
    desk: Desk, definition: str, workflow: str, method: str, checks: Any, reports: Any
) -> None:
    desk.place.model("hosts", definition)
    desk.place.workflow(step("s", method=method), workflow)
    program = desk.order().program
    assert program is not None
    assert (program.checks, program.reports) == (checks, reports)


def test_arguments_keep_the_type_of_a_whole_expression(desk: Desk) -> None:
    desk.place.model("hosts")
    desk.place.workflow(
        step(
            "s",
            '{hosts: "${{ inputs.hosts }}", count: "${{ size(inputs.hosts) }}", note: "n=${{ size(inputs.hosts) }}"}',
        ),
        "inputs: {hosts: {type: array, items: {type: string}}}\n",
    )
    assert sent(desk.order(hosts=["a", "b"])).arguments == {"hosts": ["a", "b"], "count": 2, "note": "n=2"}


def test_a_value_that_does_not_fit_is_refused_before_anything_is_sent(desk: Desk) -> None:
    desk.place.model("hosts")
    desk.place.workflow(step("s", '{count: "${{ inputs.n }}"}'), "inputs: {n: {type: string}}\n")
    with pytest.raises(SwampError) as caught:
        desk.order(n="five")
    assert caught.value.message == (
        'Input validation failed:\n  workflows/workflow-w.yaml:7: count must be an integer, not "five"'
    )
    desk.place.model("hosts", "methods:\n  probe:\n    arguments:\n      count: ${{ 'f' + 'ive' }}\n")
    desk.place.workflow(step("s"))
    with pytest.raises(SwampError) as stored:
        desk.order()
    assert stored.value.message.endswith(
        'models/@acme/inventory/hosts.yaml:7: count must be an integer, not "five"'
    )
    desk.place.model("hosts", "globalArguments:\n  region: eu\n  size: ${{ 5 * 5 }}\n")
    desk.place.workflow(step("s"))
    with pytest.raises(SwampError) as shared:
        desk.order()
    assert shared.value.message == (
        "models/@acme/inventory/hosts.yaml:4: the global arguments of hosts do not fit @acme/inventory:\n"
        "  size must be at most 9"
    )


def test_secrets_reach_arguments_at_dispatch_and_nothing_before(desk: Desk) -> None:
    desk.secrets = {("ops", "token"): "geheim-1", ("ops", "pin"): "geheim-2"}
    desk.place.model("hosts", 'globalArguments:\n  token: ${{ vault.get("ops", "token") }}\n')
    inputs = '{options: {pin: \'${{ vault.get("ops", "pin") }}\'}, note: "${{ inputs.word }}"}'
    desk.place.workflow(step("s", inputs), "inputs: {word: {type: string, sensitive: true}}\n")
    order = desk.order(word="passwort")
    assert "geheim" not in repr(order) + repr(order.arguments) + repr(order.global_arguments)
    message = sent(order)
    assert message.global_arguments == {"region": "eu", "token": "geheim-1"}
    assert message.arguments == {"options": {"pin": "geheim-2"}, "note": "passwort"}
    assert {"geheim-1", "geheim-2", "passwort"} <= set(message.secrets)
    assert "geheim" not in repr(message)


def test_another_definition_is_read_as_it_evaluates_and_secrets_in_it_stay_deferred(desk: Desk) -> None:
    desk.secrets = {("ops", "token"): "geheim"}
    desk.place.model(
        "other",
        "version: 7\ninputs: {zone: {type: string, default: b}, must: {type: string, required: true}}\nglobalArguments:\n"
        '  region: eu-${{ inputs.zone }}\n  token: ${{ vault.get("ops", "token") }}\n  lost: ${{ inputs.must }}\n',
    )
    desk.place.model("hosts")
    inputs = (
        '{note: "${{ model.other.input.region + string(model.other.definition.version) }}",'
        ' options: {pin: "${{ model.other.input.token }}"}, count: "${{ has(model.other.input.lost) ? 1 : 0 }}"}'
    )
    desk.place.workflow(step("s", inputs))
    order = desk.order()
    assert "geheim" not in repr(order.arguments)
    assert sent(order).arguments == {"note": "eu-b7", "options": {"pin": "geheim"}, "count": 0}
    assert not order.scope.may_use_secret("ops", "token")


def test_models_that_refer_to_each_other_in_a_circle_are_an_error(desk: Desk) -> None:
    desk.place.model("other", "globalArguments: {region: '${{ model.hosts.input.region }}'}\n")
    desk.place.model("hosts", "globalArguments: {region: '${{ model.other.input.region }}'}\n")
    desk.place.workflow(step("s"))
    with pytest.raises(
        SwampError, match="global arguments of models refer to each other: other -> hosts -> other"
    ):
        desk.order()


def test_sensitive_arguments_are_masked_at_any_depth(desk: Desk) -> None:
    """Also those of the definition, which come from the environment: a file must not hold them."""
    desk.place.model("hosts", 'globalArguments:\n  token: ${{ "to" + "ken" }}\n')
    desk.place.workflow(step("s", '{options: {pin: "${{ inputs.pin }}"}}'), "inputs: {pin: {type: string}}\n")
    assert {"token", "1234"} <= set(sent(desk.order(pin="1234")).secrets)


# ── what it may see ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_may_see_what_its_definition_names_and_its_type_declares(desk: Desk) -> None:
    desk.secrets = {("ops", key): "x" for key in ("token", "pin")}
    desk.place.model("other")
    desk.place.model(
        "hosts",
        'globalArguments:\n  token: ${{ vault.get("ops", "token") }}\n'
        'methods:\n  probe:\n    arguments:\n      note: ${{ string(data.latest("stored", "x") == null) }}\n'
        '  look:\n    arguments: {a: \'${{ data.latest("of-another-method", "x") }}\'}\n',
    )
    inputs = (
        '{hosts: \'${{ data.query("modelName == \\"asked\\" || modelName in [\\"listed\\"] && name != \\"y\\"") }}\','
        " count: '${{ size(model.other.definition.name) }}',"
        ' options: {pin: \'${{ vault.get("ops", "pin") }}\'}}'
    )
    desk.place.workflow(step("s", inputs))
    scope = desk.order().scope
    assert (scope.model, scope.model_id) == ("hosts", _uuid("hosts"))
    assert scope.models == {"hosts", "network", "stored", "asked", "listed", "other"}
    assert scope.secrets == {("ops", "declared"), ("ops", "token"), ("ops", "pin")}
    assert scope.vaults == frozenset()
    assert scope.may_use_secret("ops", "pin")
    assert not scope.may_use_secret("ops", "root")


def test_an_argument_that_names_a_model_opens_it_when_it_is_written_out(desk: Desk) -> None:
    """`file/read` says of its `model` that it names one; a value that only became a name opens nothing."""
    desk.place.model(
        "reader", "methods:\n  read:\n    arguments: {name: a, model: of-the-definition}\n", "file/read"
    )
    desk.place.workflow(step("s", "{model: of-the-step}", "reader", "read"))
    assert desk.order().scope.models == {"reader", "of-the-definition", "of-the-step"}
    computed = "inputs:\n  type: object\n  properties: {which: {type: string}}\n"
    desk.place.workflow(step("s", "{model: '${{ inputs.which }}'}", "reader", "read"), computed)
    assert desk.order(which="stored").scope.models == {"reader", "of-the-definition"}


def test_what_is_computed_opens_nothing_but_the_keys_of_a_vault_that_is_written_out(desk: Desk) -> None:
    desk.secrets = {("ops", "k"): "x", ("other", "k"): "x"}
    desk.place.model("hosts")
    inputs = (
        '{note: \'${{ vault.get("ops", inputs.k) + vault.get(inputs.v, "k") }}\','
        ' hosts: \'${{ data.latest(inputs.m, "x") == null ? [] : data.query("modelName == \\"" + inputs.m + "\\"") }}\'}'
    )
    desk.place.workflow(
        step("s", inputs), "inputs: {k: {type: string}, v: {type: string}, m: {type: string}}\n"
    )
    scope = desk.order(k="k", v="other", m="private").scope
    assert scope.vaults == {"ops"}
    assert scope.models == {"hosts", "network"}
    assert scope.secrets == {("ops", "declared")}
    assert not scope.may_use_secret("other", "k")


def test_infrastructure_secrets_are_opened_by_no_declaration(desk: Desk) -> None:
    """Neither by the type (`secrets`), nor by a computed key of their vault."""
    desk.secrets = {("ops", "k"): "x"}
    desk.place.model("hosts")
    desk.place.workflow(
        step("s", "{note: '${{ vault.get(\"ops\", inputs.k) }}'}"), "inputs: {k: {type: string}}\n"
    )
    scope = desk.order(k="k").scope
    assert not scope.may_use_secret("ops", "worker-token-w1")
    assert not scope.may_use_secret("ops", "server-token-main")
    assert scope.may_use_secret("ops", "anything-else")


INJECTED = '${{ vault.get("ops", "root") }} ${{ data.latest("private", "x") }} ${{ data.query("modelName == \\"private\\"") }}'


@pytest.mark.parametrize("source", ["an input", "a record", "a whole map of inputs", "a method run"])
def test_injection_a_value_that_looks_like_an_expression_opens_nothing(desk: Desk, source: str) -> None:
    desk.secrets = {("ops", "root"): "geheim"}
    desk.records = {("stored", "x"): {"attributes": {"text": INJECTED}}}
    desk.place.model("hosts", "inputs: {extra: {type: string, default: ''}}\n")
    declared = "inputs: {text: {type: string, default: ''}, all: {type: object, default: {}, additionalProperties: true}}\n"
    expected = {"hosts", "network"}
    given: dict[str, Any] = {}
    match source:
        case "an input":
            desk.place.workflow(step("s", '{note: "${{ inputs.text }}"}'), declared)
            given = {"text": INJECTED}
        case "a record":
            desk.place.workflow(
                step("s", '{note: \'${{ data.latest("stored", "x").attributes.text }}\'}'), declared
            )
            expected.add("stored")
        case "a whole map of inputs":
            desk.place.workflow(step("s", '"${{ inputs.all }}"'), declared)
            given = {"all": {"note": INJECTED}}
        case "a method run":
            types = desk.place.types()
            models = Models(desk.place.repository, types)
            orders = Orders(
                types,
                models,
                Workflows(desk.place.repository),
                functions={},
                read_secret=desk._read,
                environment={},
            )
            request = orders.method_request(
                {"name": "hosts", "method": "probe", "inputs": {"note": INJECTED}}, {}
            )
            run = Run(desk, orders, request)  # type: ignore[arg-type]
            order = orders.make(run, run.state(StepKey("method", "probe")))
    if source != "a method run":
        order = desk.order(**given)
    assert order is not None
    assert order.arguments["note"] == INJECTED
    assert order.scope.models == expected
    assert order.scope.secrets == {("ops", "declared")}
    assert order.scope.vaults == frozenset()
    assert sent(order).arguments["note"] == INJECTED


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Loud:
    """A reporter: a fault fails the test; warnings are kept."""

    def __init__(self) -> None:
        self.warned: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        return

    def warning(self, event: str, **fields: Any) -> None:
        self.warned.append((event, fields))

    def fault(self, event: str, error: BaseException, **fields: Any) -> None:
        raise error


class Hands:
    """An executor: it does nothing, and remembers what it was to do. `meanwhile` is called with each step's name."""

    def __init__(self, meanwhile: Callable[[str], object] = lambda step: None, hang: str = "") -> None:
        self.programs: dict[str, Program | None] = {}
        self.hanging = trio.Event()
        self._meanwhile = meanwhile
        self._hang = hang

    async def execute(self, dispatch: Dispatch, sink: LogSink, control: Control) -> Finished:
        self.programs[dispatch.place.step] = dispatch.program
        await trio.to_thread.run_sync(self._meanwhile, dispatch.place.step)
        if dispatch.place.step == self._hang:
            self.hanging.set()
            await trio.sleep_forever()
        return Finished(dispatch.dispatch, dispatch.fence, Outcome.SUCCEEDED, None, (), 0, 0, 0, wall_ms(), 1)

    def bundle(self, step: str) -> str:
        program = self.programs[step]
        return program.bundle if program is not None else ""


@attrs.define
class Site:
    place: Place
    parts: Assembled
    live: LiveApplication
    reporter: Loud

    async def run(self) -> dict[str, Any]:
        run_id = (await self.live.call("workflow.run", {"name": "w"}))["runId"]
        return await self.ended(run_id)

    async def ended(self, run_id: str) -> dict[str, Any]:
        follower = await self.live.follow("run.attach", {"runId": run_id})
        text = b""
        while chunk := await follower.more():
            text += chunk
        last: dict[str, Any] = json.loads(text.splitlines()[-1])
        return last


def site(place: Place, hands: Hands, store: Any, *, workers: bool = False) -> Any:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def opened() -> Any:
        application = Application(place.repository, store)
        application.__dict__["types"] = place.types()
        reporter = Loud()
        async with assemble(
            application, reporter=reporter, tempo=Tempo(), workers=workers, clock_ms=wall_ms
        ) as parts:
            parts.engine.executor = hands
            yield Site(place, parts, LiveApplication(application, parts.live()), reporter)

    return opened()


@pytest.fixture
def store(place: Place) -> Iterator[Any]:
    with closing(open_store(place.repository.data)) as opened:
        yield opened


async def test_a_run_in_flight_keeps_the_code_it_started_with(place: Place, store: Any) -> None:
    place.model("hosts")
    place.workflow(step("one") + step("two", more=", dependsOn: [one]"))
    first = place.types().get("@acme/inventory").bundle
    hands = Hands(lambda name: place.write("# two") if name == "one" else None)
    with trio.fail_after(60):
        async with site(place, hands, store) as here:
            assert (await here.run())["status"] == "succeeded"
            assert hands.bundle("one") == hands.bundle("two") == first
            assert (await here.run())["status"] == "succeeded"
    second = hands.bundle("two")
    assert second not in ("", first)
    rows = [json.loads(record.content) for record in _steps(store)]
    assert sorted(row["bundle"] for row in rows) == sorted([first, first, second, second])


def _steps(store: Any) -> Any:
    from swamp_orch.store.interface import Comparison, Selection, Term

    return store.select(Selection((Term("specName", Comparison.EQ, ("step",)),)))


async def test_a_run_that_is_taken_over_goes_on_with_the_code_it_started_with(
    place: Place, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the source is gone, and so with a bundle that only the run's records name."""
    place.model("hosts")
    place.workflow(step("one") + step("two", more=", dependsOn: [one]"))
    first = place.types().get("@acme/inventory").bundle
    hands = Hands(hang="two")
    with trio.fail_after(60):
        async with site(place, hands, store, workers=True) as here:
            await here.parts.reconcile()
            run_id = (await here.live.call("workflow.run", {"name": "w"}))["runId"]
            await hands.hanging.wait()
        place.source.unlink()
        monkeypatch.setattr("swamp_orch.engine.recovery.is_alive", lambda owner: False)
        again = Hands()
        async with site(place, again, store, workers=True) as here:
            await here.parts.code.collect(time.time() + 2 * BUNDLE_UNUSED_KEPT_S)
            assert (place.repository.bundles / f"{first}.zip").is_file()
            await here.parts.reconcile()
            assert (await here.ended(run_id))["status"] == "succeeded"
            assert again.bundle("two") == first
            await here.parts.code.collect(time.time() + BUNDLE_UNUSED_KEPT_S / 2)
            assert (place.repository.bundles / f"{first}.zip").is_file()
            await here.parts.code.collect(time.time() + 2 * BUNDLE_UNUSED_KEPT_S)
            assert list(place.repository.bundles.iterdir()) == []


async def test_an_extension_that_does_not_import_fails_the_steps_that_need_it_and_no_other(
    place: Place, store: Any
) -> None:
    place.model("hosts")
    place.model("sh", "methods: {execute: {arguments: {run: echo}}}\n", kind="command/shell")
    place.source.unlink()
    place.workflow(step("bad") + step("good", model="sh", method="execute"))
    hands = Hands()
    with trio.fail_after(60):
        async with site(place, hands, store) as here:
            ended = await here.run()
    assert ended["status"] == "failed"
    assert list(hands.programs) == ["good"]
    assert "models/@acme/inventory/hosts.yaml:1: Unknown model type: @acme/inventory" in ended["error"]


async def test_serve_says_what_is_wrong_with_extensions_when_it_starts_and_when_that_changes(
    place: Place, store: Any
) -> None:
    again = place.repository.extensions / "models/again/inventory.py"
    with trio.fail_after(60):
        async with site(place, Hands(), store, workers=True) as here:
            await here.parts.code.look()
            assert here.reporter.warned == []
            again.parent.mkdir()
            again.write_text("# the same type")
            for _ in range(2):
                await here.live.call("model.type_search", {})
            ((event, fields),) = here.reporter.warned
    assert event == "an extension can not be used"
    assert "the type @acme/inventory is declared more than once" in fields["error"]

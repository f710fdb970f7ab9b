"""`swamp worker verify`: every seam of one worker, exercised end to end by a run of its own.

The run has four steps, all placed on the worker: a shell that prints what it was given, a built-in Python method that asks for everything a
step may ask for, the same code as a bundle that was never there before, and a shell that is cancelled. Rules that hold here:

1. The worker is exercised by what everybody uses: real orders, leases, dispatches, desk and data plane. Nothing is simulated.
2. A seam passes when what came back proves it. A seam whose step did not get that far is `skipped`, after the one that failed.
3. Everything is bounded: the wait for a free slot, each step, each seam.
4. Nothing of it stays but bookkeeping: its records are removed, its secret is in no vault, its bundle is gone.
"""

import io
import json
import secrets
import uuid
import zipfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from swamp_orch.core.runplan import StepKey, StepStatus
from swamp_orch.definitions.bundles import BundleFiles
from swamp_orch.definitions.values import (
    Job,
    ModelDefinition,
    ModelMethodTask,
    Placement,
    Source,
    Step,
    Workflow,
)
from swamp_orch.engine.orders import Lent, Orders
from swamp_orch.engine.runs import Run, RunRequest
from swamp_orch.engine.steps import StepState, unmasked
from swamp_orch.reports.method_summary import NAME as METHOD_SUMMARY
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_proto.errors import NotFound
from swamp_worker.models.interface import ModelType
from swamp_worker.models.shell import SHELL

if TYPE_CHECKING:
    from swamp_orch.engine.engine import Engine

STEP_S: Final = 20.0  # each step, its wait for a slot apart
WAIT_S: Final = 30.0  # for a slot, where nothing else was asked
WAIT_MAX_S: Final = 120.0
RUN_NAME: Final = "worker-verify"
_LINES: Final = 3
_FIXED: Final = (1980, 1, 1, 0, 0, 0)

_SHOWS = """
for n in 1 2 3; do printf 'line %s {nonce}\\n' "$n"; done
printf 'error {nonce}\\n' >&2
printf 'half %s\\n' "${{PROBE_SECRET%????????????????}}"
printf 'whole %s\\n' "$PROBE_SECRET"
printf 'shipped %s\\n' "$PROBE_SHIPPED"
printf 'own %s\\n' "$(env | grep -c -E '^SWAMP_(WORKER|SERVER|SERVE|ORCHESTRATOR)_')"
printf 'fence %s\\n' "$SWAMP_FENCE"
"""
_HANGS: Final = "sleep 600 & printf 'hangs\\n'; wait"
REFERENCE: Final = '${{ vault.get("swamp-probe", "nonce") }}'  # of no vault: the verification answers it


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    SKIPPED = "skipped"  # the step did not get that far


@attrs.frozen
class Seam:
    name: str
    verdict: Verdict
    detail: str = ""


SEAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "shell": ("dispatch", "log lines", "secret delivery", "secret masking", "environment"),
    "python": ("runner", "capability call", "write and read back", "upload and download"),
    "bundle": ("bundle",),
    "cancel": ("cancel",),
}
"""By step, in the order in which they are tried."""


@attrs.define(eq=False)
class _Heard:
    """What the run's feed told."""

    lines: dict[str, list[str]] = attrs.field(factory=lambda: {step: [] for step in SEAMS})
    unmasked: str = ""


class Verification:
    """Of one worker, once."""

    def __init__(
        self, engine: "Engine", orders: Orders, bundles: BundleFiles, worker: str, wait_s: float
    ) -> None:
        self._engine = engine
        self._bundles = bundles
        self._orders = orders
        self._store: Store = engine.store
        self._worker = worker
        self._wait_s = min(wait_s, WAIT_MAX_S)
        self._nonce, self._secret, self._shipped = (
            secrets.token_hex(12),
            f"probe-{secrets.token_hex(16)}",
            secrets.token_hex(12),
        )
        self._ids: dict[str, str] = {}  # step -> id of its model

    async def run(self) -> dict[str, Any]:
        """`{name, status, platform, arch, waitedMs, seams[{seam, status, detail?}], detail?}`. Raises `NotFound` for a worker that is not
        connected."""
        placing = self._engine.placing
        assert placing is not None
        member = placing.members.get(self._worker)
        if member is None:
            raise NotFound(
                f"worker {self._worker!r} is not connected",
                hint="swamp worker list --all shows when it was last seen",
                code="not_connected",
            )
        about = {"name": self._worker, "platform": member.state.platform, "arch": member.state.arch}
        bundle = await trio.to_thread.run_sync(self._make_bundle)
        request = self._request()
        for step, lent in self._lent(bundle).items():
            self._ids[step] = lent.definition.id
            self._orders.lend(request.id, lent)
        try:
            await self._engine.start(request)
            run = self._engine.live(request.id)
            assert run is not None
            heard = _Heard()
            await self._follow(run, heard)
            seams = await trio.to_thread.run_sync(self._judge, run, heard)
        finally:
            with trio.CancelScope(shield=True):
                self._orders.forget(request.id)
                await trio.to_thread.run_sync(self._remove, bundle)
        states = [_state(run, step) for step in SEAMS]
        waited_ms = sum(
            max(0, (state.started_ms or state.ended_ms) - state.queued_ms)
            for state in states
            if state.queued_ms
        )
        busy = next((state.error for state in states if _is_busy(state)), "")
        verdicts = {seam.verdict for seam in seams}
        status = "fail" if Verdict.FAIL in verdicts else ("busy" if busy else "pass")
        return {
            **about,
            "status": status,
            "waitedMs": waited_ms,
            "seams": [
                {"seam": seam.name, "status": seam.verdict.value}
                | ({"detail": seam.detail} if seam.detail else {})
                for seam in seams
            ],
        } | ({"detail": f"busy: {busy}"} if busy else {})

    # ── the run ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _request(self) -> RunRequest:
        placement = Placement(target=self._worker, queue_timeout_s=self._wait_s)
        steps = tuple(
            Step(
                step,
                ModelMethodTask(f"probe-{step}", _METHODS[step], {}),
                placement=placement,
                weight=weight,
                allow_failure=True,
                timeout_s=STEP_S,
            )
            for weight, step in enumerate(SEAMS)
        )
        identity = str(uuid.uuid4())
        workflow = Workflow(
            id=identity,
            name=RUN_NAME,
            description="",
            jobs=(Job("probe", steps, concurrency=1),),
            version=1,
            tags={},
            inputs={},
            concurrency=0,
            timeout_s=None,
            trigger={},
            reports={"skip": (METHOD_SUMMARY,)},
            source=Source(Path(RUN_NAME)),
        )
        return RunRequest(
            id=identity,
            kind="method",
            workflow=workflow,
            definition="",
            inputs={},
            stored_inputs={},
            tags={},
            timeout_s=None,
            owner=self._engine.owner,
        )

    def _lent(self, bundle: str) -> dict[str, Lent]:
        from swamp_worker.models.built_in import own_type
        from swamp_worker.models.probe import Probe

        probe = own_type(Probe)
        shell = attrs.evolve(
            SHELL,
            outputs={name: attrs.evolve(spec, lifetime="1h", keep=1) for name, spec in SHELL.outputs.items()},
        )
        shows = {"run": _SHOWS.format(nonce=self._nonce), "env": {"PROBE_SECRET": REFERENCE}}
        return {
            "shell": self._definition("shell", shell, shows),
            "python": self._definition("python", probe, {}),
            "bundle": self._definition(
                "bundle", attrs.evolve(probe, bundle=bundle, entry="probe.py:Probe"), {}
            ),
            "cancel": self._definition("cancel", shell, {"run": _HANGS}),
        }

    def _definition(self, step: str, model_type: ModelType, arguments: Mapping[str, Any]) -> Lent:
        name = f"probe-{step}"
        definition = ModelDefinition(
            type=model_type.name,
            id=str(uuid.uuid4()),
            name=name,
            version=1,
            tags={},
            global_arguments={},
            methods={_METHODS[step]: arguments},
            inputs={},
            source=Source(Path(RUN_NAME)),
        )
        return Lent(definition, model_type, {"PROBE_SHIPPED": self._shipped}, lambda reference: self._secret)

    async def _follow(self, run: Run, heard: _Heard) -> None:
        """Until the run is over; the last step is cancelled once it hangs."""
        seq = 0
        asked = False
        while await run.feed.wait_beyond(seq):
            data, seq = run.feed.after(seq)
            for text in data.splitlines():
                event = json.loads(text)
                if event["kind"] == "step_output":
                    heard.lines[event["step"]].append(event["line"])
                elif event["kind"] == "warning" and unmasked(event["message"]):
                    heard.unmasked = event["message"]
            busy = any(_is_busy(_state(run, step)) for step in SEAMS)
            if not asked and (busy or "hangs" in heard.lines["cancel"]):
                asked = True
                await run.ask_cancel("the verification ends here")
        await run.over.wait()

    # ── the verdicts ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _judge(self, run: Run, heard: _Heard) -> list[Seam]:
        found: list[Seam] = []
        for step, names in SEAMS.items():
            state = _state(run, step)
            if _is_busy(state) or (state.status is StepStatus.CANCELLED and not state.started_ms):
                found += [Seam(name, Verdict.SKIPPED) for name in names]
            elif step == "cancel":
                problem = _not_cancelled(state)
                found.append(Seam("cancel", Verdict.FAIL if problem else Verdict.PASS, problem))
            elif state.status is not StepStatus.SUCCEEDED:
                found.append(
                    Seam(names[0], Verdict.FAIL, state.error or f"the step ended {state.status.value}")
                )
                found += [Seam(name, Verdict.SKIPPED) for name in names[1:]]
            elif step == "shell":
                found += self._judge_shell(heard)
            else:
                found += self._judge_python(step, names)
        return found

    def _judge_shell(self, heard: _Heard) -> list[Seam]:
        lines = heard.lines["shell"]
        said = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
        complete = [f"line {n} {self._nonce}" for n in range(1, _LINES + 1)] == [
            line for line in lines if line.startswith("line ")
        ]
        right = complete and said.get("error") == self._nonce
        delivered = said.get("half") == self._secret[:-16]
        shown = "the orchestrator masked it" if heard.unmasked else "it is in the log"
        masked = said.get("whole") == "***" and not heard.unmasked
        own = said.get("own", "").strip()
        surroundings = {
            "the variable that was sent did not arrive": said.get("shipped") == self._shipped,
            "it holds variables of the worker itself": own == "0",
            "SWAMP_FENCE is missing": bool(said.get("fence")),
        }
        wrong = "; ".join(problem for problem, fine in surroundings.items() if not fine)
        return [
            Seam("dispatch", Verdict.PASS),
            _seam("log lines", right, "lines are missing, in another order, or not what was printed"),
            _seam("secret delivery", delivered, "the step was not given its secret"),
            _seam("secret masking", masked, f"the worker let the step's secret out unmasked; {shown}"),
            _seam("environment", not wrong, wrong),
        ]

    def _judge_python(self, step: str, names: tuple[str, ...]) -> list[Seam]:
        record = self._store.latest(self._ids[step], "findings")
        problems: dict[str, str] = {}
        if record is not None:
            problems = json.loads(self._store.read(record))["problems"]
        first = Seam(names[0], Verdict.PASS)
        if record is None:
            first = Seam(names[0], Verdict.FAIL, "the method's result did not arrive")
        elif step == "bundle" and problems.get("nonce") != self._nonce:
            first = Seam(names[0], Verdict.FAIL, "the files of the bundle are not there")
        return [
            first,
            *(
                _seam(name, not problems.get(name, "no result"), problems.get(name, "no result"))
                for name in names[1:]
            ),
        ]

    # ── what is made and removed ────────────────────────────────────────────────────────────────────────────────────────
    def _make_bundle(self) -> str:
        """A bundle that no worker has: its name depends on the nonce in it."""
        import swamp_worker.models.probe as code

        source = Path(str(code.__file__)).read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("nonce.txt", _FIXED), self._nonce)
            archive.writestr(zipfile.ZipInfo("probe.py", _FIXED), source)
        return self._bundles.put(packed.getvalue())

    def _remove(self, bundle: str) -> None:
        self._bundles.remove(bundle)
        for identity in self._ids.values():
            terms = (Term("modelId", Comparison.EQ, (identity,)),)
            rows = list(
                self._store.scan(
                    Selection(terms, latest_only=False, with_content=False, deleted=True), ("name", "version")
                )
            )
            if rows:
                self._store.remove([(identity, name, version) for name, version in rows])


_METHODS: Final[Mapping[str, str]] = {
    "shell": "execute",
    "python": "ask",
    "bundle": "show",
    "cancel": "execute",
}


def _state(run: Run, step: str) -> StepState:
    return run.state(StepKey("probe", step))


def _is_busy(state: StepState) -> bool:
    """Whether the step did not get a slot in time."""
    return state.error_code == "queue_timeout"


def _not_cancelled(state: StepState) -> str:
    """What is wrong with the end of a step that was cancelled; empty when nothing is."""
    if state.status is not StepStatus.CANCELLED:
        return f"the step that was cancelled ended {state.status.value}" + (
            f": {state.error}" if state.error else ""
        )
    if state.left != 0:
        return (
            "processes of the cancelled step may be left"
            if state.left is None
            else f"{state.left} processes are left of it"
        )
    return ""


def _seam(name: str, fine: bool, problem: str) -> Seam:
    return Seam(name, Verdict.PASS) if fine else Seam(name, Verdict.FAIL, problem)

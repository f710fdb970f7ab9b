"""The promises, looked at in the store and in the witness's notes once everything is over. Each is a sentence."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from swamp_orch.store.bookkeeping import STEP_LEASE
from swamp_orch.store.interface import Record, Selection
from swamp_proto.limits import LOSSES_MAX
from swamp_proto.messages.capability import CallCode
from swamp_proto.messages.dispatch import Outcome

from .lives import Life, Witness
from .site import CRASHED, Site


class Broke(AssertionError):
    """A promise was broken."""


def _need(kept: bool, promise: str, *about: object) -> None:
    if not kept:
        raise Broke(f"{promise}: {' '.join(map(str, about))}")


class Found:
    """What the store holds in the end."""

    def __init__(self, site: Site) -> None:
        self.store = site.store
        self.records = list(site.store.select(Selection(latest_only=False, deleted=True)))

    def of(self, model_type: str) -> list[Record]:
        return [one for one in self.records if one.model_type == model_type]

    def attributes(self, record: Record) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.read(record))
        return found


def check(site: Site, witness: Witness) -> None:
    _need(not witness.surprises, "authors are told what is", witness.surprises)
    found = Found(site)
    what_wrote_is_not_run_again(witness)
    writes_act_once(found, witness)
    calls_act_once(found, witness)
    children_start_once(found, witness)
    nothing_after_the_end(found)
    those_above_are_marked(found)
    nothing_is_left(site, found)
    no_line_is_lost(found, witness)


def writes_act_once(found: Found, witness: Witness) -> None:
    """What its author heard of is there once, with its bytes; what he did not hear of at most once."""
    versions = defaultdict(list)
    for one in found.of("test/writer"):
        versions[one.name].append(one)
    for asked in witness.asked:
        if asked.kind not in ("item", "artifact"):
            continue
        mine = [one for one in versions[asked.name] if not one.deleted]
        _need(len(mine) <= 1, "a write acts once", asked, len(mine))
        _need(bool(mine) or not asked.acknowledged, "nothing acknowledged is lost", asked)
        if mine and asked.kind == "item":
            _need(found.attributes(mine[0]) == {"n": asked.n}, "a record is what was written", asked)
        elif mine:
            _need(mine[0].sha256 == asked.sha256, "an upload has the bytes that were sent", asked)
            found.store.read(mine[0])


def calls_act_once(found: Found, witness: Witness) -> None:
    """A delete leaves one tombstone; whatever changes something is recorded once."""
    tombstones = Counter(one.name for one in found.of("test/writer") if one.deleted)
    accesses = [found.attributes(one) for one in found.of("swamp/access")]
    put = Counter(
        one["dispatchId"] for one in accesses if one["verb"] == "put_secret" and not one.get("code")
    )
    asked_put: Counter[str] = Counter()
    heard_put: Counter[str] = Counter()
    for asked in witness.asked:
        if asked.kind == "deleted":
            _need(tombstones[asked.name] <= 1, "a call acts once", asked)
            _need(
                tombstones[asked.name] == 1 or not asked.acknowledged, "nothing acknowledged is lost", asked
            )
        elif asked.kind == "secret":
            asked_put[asked.dispatch] += 1
            heard_put[asked.dispatch] += asked.acknowledged
    for dispatch, count in asked_put.items():
        _need(
            heard_put[dispatch] <= put[dispatch] <= count,
            "a call acts once",
            "put_secret",
            dispatch,
            put[dispatch],
        )


def children_start_once(found: Found, witness: Witness) -> None:
    """One child run at most for every time that code ran a model; and what it was told of it is true."""
    runs = {one.model_id: found.attributes(one) for one in found.of("swamp/workflow-run") if one.is_latest}
    below = Counter(one["parent"]["dispatchId"] for one in runs.values() if one.get("parent"))
    asked_runs = Counter(asked.dispatch for asked in witness.asked if asked.kind == "run")
    for dispatch, count in below.items():
        _need(count <= asked_runs[dispatch], "a child run is started once", dispatch, count)
    for asked in witness.asked:
        if asked.kind == "run" and asked.acknowledged:
            child = runs.get(asked.answer["run"])
            _need(child is not None, "nothing acknowledged is lost", asked)
            assert child is not None
            _need(
                child["status"] == asked.answer["status"],
                "a child ends as its caller was told",
                asked,
                child["status"],
            )


def what_wrote_is_not_run_again(witness: Witness) -> None:
    """Behind its author's back, after he was told that something was written."""
    told = {asked.dispatch for asked in witness.asked if asked.acknowledged and asked.kind != "run"}
    last: dict[tuple[str, str, str], str] = {}
    for one in witness.executions:
        before = last.get(one.place)
        _need(before not in told, "what wrote is not run again", one.place, before)
        last[one.place] = one.dispatch.dispatch


def nothing_after_the_end(found: Found) -> None:
    """In the order of the store, no record of a dispatch follows the end of its lease; but for those that end it."""
    ended: dict[str, int] = {}
    for one in found.of(STEP_LEASE):
        about = found.attributes(one)
        if about["state"] != "active" and about["dispatchId"] not in ended:
            ended[about["dispatchId"]] = one.seq
    for one in found.of("test/writer"):
        at = ended.get(one.owner.dispatch)
        if at is not None and one.seq > at:
            _need(one.spec in ("log",), "nothing is admitted under an ended lease", one.name, one.seq, at)


def those_above_are_marked(found: Found) -> None:
    """When a child's step has written, the leases above it say so, since then or before."""
    runs = {one.model_id: found.attributes(one) for one in found.of("swamp/workflow-run") if one.is_latest}
    marked: dict[str, int] = {}
    for one in found.of(STEP_LEASE):
        about = found.attributes(one)
        if about["hasWrites"]:
            marked.setdefault(about["dispatchId"], one.seq)
    for one in found.of("test/writer"):
        if one.kind == "report" or one.name.startswith(("log", "left-")) or one.deleted:
            continue  # what an end leaves is no write
        parent = runs.get(one.owner.run, {}).get("parent")
        while parent is not None:
            if above := parent.get("dispatchId"):
                _need(marked.get(above, one.seq + 1) <= one.seq, "those above have written", one.name, above)
            parent = runs[parent["runId"]].get("parent")


def nothing_is_left(site: Site, found: Found) -> None:
    for one in found.of(STEP_LEASE):
        if one.is_latest:
            about = found.attributes(one)
            _need(about["state"] != "active", "no lease is left", about)
    uploads = site.repository.data / "uploads"
    left = [path.name for path in uploads.iterdir()] if uploads.exists() else []
    _need(not left, "no upload is left", left)


def no_line_is_lost(found: Found, witness: Witness) -> None:
    """The log of an execution that reported its end has its lines, in order and once."""
    logs = {one.owner.dispatch: one for one in found.of("test/writer") if one.spec == "log"}
    leases = [found.attributes(one) for one in found.of(STEP_LEASE) if one.is_latest]
    reported = {one["dispatchId"] for one in leases if one["state"] == "completed" and one["completed"]}
    for one in witness.executions:
        if one.outcome is not Outcome.SUCCEEDED or one.dispatch.dispatch not in reported:
            continue
        _need(one.dispatch.dispatch in logs, "no line is lost", "no log", one.dispatch.dispatch)
        text = found.store.read(logs[one.dispatch.dispatch]).decode()
        _need(
            text.splitlines() == one.lines,
            "no line is lost",
            one.dispatch.dispatch,
            text[:200],
            one.lines[:5],
        )


def every_refusal_is_lawful(witness: Witness) -> None:
    """Weather is not heard of: an author is refused only what is over."""
    died = {one.dispatch.dispatch for one in witness.executions if one.who == "loopback"}
    for asked in witness.asked:
        if asked.dispatch in died and asked.why == CRASHED:
            continue  # its process died with the orchestrator: nobody hears
        _need(asked.refused in (None, CallCode.LEASE_ENDED), "weather is not heard of", asked)


def every_run_ends_as_it_should(
    site: Site,
    witness: Witness,
    documents: Mapping[str, dict[str, Any]],
    cancelled: Collection[str],
    lives: Mapping[Any, Life],
) -> None:
    """A run fails when its step's author says so, when something that wrote was lost, or by the poison limit; nothing else."""
    found = Found(site)
    wrote = {one["runId"] for one in map(found.attributes, found.of(STEP_LEASE)) if one["hasWrites"]}
    for run, document in documents.items():
        status = document["status"]
        life = lives.get((run, True))
        willed = life is not None and life.outcome is Outcome.FAILED
        executions = [one for one in witness.executions if one.dispatch.place.run == run]
        match status:
            case "succeeded":
                _need(not willed, "a failure is not a success", run)
            case "cancelled":
                _need(run in cancelled, "nobody is cancelled unasked", run, document["error"])
            case "failed":
                lawful = willed or run in wrote or len(executions) >= LOSSES_MAX
                _need(lawful, "nothing fails without a reason", run, document["error"])
            case _:
                raise Broke(f"everything ends: {run} is {status}")

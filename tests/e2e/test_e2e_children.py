"""Child runs and people beside a dying orchestrator: nothing is started twice, nothing that waits for a person is lost."""

from pathlib import Path

from e2e_site import GRACE, Site, ended, step, until


def test_a_nested_workflow_and_its_parent_go_on_after_kill(own_site: Site, tmp_path: Path) -> None:
    """A worker runs a step of the child; the orchestrator is killed; the next one's parent step follows the child again, to a person
    and to its end."""
    site = own_site
    serve = site.serve(*GRACE)
    worker = site.worker("w")
    witness, go = tmp_path / "started", tmp_path / "go"
    site.model("work", f"echo x >> {witness}; until [ -e {go} ]; do sleep 0.02; done; echo worked")
    site.model("say", "echo after")
    ask = {"name": "ask", "dependsOn": ["work"], "task": {"type": "manual_approval", "prompt": "Go on?"}}
    site.workflow("inner", step("work", "work", target="w"), ask)
    nest = {"name": "nest", "task": {"type": "workflow", "workflowIdOrName": "inner"}}
    site.workflow("outer", nest, step("after", "say", dependsOn=["nest"]))
    run_id = site.json("workflow", "run", "outer", "--detach")["runId"]
    until(witness.exists, "the child's step started")
    serve.kill()
    serve = site.serve(*GRACE, port=site.port)
    worker.wait_for("Enrolled as w", after=3)
    go.touch()
    until(lambda: site.json("workflow", "approvals")["approvals"], "a person is asked")
    assert site.json("run", "doctor")["waiting"][0]["stepName"] == "ask"
    serve.kill()
    serve = site.serve(*GRACE, port=site.port)
    watching = site.start("run", "attach", run_id, "--json", name="client")
    watching.wait_for('"approval_waiting"')
    approved = site.ok("workflow", "approve", "inner", "ask", "--reason", "seen").out
    assert approved.startswith("Approved: ask of inner (run ")
    done = watching.end()
    assert done.code == 0, done
    last = done.events[-1]
    assert (last["runId"], last["status"]) == (run_id, "succeeded")
    assert len(ended(done.events, "nest")) and witness.read_text() == "x\n"
    (child,) = last["run"]["jobs"][0]["steps"][0]["children"]
    assert child["status"] == "succeeded"
    assert site.query('modelName == "work" && specName == "result"', "attributes.stdout") == ["worked"]
    assert site.query('modelType == "swamp/step-lease"') == []
    assert len(site.json("run", "list")["runs"]) == 2

"""The inventory, tried without an orchestrator: `python -m pytest extensions/models`."""

from inventory import Inventory

from swamp_worker.sdk.testing import run_method

SECRETS = {"main/inventory-token": "top-secret"}


def test_services_that_answer_and_one_that_does_not() -> None:
    run = run_method(
        Inventory, "probe", {"practice": 2, "services": {"nobody": "127.0.0.1:1"}}, secrets=SECRETS
    )
    assert run.error is None
    assert run.latest("summary").json() == {"up": ["practice-1", "practice-2"], "down": ["nobody"]}
    assert run.latest("listing").text().startswith("name,up,said\nnobody,no,nobody there\n")
    assert run.report("looked").startswith("# model: 3 services")
    again = run_method(Inventory, "compare", access=run.access)
    assert again.log == ("2 came, 0 went",)


def test_an_address_without_a_port_is_refused_before_anything_runs() -> None:
    run = run_method(Inventory, "probe", {"services": {"web": "example.org"}}, secrets=SECRETS)
    assert run.error == "Pre-flight checks failed: addresses: no host:port: web"
    assert run.records == ()

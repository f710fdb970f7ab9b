"""The conditions table of docs/reference/workflows-execution.md is the code's."""

from pathlib import Path

from swamp_orch.core.runplan import ENDS, SATISFIED_BY, StepStatus

PAGE = (Path(__file__).parents[2] / "docs/reference/workflows-execution.md").read_text()


def test_the_conditions_table() -> None:
    lines = PAGE[PAGE.index("| condition |") :].split("\n\n")[0].splitlines()
    ends = [StepStatus(cell.strip()) for cell in lines[0].split("|")[2:-1]]
    documented = {}
    for line in lines[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        documented[name.strip("`")] = {end for end, cell in zip(ends, cells, strict=True) if cell == "yes"}
    assert set(ends) == ENDS
    assert documented == {kind.value: set(found) for kind, found in SATISFIED_BY.items()}

"""The diagrams in the documentation say what the tables say."""

from swamp_orch.diagrams import FOLDER, diagrams


def test_diagrams_are_fresh() -> None:
    for name, text in diagrams().items():
        assert (FOLDER / name).read_text() == text, "run: python -m swamp_orch.diagrams --write"


def test_every_end_is_drawn() -> None:
    assert "revoked --> unused: minted" in diagrams()["token.mmd"]
    for end in ("completed", "failed", "cancelled", "expired"):
        assert f"{end} --> [*]" in diagrams()["lease.mmd"]


def test_the_reference_shows_the_generated_diagram() -> None:
    page = (FOLDER.parent / "reference" / "enrollment-tokens.md").read_text()
    assert f"```mermaid\n{diagrams()['token.mmd']}```" in page

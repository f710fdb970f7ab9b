"""The diagrams in the documentation say what the tables say."""

from swamp_orch.core.diagrams import FOLDER, diagrams


def test_diagrams_are_fresh() -> None:
    for name, text in diagrams().items():
        assert (FOLDER / name).read_text() == text, "run: python -m swamp_orch.core.diagrams --write"


def test_every_end_is_drawn() -> None:
    assert "revoked --> unused: minted" in diagrams()["token.mmd"]
    for end in ("completed", "failed", "cancelled", "expired"):
        assert f"{end} --> [*]" in diagrams()["lease.mmd"]

"""State diagrams of the machines, drawn from their tables: `python -m swamp_orch.diagrams --write`.

Mermaid text, one file a machine, in docs/machines/. A test holds the files to the tables, so that a diagram can not
say anything the code does not. Lines appear in the order of the table.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from swamp_orch.core import lease_table, tokens

FOLDER: Final = Path(__file__).parents[1] / "docs" / "machines"
START: Final = "[*]"

Arrow = tuple[str, str, str]  # from, to, label


def token_arrows() -> Iterable[Arrow]:
    """The enrollment token. A name that was never minted is the start."""
    for (state, change), target in tokens.TRANSITIONS.items():
        yield (START if state is None else state.value, target.value, change.value)


def lease_arrows() -> Iterable[Arrow]:
    """The step lease. Arrows into the ends are drawn for each end that may follow."""
    yield (START, lease_table.Stage.GRANTED.value, "granted")
    for (stage, happening), after in lease_table.TRANSITIONS.items():
        for target in after:
            yield (stage.value, target.value, happening.value)


def drawn(arrows: Iterable[Arrow]) -> str:
    """A Mermaid state diagram; arrows between the same two states are one, with all their labels."""
    merged: dict[tuple[str, str], list[str]] = {}
    for source, target, label in arrows:
        merged.setdefault((source, target), []).append(label)
    sources = {source for source, _ in merged}
    lines = ["stateDiagram-v2"]
    lines += [
        f"    {source} --> {target}: {', '.join(labels)}" for (source, target), labels in merged.items()
    ]
    ends = dict.fromkeys(target for _, target in merged if target not in sources)
    lines += [f"    {end} --> {START}" for end in ends]
    return "\n".join(lines) + "\n"


def diagrams() -> Mapping[str, str]:
    """File name -> text."""
    return {"token.mmd": drawn(token_arrows()), "lease.mmd": drawn(lease_arrows())}


def main() -> int:
    """`--write` writes them; without it, answers whether they are up to date (exit 1 when not)."""
    stale = [
        name
        for name, text in diagrams().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]
    if "--write" not in sys.argv[1:]:
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in diagrams().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

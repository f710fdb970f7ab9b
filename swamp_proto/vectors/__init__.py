"""Golden vectors: frames as exact bytes beside readable JSON, refusals, and the schema of all messages.

The files are the conformance kit: what an implementation in any language can be held to without this code.

    valid/<name>.json      {"note"?, "frame": <value>, "hex": <bytes>}   decode(hex) is the frame; encode
    gives hex back invalid/<name>.json    {"note", "code", "path", "hex", "fill"?, "times"?}   must be refused
    schema.json            every frame, message, field, bound and enum

In `frame`, bytes are written `{"$hex": "…"}`; a number with a point is a float. A change of the wire is a
visible change of these files, made on purpose with `python -m swamp_proto.vectors --write`.
"""

import json
from pathlib import Path
from typing import Any, Final

from swamp_proto import codec
from swamp_proto.vectors.broken import BROKEN
from swamp_proto.vectors.samples import VALID
from swamp_proto.vectors.schema import schema

FOLDER: Final = Path(__file__).parent


def readable(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value


def files() -> dict[str, str]:
    """What the folder should hold: path below it -> text."""
    found = {"schema.json": _text(schema())}
    for name, frame in VALID.items():
        found[f"valid/{name}.json"] = _text(
            {"frame": readable(codec.plain(frame)), "hex": codec.encode(frame).hex()}
        )
    for name, broken in BROKEN.items():
        document: dict[str, Any] = {"note": broken.note, "code": broken.code, "path": broken.path}
        document["hex"] = broken.head.hex()
        if broken.times:
            document |= {"fill": broken.fill.hex(), "times": broken.times}
        found[f"invalid/{name}.json"] = _text(document)
    return found


def stale() -> list[str]:
    """Paths below the folder that are missing, different, or no longer made."""
    wanted = files()
    present = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.json"))}
    wrong = [
        name for name, text in wanted.items() if name not in present or present[name].read_text() != text
    ]
    return sorted(wrong + [name for name in present if name not in wanted])


def write() -> list[str]:
    """Bring the folder up to date; the paths that changed."""
    changed, wanted = stale(), files()
    for name in changed:
        path = FOLDER / name
        if name in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[name])
        else:
            path.unlink()
    return changed


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

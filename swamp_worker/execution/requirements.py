"""`requirements.txt` of a unit: which lines are understood. Every line pins one version, with a hash of every file it may be.

    name[extra]==1.2.3 ; python_version >= "3.11" \\
        --hash=sha256:… --hash=sha256:…

Rules that hold here:

- Anything else is an error that names the line and the fix: ranges, URLs, paths, `-r`, `-e`, index options. What is installed on a
  worker is decided by who wrote the unit, not by the day.
- Where the unit ships its own wheels, hashes may be absent: the bundle's own digest covers them.
"""

import re
from typing import Final

from swamp_proto.errors import LocalError
from swamp_proto.limits import REQUIREMENTS_MAX

_PIN: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*==\s*"
    r"(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*(?:;(?P<marker>[^#]*?))?(?P<hashes>(?:\s+--hash=\S+)*)\s*"
)
_HASH: Final = re.compile(r"--hash=(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*$")


class BadRequirements(LocalError):
    """A line of a requirements.txt that cannot be installed the same everywhere."""

    code = "bad_requirements"


def check(text: str, *, has_wheels: bool, name: str = "requirements.txt") -> int:
    """How many requirements `text` pins. Raises `BadRequirements`."""
    if len(text) > REQUIREMENTS_MAX:
        raise BadRequirements(f"{name}: it is longer than {REQUIREMENTS_MAX // 1024} KiB")
    pins: dict[str, int] = {}
    hashed: list[int] = []
    bare: list[int] = []
    for line, joined in _joined(text):
        where = f"{name}:{line}: "
        if joined.startswith("-"):
            raise BadRequirements(
                f"{where}options are not understood: {joined.split()[0]}",
                hint="write each requirement as name==version --hash=sha256:…; the worker's own pip configuration names the index",
            )
        found = _PIN.fullmatch(joined)
        if found is None or "*" in found["version"]:
            raise BadRequirements(
                f"{where}{joined[:80]!r} does not pin one version",
                hint="write name==version --hash=sha256:… (pip-compile --generate-hashes, or uv export, makes such files)",
            )
        hashes = found["hashes"].split()
        for each in hashes:
            if not _HASH.fullmatch(each):
                raise BadRequirements(
                    f"{where}{each[:40]!r} is no hash", hint="--hash=sha256: and 64 hex digits"
                )
        (hashed if hashes else bare).append(line)
        if not hashes and not has_wheels:
            raise BadRequirements(
                f"{where}{found['name']}=={found['version']} has no hash",
                hint="add --hash=sha256:… (pip-compile --generate-hashes), or ship its wheel in wheels/",
            )
        known = re.sub(r"[-_.]+", "-", found["name"]).lower()
        if known in pins and not found["marker"]:
            raise BadRequirements(f"{where}{found['name']} is pinned already, in line {pins[known]}")
        pins[known] = line
    if hashed and bare:
        raise BadRequirements(
            f"{name}:{bare[0]}: it has no hash, but line {hashed[0]} has one",
            hint="give a hash to all of them or to none",
        )
    return len(hashed) + len(bare)


def _joined(text: str) -> list[tuple[int, str]]:
    """Logical lines with the number of their first one: continued ones joined, comments and empty ones gone."""
    found: list[tuple[int, str]] = []
    first, parts = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if not parts:
            first = number
        stripped = _COMMENT.sub("", line)
        continued = stripped.rstrip().endswith("\\")
        parts.append(stripped.rstrip().removesuffix("\\") if continued else stripped)
        if not continued:
            joined = " ".join(" ".join(parts).split())
            if joined:
                found.append((first, joined))
            parts = []
    return found

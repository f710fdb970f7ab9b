"""The planted secrets, their spellings, and every place where a system could keep or show one.

The spellings are made here anew, with the standard library: what masks them is what is tested. Rules

- `places` looks everywhere: all files below the site (repository, caches, temporary files, whatever a process wrote), every value in every
  table of every database, what every process printed, command lines of every process, environments of every process but the steps'.
- Vault ciphertext needs no exception: it is not plaintext.
"""

import base64
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from e2e_site import Site, processes

PEM: Final = (
    "-----BEGIN PRIVATE KEY-----\n"
    + "".join(base64.b64encode(bytes(range(at, at + 48))).decode() + "\n" for at in range(7, 107, 25))
    + "cANaRyEnDoFkEy==\n-----END PRIVATE KEY-----"
)
SECRETS: Final[Mapping[str, str]] = {
    "plain": "canary-plain-8f3ab19c",
    "pem": PEM,
    "special": "ca nary\"q'uo\\te/%+&=<é>{}",
    "base64ish": base64.b64encode(b"canary base64 of something that is quite long, longer than a row of seventy-six").decode(),
    "brief": "Zq7!",  # as short as can be told from other text
}  # fmt: skip
TOO_SHORT: Final = "~9"
ENVIRONMENT: Final = "canary-environment-77c0"  # a variable of the orchestrator: given to steps, kept nowhere
SENSITIVE: Final = "canary-sensitive-input-55d1"


def spellings(secret: str) -> Iterator[str]:
    """What must not be read anywhere."""
    for part in {secret, secret.strip(), *secret.split("\n")}:
        if len(part) < 4 or part.startswith("-----"):
            continue
        yield part
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        yield quote(part)
        yield quote(part, safe="")
        yield base64.b64encode(part.encode()).decode().rstrip("=")
        yield base64.b64encode(b"user:" + part.encode()).decode()[8:].rstrip("=")[:-2]
        yield part.encode("utf-16-le").decode("latin-1")


FORMS: Final[Mapping[str, frozenset[bytes]]] = {
    name: frozenset(form.encode() for form in spellings(secret) if len(form) >= 4 and "\n" not in form)
    for name, secret in {**SECRETS, "sensitive input": SENSITIVE, "environment": ENVIRONMENT}.items()
}


def in_bytes(data: bytes) -> Iterator[str]:
    """The names of the secrets that can be read in `data`."""
    for name, forms in FORMS.items():
        if any(form in data for form in forms):
            yield name


def in_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            for name in in_bytes(path.read_bytes() + path.name.encode()):
                yield f"{path.relative_to(folder)}: {name}"
        if path.suffix == ".db" and path.is_file():
            yield from in_database(path)


def in_database(path: Path) -> Iterator[str]:
    store = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = [row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in store.execute(f'SELECT * FROM "{table}"'):
                values = b"\0".join(
                    value if isinstance(value, bytes) else str(value).encode() for value in row
                )
                for name in in_bytes(values):
                    yield f"table {table}: {name}"
    finally:
        store.close()


def in_processes(site: Site) -> Iterator[str]:
    """Command lines of all; environments of the orchestrator, the workers and what keeps them."""
    for pid, line in processes(site.mark):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        for name in in_bytes(command):
            yield f"command line of {line}: {name}"
        if b"SWAMP_DISPATCH=" not in environment:  # no process of a step: those are given it
            its_own = b"CANARY_OF_SERVE=" in environment
            for name in set(in_bytes(environment)) - ({"environment"} if its_own else set()):
                yield f"environment of {line}: {name}"


def in_words(site: Site) -> Iterator[str]:
    """What every process and every command of the site printed."""
    for name, told in site.story():
        for secret in in_bytes(told.encode()):
            yield f"said by {name}: {secret}"
    for argv, ended in site.typed:
        for secret in in_bytes((ended.out + ended.err).encode()):
            yield f"printed by swamp {' '.join(argv[:3])}: {secret}"


def places(site: Site) -> list[str]:
    return [*in_files(site.folder), *in_processes(site), *in_words(site)]

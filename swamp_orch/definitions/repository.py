"""The repository: a folder with `.swamp.yaml`. Where everything in it lives, how it is found and made.

Rules:
1. Definitions (`models/`, `workflows/`, `vaults/`, `extensions/`) are files meant for git; everything at run
   time is under `.swamp/` (0700), which git is told to ignore.
2. The marker is written last, so that a half-made repository is not one, and `init` may simply be typed
   again.
3. Reading the marker costs no YAML library in the common case: it is flat `key: value` text, which a strict
   little reader understands; only a file that somebody rewrote in another style is given to the library.
4. A repository marked by a newer swamp is refused with both versions named.

It does not know what definitions contain, and it opens neither store nor vaults.
"""

import os
import re
import stat
import time
import uuid
from pathlib import Path
from typing import Any, Final

import attrs

from swamp_orch.definitions.files import disk_error, make_folder, write_atomically
from swamp_proto.errors import AlreadyExists, Conflict, InvalidDefinition, NotFound, Unsupported
from swamp_proto.ids import UUID_PATTERN
from swamp_proto.version import SWAMP_VERSION

MARKER: Final = ".swamp.yaml"
STATE: Final = ".swamp"
FOLDERS: Final = ("models", "workflows", "vaults", "extensions/models")
IGNORE_BEGIN: Final = "# BEGIN swamp (this block is managed by `swamp repo init`)"
IGNORE_END: Final = "# END swamp"
IGNORED: Final = (".swamp/",)
SOCKET_PATH_MAX: Final = 100  # bytes; the system's own limit is 107 on Linux and 103 on macOS

_LINE: Final = re.compile(
    r"""([A-Za-z][A-Za-z0-9]*):[ ]+(?:"([^"\\]*)"|'([^']*)'|([A-Za-z0-9][A-Za-z0-9._:+-]*))[ ]*(?:[ ]\#.*)?"""
)


@attrs.frozen
class Repository:
    """A repository that exists. `root` is absolute."""

    root: Path
    repo_id: str

    @property
    def marker(self) -> Path:
        return self.root / MARKER

    @property
    def state(self) -> Path:
        return self.root / STATE

    @property
    def data(self) -> Path:
        return self.state / "data"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def workflows(self) -> Path:
        return self.root / "workflows"

    @property
    def vaults(self) -> Path:
        return self.root / "vaults"

    @property
    def extensions(self) -> Path:
        return self.root / "extensions"

    @property
    def bundles(self) -> Path:
        """The code of extensions as it travels: `<sha256>.zip`."""
        return self.data / "bundles"

    @property
    def cache(self) -> Path:
        """Unpacked bundles and installed dependencies, as a worker has them."""
        return self.state / "cache"

    @property
    def serve_file(self) -> Path:
        return self.state / "serve.json"

    @property
    def serve_lock(self) -> Path:
        return self.state / "serve.lock"

    @property
    def credential_file(self) -> Path:
        return self.state / "client-credential"

    def socket_path(self) -> Path:
        """Where this repository's orchestrator listens for local clients: `.swamp/serve.sock`, or, when that
        is too long for a unix socket, a path in a private run-time folder derived from the repository's id
        and place. Only a path: see `prepare_socket_folder`."""
        path = self.state / "serve.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            return path
        # The place is part of the name: a copied repository has the same id.
        key = uuid.uuid5(uuid.UUID(self.repo_id), str(self.root)).hex[:16]
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime and Path(runtime).is_dir():
            return Path(runtime) / "swamp" / f"{key}.sock"
        return Path(f"/tmp/swamp-{os.getuid()}") / f"{key}.sock"  # noqa: S108 - owner and mode are checked below

    def prepare_socket_folder(self) -> Path:
        """Make sure that the folder of `socket_path` exists and is ours alone; returns the socket's path.
        Server and client both call it: a folder in /tmp that belongs to somebody else must be trusted by
        neither. Raises `Conflict`."""
        path = self.socket_path()
        folder = path.parent
        make_folder(folder, 0o700)
        try:
            found = folder.lstat()
        except OSError as error:
            raise disk_error("look at", folder, error) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Conflict(
                f"{folder} is not a private folder of this user, so no socket is trusted there",
                hint=f"chmod 700 {folder}, or remove it if it is not yours",
            )
        return path


def find(start: Path | None = None, *, walk: bool = True) -> Repository:
    """The repository of `start` (default: the current folder), which may be any folder inside it. With
    `walk=False`, `start` itself must be one (an explicit `--repo-dir`). Raises `NotFound`,
    `InvalidDefinition`, `Unsupported`."""
    origin = Path(start) if start is not None else Path.cwd()
    folder = origin.resolve()
    for candidate in (folder, *folder.parents) if walk else (folder,):
        marker = candidate / MARKER
        if marker.is_file():
            return _open(candidate, marker)
    if not folder.is_dir():
        raise NotFound(f"{origin} is not a folder", hint=f"swamp repo init {origin}")
    above = " (nor any folder above it)" if walk else ""
    target = "" if start is None else f" {origin}"
    raise NotFound(
        f"{folder}{above} is not a swamp repository: there is no {MARKER}", hint=f"swamp repo init{target}"
    )


def init(path: Path, force: bool = False, *, now_ms: int | None = None) -> dict[str, Any]:
    """Make `path` (made if missing) a repository; answers the document that `swamp repo init --json` prints.
    `force` re-makes what is missing in an existing one and keeps its id. Raises `AlreadyExists`, `Broken`."""
    root = Path(path).resolve()
    marker = root / MARKER
    if root.exists() and not root.is_dir():
        raise Conflict(f"{root} is not a folder", hint="name a folder, existing or new")
    instant = _iso(time.time_ns() // 1_000_000 if now_ms is None else now_ms)
    fields = {"swampVersion": SWAMP_VERSION, "initializedAt": instant, "repoId": str(uuid.uuid4())}
    if marker.exists():
        if not force:
            raise AlreadyExists(
                f"Repository already initialized at {root}",
                hint=f"swamp repo init --force {path} makes what is missing",
            )
        kept = _read_marker(marker, lenient=True)
        _refuse_newer(root, kept.get("swampVersion", ""))
        fields |= {key: value for key, value in kept.items() if key not in ("swampVersion", "upgradedAt")}
        fields["upgradedAt"] = instant
        if UUID_PATTERN.fullmatch(fields["repoId"]) is None:
            fields["repoId"] = str(uuid.uuid4())
    for name in FOLDERS:
        make_folder(root / name)
    make_folder(root / STATE, 0o700)
    try:
        (root / STATE).chmod(0o700)
    except OSError as error:
        raise disk_error("make private", root / STATE, error) from error
    action = _ignore(root / ".gitignore")
    write_atomically(marker, "".join(f"{key}: {_scalar(value)}\n" for key, value in fields.items()))
    return {
        "path": str(root),
        "version": SWAMP_VERSION,
        "initializedAt": fields["initializedAt"],
        "repoId": fields["repoId"],
        "gitignoreAction": action,
        "nextSteps": [
            "swamp vault create local_encryption main",
            "swamp model create command/shell hello --arg execute.run='echo \"hello\"'",
            "swamp model method run hello execute",
        ],
    }


def _open(root: Path, marker: Path) -> Repository:
    fields = _read_marker(marker)
    _refuse_newer(root, fields.get("swampVersion", ""))
    repo_id = fields.get("repoId", "")
    if UUID_PATTERN.fullmatch(repo_id) is None:
        problem = f"`repoId` is not a UUID: {repo_id}" if repo_id else "`repoId` is missing"
        raise InvalidDefinition(f"{marker}: {problem}", hint=f"swamp repo init --force {root}")
    return Repository(root=root, repo_id=repo_id)


def _read_marker(marker: Path, *, lenient: bool = False) -> dict[str, str]:
    """The marker's scalars as text."""
    try:
        text = marker.read_bytes().decode()
    except UnicodeDecodeError:
        if lenient:
            return {}
        raise InvalidDefinition(
            f"{marker}: not UTF-8 text", hint=f"swamp repo init --force {marker.parent}"
        ) from None
    except OSError as error:
        raise disk_error("read", marker, error) from error
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] in fields:
            return _read_marker_as_yaml(marker, lenient)
        fields[match[1]] = next(value for value in match.groups()[1:] if value is not None)
    return fields


def _read_marker_as_yaml(marker: Path, lenient: bool) -> dict[str, str]:
    from swamp_orch.definitions.yaml_source import load  # the slow way, for a marker in another style

    try:
        data, _ = load(marker)
    except InvalidDefinition:
        if lenient:
            return {}
        raise
    if not isinstance(data, dict):
        return {}
    return {key: str(value) for key, value in data.items() if isinstance(value, str | int | float)}


def _refuse_newer(root: Path, version: str) -> None:
    if _numbers(version) > _numbers(SWAMP_VERSION):
        raise Unsupported(
            f"the repository {root} was made by swamp {version}; this is swamp {SWAMP_VERSION}",
            hint=f"install swamp {version} or newer",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("-")[0].split("+")[0])[:3])


def _scalar(text: str) -> str:
    """`text` as YAML that this module's own reader understands."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+-]*", text) and not text.endswith(":"):
        return text
    return "'" + text.replace("'", "’") + "'"


def _ignore(path: Path) -> str:
    """Write the managed block of `.gitignore`: `created`, `updated` or `unchanged`."""
    block = "\n".join((IGNORE_BEGIN, *IGNORED, IGNORE_END)) + "\n"
    try:
        before = path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        write_atomically(path, block)
        return "created"
    except OSError as error:
        raise disk_error("read", path, error) from error
    pattern = re.compile(r"^# BEGIN swamp\b.*?^# END swamp[^\n]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(before):
        after = pattern.sub(lambda _: block, before, count=1)
    else:
        after = (
            before + ("" if not before or before.endswith("\n") else "\n") + ("\n" if before else "") + block
        )
    if after == before:
        return "unchanged"
    write_atomically(path, after)
    return "updated"


def _iso(wall_ms: int) -> str:
    moment = time.gmtime(wall_ms // 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{wall_ms % 1000:03d}Z"

"""Bundles: the code of one unit of `extensions/models/` as one file, named by its SHA-256.

Rules:
1. A *unit* is a `.py` file or a folder at the top of `extensions/models/`. Its bundle holds its files, below the root of the
   bundle: `inventory.py` for the unit `inventory.py`, the folder's content for a folder.
2. Equal sources give equal bytes: names sorted, one fixed time, stored and not compressed (what a compressor makes depends on
   its version), of the permissions only whether a file is executable. Hidden files, `__pycache__`, compiled files and symbolic
   links are left out.
3. A bundle is on the disk, synced, before anything names it. It is written once and never changed.
4. Looking for changes reads no file: names, sizes and times say it (`Unit.state`), as for git; what changed in the instant of the look
   before is read again (`Unit.newest_ns`).

It does not know what is in the files.
"""

import contextlib
import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from swamp_orch.definitions.files import disk_error, make_folder
from swamp_proto.errors import InvalidDefinition, NotFound
from swamp_proto.limits import BUNDLE_ENTRIES_MAX, BUNDLE_FILE_MAX, MIB
from swamp_worker.execution.unpack import unpack

_TIME: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_LEFT_OUT: Final = frozenset({"__pycache__"})
_COMPILED: Final = (".pyc", ".pyo")


@attrs.frozen
class UnitFile:
    """`path` is below the root of the bundle, with `/`."""

    path: str
    source: Path = attrs.field(repr=False)
    size: int
    executable: bool


@attrs.frozen
class Unit:
    """What there is to be bundled at the instant it was looked at."""

    name: str  # `inventory.py`, `acme`
    files: tuple[UnitFile, ...] = attrs.field(repr=False)
    state: str  # hex; another one when a file was added, removed or touched
    newest_ns: int  # when the last of its files changed

    @property
    def is_folder(self) -> bool:
        return not self.name.endswith(".py")

    def shown(self, path: str) -> str:
        """A file of the bundle as a person finds it, below the repository."""
        return f"extensions/models/{self.name}/{path}" if self.is_folder else f"extensions/models/{path}"


def find_units(folder: Path) -> list[Unit]:
    """The units in `folder`, by name; none where it does not exist. Raises `Broken`, and `InvalidDefinition` for a unit of
    too many files."""
    found = []
    for entry in _entries(folder):
        if entry.name.endswith(".py") and entry.is_file(follow_symlinks=False):
            found.append(_unit(entry.name, [(entry.name, entry)]))
        elif entry.is_dir(follow_symlinks=False):
            files = list(_below(Path(entry.path), "", entry.name))
            if any(path.endswith(".py") for path, _ in files):
                found.append(_unit(entry.name, files))
    return found


def linked_units(folder: Path) -> list[str]:
    """What would be a unit if it were not a symbolic link: a bundle holds files, not ways to others."""
    return [
        entry.name
        for entry in _entries(folder)
        if entry.is_symlink()
        and (entry.name.endswith(".py") or (entry.is_dir() and any(Path(entry.path).glob("*.py"))))
    ]


def _below(folder: Path, prefix: str, unit: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    count = 0
    pending = [(folder, prefix)]
    while pending:
        here, above = pending.pop()
        for entry in _entries(here):
            if entry.is_dir(follow_symlinks=False):
                pending.append((Path(entry.path), f"{above}{entry.name}/"))
            elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(_COMPILED):
                count += 1
                if count > BUNDLE_ENTRIES_MAX:
                    raise InvalidDefinition(
                        f"extensions/models/{unit} has more than {BUNDLE_ENTRIES_MAX} files",
                        hint="a bundle is code and small assets: keep the rest elsewhere",
                    )
                yield f"{above}{entry.name}", entry


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (
                    entry
                    for entry in entries
                    if entry.name not in _LEFT_OUT and not entry.name.startswith(".")
                ),
                key=lambda entry: entry.name,
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise disk_error("list", folder, error) from error


def _unit(name: str, entries: "list[tuple[str, os.DirEntry[str]]]") -> Unit:
    state = hashlib.sha256()
    files = []
    newest = 0
    for path, entry in sorted(entries, key=lambda item: item[0]):
        try:
            about = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # it went while we looked
        except OSError as error:
            raise disk_error("look at", Path(entry.path), error) from error
        newest = max(newest, about.st_mtime_ns, about.st_ctime_ns)
        marks = (about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_size, about.st_mode)
        state.update(f"{path}\0{marks}\n".encode(errors="surrogateescape"))
        files.append(UnitFile(path, Path(entry.path), about.st_size, bool(about.st_mode & stat.S_IXUSR)))
    return Unit(name, tuple(files), state.hexdigest(), newest)


def pack(unit: Unit) -> bytes:
    """The bundle of a unit. Raises `InvalidDefinition` for one that is too large or has a name that is no text, `Broken`."""
    place = f"extensions/models/{unit.name}"
    size = sum(file.size for file in unit.files)
    if size > BUNDLE_FILE_MAX:
        raise _too_large(place, size)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in unit.files:
            if not file.path.isprintable() or "\\" in file.path:
                shown = file.path.encode(errors="backslashreplace").decode(errors="replace")
                raise InvalidDefinition(
                    f"{place}: a file whose name cannot travel: {shown!r}", hint="rename it"
                )
            info = zipfile.ZipInfo(file.path, _TIME)
            info.create_system = _UNIX
            info.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            try:
                archive.writestr(info, file.source.read_bytes())
            except OSError as error:
                raise disk_error("read", file.source, error) from error
    data = packed.getvalue()
    if len(data) > BUNDLE_FILE_MAX:
        raise _too_large(place, len(data))
    return data


def _too_large(place: str, size: int) -> InvalidDefinition:
    return InvalidDefinition(
        f"{place} has {size / MIB:.1f} MiB; a bundle may have {BUNDLE_FILE_MAX // MIB} MiB",
        hint="keep large files elsewhere, and let the method fetch them",
    )


class BundleFiles:
    """The folder of bundles, `<sha256>.zip` each. Thread-safe, and safe beside other processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.zip"

    def put(self, data: bytes) -> str:
        """Have it, durably; answers its name. Raises `Broken`."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if self._is_whole(path, data):
            with contextlib.suppress(OSError):
                os.utime(path)  # in use again: the collector counts from here
            return sha256
        make_folder(self.folder, 0o700)
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(prefix=".bundle-", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
            temporary = ""
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise disk_error("write", path, error) from error
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
        return sha256

    def _is_whole(self, path: Path, data: bytes) -> bool:
        """Whether the file is there with these bytes: one that a broken disk cut is written again."""
        try:
            return path.stat().st_size == len(data) and path.read_bytes() == data
        except OSError:
            return False

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def unpack(self, sha256: str, into: Path) -> None:
        """The files of a bundle, below an empty folder, as a worker would have them. Raises `NotFound`, `BadBundle`, and
        `InvalidDefinition` when it is not what its name says."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"the bundle {sha256} is not kept any more: {path}") from None
        except OSError as error:
            raise disk_error("read", path, error) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InvalidDefinition(f"{path} was changed: it is not what its name says", hint=f"rm {path}")
        unpack(path, into)

    def names(self) -> dict[str, float]:
        """Every bundle, with when it was last put (seconds, wall)."""
        found = {}
        for entry in _entries(self.folder):
            if entry.name.endswith(".zip"):
                with contextlib.suppress(OSError):
                    found[entry.name.removesuffix(".zip")] = entry.stat().st_mtime
        return found

    def remove(self, sha256: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(sha256).unlink()

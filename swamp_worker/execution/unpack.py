"""A bundle's bytes as files: a zip that is trusted in nothing.

Rules that hold here:

- Everything is checked before the first file is written: how many entries, how large together, every name.
- A name stays below the folder: no `..`, no absolute or backslashed path, nothing hidden behind another spelling (case,
  composition of letters), no name twice, no file where a folder is.
- Plain files and folders only, stored or deflated, not encrypted; no links, devices, or comments behind which a second
  directory hides.
- What a file turns out to hold is what was announced: a byte more, or a wrong checksum, and the bundle is refused.
"""

import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

from swamp_proto.errors import Broken
from swamp_proto.limits import (
    BUNDLE_ENTRIES_MAX,
    BUNDLE_FILE_MAX,
    BUNDLE_NAME_MAX,
    BUNDLE_UNPACKED_MAX,
    KIB,
    MIB,
)

_END: Final = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR: Final = b"PK\x06\x07"
_DIRECTORY_MAX: Final = BUNDLE_ENTRIES_MAX * (46 + BUNDLE_NAME_MAX // 4)
_PIECE: Final = 256 * KIB


class BadBundle(Broken):
    """The bundle is no bundle. The message says which entry, and why."""

    code = "bad_bundle"


def unpack(bundle: Path, into: Path) -> None:
    """All files of `bundle` below the empty folder `into`. Blocks. Raises `BadBundle`, OSError."""
    _check_end(bundle)
    try:
        with zipfile.ZipFile(bundle) as packed:
            entries = packed.infolist()
            _check(entries)
            for entry in entries:
                path = into / entry.filename
                if entry.is_dir():
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(packed, entry, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        struct.error,
        UnicodeError,
    ) as error:
        raise BadBundle(f"the bundle cannot be unpacked: {error}") from None


def _check_end(bundle: Path) -> None:
    """The end of the file, before the library reads a directory of whatever size it announces."""
    size = bundle.stat().st_size
    if size > BUNDLE_FILE_MAX:
        raise BadBundle(f"the bundle is larger than {BUNDLE_FILE_MAX // MIB} MiB")
    with bundle.open("rb") as file:
        file.seek(max(0, size - _END.size - 20))
        tail = file.read()
    if len(tail) < _END.size:
        raise BadBundle("the bundle is no zip file")
    mark, _, _, _, count, directory, _, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment or tail.startswith(_ZIP64_LOCATOR):
        raise BadBundle("the bundle is no plain zip file")
    if count > BUNDLE_ENTRIES_MAX or directory > _DIRECTORY_MAX:
        raise BadBundle(f"the bundle has more than {BUNDLE_ENTRIES_MAX} entries")


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > BUNDLE_ENTRIES_MAX:
        raise BadBundle(f"the bundle has more than {BUNDLE_ENTRIES_MAX} entries")
    total = sum(entry.file_size for entry in entries)
    if total > BUNDLE_UNPACKED_MAX:
        raise BadBundle(f"the bundle is larger than {BUNDLE_UNPACKED_MAX // MIB} MiB unpacked")
    files: set[str] = set()
    folders: dict[str, str] = {}  # by their plain spelling, as they were spelled
    for entry in entries:
        name = entry.filename
        shown = name if name.isprintable() else repr(name)
        _check_name(name, shown)
        _check_kind(entry, shown)
        parts = PurePosixPath(name).parts
        for depth in range(1, len(parts) + entry.is_dir()):
            folder = "/".join(parts[:depth])
            if folders.setdefault(_plain(folder), folder) != folder:
                raise BadBundle(f"{shown}: its folder has the name of another one, spelled differently")
        if not entry.is_dir():
            if _plain(name) in files:
                raise BadBundle(f"{shown}: two entries have this name, perhaps spelled differently")
            files.add(_plain(name))
    for both in files & folders.keys():
        raise BadBundle(f"{both}: a file and a folder have this name")


def _check_name(name: str, shown: str) -> None:
    if not name or len(os.fsencode(name)) > BUNDLE_NAME_MAX:
        raise BadBundle(f"{shown[:80]}: a name is empty or longer than {BUNDLE_NAME_MAX} bytes")
    if any(ord(each) < 32 or ord(each) == 127 for each in name) or "\\" in name or ":" in name:
        raise BadBundle(f"{shown}: a name holds a character that no bundle's name may hold")
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise BadBundle(f"{shown}: the path leads out of the bundle")
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise BadBundle(f"{shown[:80]}: a part of the path is longer than 255 bytes")


def _check_kind(entry: zipfile.ZipInfo, shown: str) -> None:
    mode = entry.external_attr >> 16
    expected = (0, stat.S_IFDIR) if entry.is_dir() else (0, stat.S_IFREG)
    if stat.S_IFMT(mode) not in expected:
        raise BadBundle(f"{shown}: it is neither a plain file nor a folder")
    if entry.flag_bits & 0x1:
        raise BadBundle(f"{shown}: it is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadBundle(f"{shown}: it is packed in a way that is not known here")
    if entry.is_dir() and entry.file_size:
        raise BadBundle(f"{shown}: a folder has content")


def _write(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    mode = 0o500 if entry.external_attr >> 16 & 0o100 else 0o400
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file, packed.open(entry) as source:
        written = 0
        while piece := source.read(_PIECE):
            written += len(piece)
            if written > entry.file_size:
                raise BadBundle(f"{entry.filename}: it is larger than announced")
            file.write(piece)
    if written != entry.file_size:
        raise BadBundle(f"{entry.filename}: it is smaller than announced")


def _plain(name: str) -> str:
    """One spelling for all that a file system might take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

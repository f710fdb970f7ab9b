"""The code of model types on this machine: bundles fetched once, verified, unpacked, and kept for the next step.

    <cache>/bundles/<sha256>/content/…        the bundle's files, read-only
    <cache>/environments/<key>/content/…      what its dependencies are (`environments`)

Rules that hold here:

- A bundle's name is the sha256 of its bytes, and nothing is unpacked that does not have it. It is shipped at most once per machine
  and version, however many steps want it at once.
- What a running step uses stays; `release` ends its use.
- Memory and disk are bounded by `BUNDLE_*`.
"""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from swamp_proto.errors import Broken
from swamp_proto.limits import BUNDLE_CACHE_MAX
from swamp_proto.messages.dispatch import Dispatch
from swamp_worker.execution.access import Access
from swamp_worker.execution.environments import Environments
from swamp_worker.execution.shelf import Shelf

BUNDLES: Final = "bundles"
_NAME: Final = re.compile(r"[0-9a-f]{64}")

Say = Callable[[str], object]


class BundleCache:
    """Implements `interface.BundleFolders` over one cache directory; made when first needed."""

    def __init__(
        self,
        directory: Path,
        access: Access,
        environments: Environments,
        size_max: int = BUNDLE_CACHE_MAX,
    ) -> None:
        self._shelf = Shelf(directory / BUNDLES, size_max)
        self._access = access
        self._environments = environments

    async def folder(self, dispatch: Dispatch, sha256: str) -> Path:
        """The root of the bundle, for as long as the dispatch runs. Raises `CallRefused`, `Broken`."""
        if not _NAME.fullmatch(sha256):
            raise Broken(f"{sha256[:80]!r} is no bundle's name")
        return await self._shelf.get(sha256, dispatch.dispatch, partial(self._fill, dispatch, sha256))

    async def dependencies(self, dispatch: Dispatch, folder: Path, say: Say) -> Path | None:
        """A folder for `sys.path` with what the bundle in `folder` depends on, for as long as the dispatch runs; None when it
        declares nothing. `say` hears what an installation prints. Raises `BadRequirements`, `NotInstalled`, `Broken`.
        """
        return await self._environments.of(folder, dispatch.dispatch, say)

    def release(self, dispatch: str) -> None:
        """The dispatch is over."""
        self._shelf.release(dispatch)
        self._environments.release(dispatch)

    def sweep(self) -> None:
        """Remove what dead processes left half made. Blocks."""
        self._shelf.sweep()
        self._environments.sweep()

    async def _fill(self, dispatch: Dispatch, sha256: str, content: Path) -> None:
        packed = content.parent / "bundle.zip"
        await self._access.fetch_bundle(dispatch, sha256, packed)
        await trio.to_thread.run_sync(_verify_and_unpack, packed, sha256, content)


def _verify_and_unpack(packed: Path, sha256: str, content: Path) -> None:
    from swamp_worker.execution.unpack import (
        BadBundle,
        unpack,
    )  # and all that unpacks; most workers never need it

    with packed.open("rb", buffering=0) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BadBundle(f"the bundle's bytes are not those of its name: expected {sha256}, found {found}")
    try:
        unpack(packed, content)
    except OSError as error:
        raise Broken(f"the bundle cannot be unpacked: {error.strerror or error}") from error
    packed.unlink()

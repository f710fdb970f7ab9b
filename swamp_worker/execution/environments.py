"""What a unit depends on, installed once per machine: `requirements.txt` and `wheels/` beside its code.

    <cache>/environments/<key>/content/…     for sys.path; key: lock, wheels, Python, platform

Rules that hold here:

- Only wheels are installed: nothing of a dependency runs while it is installed. With `wheels/` shipped nothing else is looked
  at, and no network is needed; else the worker operator's own pip configuration names the index.
- pip is the interpreter's own, or the one that comes with Python (`ensurepip`). It runs in a process group that the keeper knows,
  bounded in time and in what it may say; nothing of it is left when `of` returns or is cancelled.
- The first step that needs an environment makes it; others wait for it. It appears whole or not at all (`shelf`).
"""

import hashlib
import os
import re
import signal
import sys
import sysconfig
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from swamp_proto.errors import Broken
from swamp_proto.limits import (
    ENVIRONMENT_CACHE_MAX,
    ENVIRONMENT_INSTALL_S,
    ENVIRONMENT_OUTPUT_MAX,
    REQUIREMENTS_MAX,
    STUCK_S,
)
from swamp_worker.execution import process, requirements
from swamp_worker.execution.keeper import Keeper
from swamp_worker.execution.registry import boot_ns
from swamp_worker.execution.shelf import Shelf

ENVIRONMENTS: Final = "environments"
REQUIREMENTS: Final = "requirements.txt"
WHEELS: Final = "wheels"
_LINE_MAX: Final = 2_000
_TAIL_LINES: Final = 3  # of what pip said, in an error
_LATE_S: Final = 5.0  # the keeper's margin after the bound in time
_KNOWN_MAX: Final = 256  # bundles whose declaration is remembered

Say = Callable[[str], object]


class NotInstalled(Broken):
    """The dependencies are not there. The message says why and the hint what to do."""

    code = "dependencies"


@attrs.frozen
class _Declared:
    """What one unit depends on."""

    key: str
    lock: Path | None
    wheels: tuple[Path, ...]


class Environments:
    """One cache of environments."""

    def __init__(
        self,
        directory: Path,
        keeper: Keeper,
        *,
        size_max: int = ENVIRONMENT_CACHE_MAX,
        install_s: float = ENVIRONMENT_INSTALL_S,
    ) -> None:
        self._shelf = Shelf(directory / ENVIRONMENTS, size_max)
        self._keeper = keeper
        self._install_s = install_s
        self._known: dict[Path, _Declared | None] = {}  # a bundle's folder never changes

    async def of(self, folder: Path, holder: str, say: Say = lambda line: None) -> Path | None:
        """A folder for `sys.path` with the dependencies of the unit in `folder`, for as long as `holder` uses it; None when it
        declares none. Raises `BadRequirements`, `NotInstalled`, `Broken`.
        """
        if folder not in self._known:
            declared = await trio.to_thread.run_sync(_declared, folder)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[folder] = declared
        found = self._known[folder]
        if found is None:
            return None
        return await self._shelf.get(found.key, holder, partial(self._install, found, say))

    def release(self, holder: str) -> None:
        self._shelf.release(holder)

    def sweep(self) -> None:
        """Remove what dead processes left half made. Blocks."""
        self._shelf.sweep()

    # ── installing ──────────────────────────────────────────────────────────────────────────────────────────
    async def _install(self, declared: _Declared, say: Say, content: Path) -> None:
        command = [
            *_pip(),
            "install",
            "--target",
            str(content),
            "--no-input",
            "--no-color",
            "--progress-bar",
            "off",
        ]
        command += ["--disable-pip-version-check", "--no-warn-script-location", "--only-binary", ":all:"]
        if declared.wheels:
            command += ["--no-index", "--find-links", str(declared.wheels[0].parent)]
        if declared.lock is not None:
            command += ["--requirement", str(declared.lock)]
        else:
            command += [str(wheel) for wheel in declared.wheels]
        say("swamp: installing the dependencies of this model type (once per worker)")
        output = _Output(say)
        code = await self._run(command, content.parent, output)
        if code == 0:
            return
        said = f": {' / '.join(output.tail)}" if output.tail else ""
        how = f"pip was ended by signal {-code}" if code < 0 else f"pip ended with {code}"
        if declared.wheels:
            raise NotInstalled(
                f"the dependencies could not be installed from the wheels shipped with the model type: {how}{said}",
                hint="ship a wheel for every dependency, for this Python and platform "
                f"({sys.implementation.cache_tag}, {sysconfig.get_platform()}), in wheels/",
            )
        raise NotInstalled(
            f"the dependencies could not be installed from this worker's package index: {how}{said}",
            hint="ship the wheels in wheels/ beside the code, or give the worker an index: PIP_INDEX_URL or pip.conf",
        )

    async def _run(self, command: list[str], directory: Path, output: "_Output") -> int:
        """pip's exit code, with nothing of it left. Raises `NotInstalled`, OSError."""
        name = str(uuid.uuid4())
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SWAMP_")}
        environment |= {
            "SWAMP_DISPATCH": name,
            "PIP_REQUIRE_VIRTUALENV": "0",
            "PIP_USER": "0",
            "PYTHONDONTWRITEBYTECODE": "",
            "TMPDIR": str(directory),
        }
        encoded = {os.fsencode(key): os.fsencode(value) for key, value in environment.items()}
        self._keeper.expect(name, boot_ns() + int((self._install_s + _LATE_S) * 1e9))
        try:
            child = process.spawn(command, command[0], encoded, str(directory))
        except BaseException:
            self._keeper.forget(name)
            raise
        self._keeper.register(name, child.pid)
        watch = process.Watch(child)
        try:
            with trio.move_on_after(self._install_s) as scope:
                while child.status is None:
                    await watch.wait()
                    for descriptor in watch.ready():
                        if descriptor in (child.out, child.err):
                            _take(child, descriptor, output)
                        elif process.reap(child):
                            child.close_exit()
            for rest in (child.out, child.err):  # what it said last, and no more than a pipe holds
                while rest is not None and _take(child, rest, output):
                    pass
            if scope.cancelled_caught:
                raise NotInstalled(
                    f"the dependencies were not installed within {self._install_s:.0f} s",
                    hint="is the worker's package index reachable? wheels shipped in wheels/ need none",
                )
            assert child.status is not None
            output.end()
            return child.status
        finally:
            with trio.CancelScope(shield=True):
                await process.wait_until(partial(_kill_and_look, child), STUCK_S)
            watch.close()
            child.close()
            self._keeper.forget(name, child.pid)


def _take(child: process.Child, descriptor: int, output: "_Output") -> bool:
    """One read; whether there may be more."""
    data = process.read_some(descriptor)
    if data:
        output.add(data)
    elif data is not None:
        child.close_pipe(descriptor)
    return bool(data)


def _kill_and_look(child: process.Child) -> bool:
    if process.reap(child) and process.group_is_empty(child.pid):
        return True
    process.signal_group(child.pid, signal.SIGKILL)
    return process.reap(child) and process.group_is_empty(child.pid)


class _Output:
    """What pip says, line by line, up to a bound."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._rest = b""
        self._left = ENVIRONMENT_OUTPUT_MAX
        self.tail: list[str] = []

    def add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE_MAX:]
        for line in lines:
            self._line(line)

    def end(self) -> None:
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()[:_LINE_MAX]
        if not text:
            return
        self.tail = [*self.tail[1 - _TAIL_LINES :], text]
        if self._left > 0:
            self._left -= len(text) + 1
            self._say(text if self._left > 0 else "swamp: pip said more than is kept here")


def _declared(folder: Path) -> _Declared | None:
    """What a unit declares, checked. Blocks. Raises `BadRequirements`, `NotInstalled`."""
    lock = folder / REQUIREMENTS
    wheels = tuple(sorted((folder / WHEELS).glob("*.whl"))) if (folder / WHEELS).is_dir() else ()
    text = None
    if lock.is_file():
        with lock.open("rb") as file:
            data = file.read(REQUIREMENTS_MAX + 1)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise requirements.BadRequirements(f"{REQUIREMENTS}: it is not UTF-8 text") from None
    pinned = requirements.check(text, has_wheels=bool(wheels)) if text is not None else 0
    if not pinned and not wheels:
        return None
    digest = hashlib.sha256()
    about = (
        sys.implementation.cache_tag or sys.version,
        sysconfig.get_platform(),
        sysconfig.get_config_var("SOABI") or "",
    )
    for part in (*about, text or ""):
        digest.update(part.encode() + b"\0")
    for wheel in wheels:
        with wheel.open("rb", buffering=0) as opened:
            digest.update(wheel.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return _Declared(digest.hexdigest(), lock if pinned else None, wheels)


def _pip() -> list[str]:
    """The command that is pip for this interpreter. Raises `NotInstalled`."""
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-I", "-m", "pip"]
    bundled = _bundled_pip()
    if bundled is None:
        raise NotInstalled(
            f"{sys.executable} has no pip, which installs the dependencies of model types",
            hint=f"install it for this interpreter: {sys.executable} -m ensurepip, or the system's package python3-pip",
        )
    return [
        sys.executable,
        "-I",
        str(bundled / "pip"),
    ]  # a wheel is a zip file, and Python runs a folder inside one


def _bundled_pip() -> Path | None:
    """The wheel of pip that comes with Python; the newest one."""
    folders = [Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or os.devnull)]
    try:
        import ensurepip
    except ImportError:
        pass
    else:
        folders.append(Path(ensurepip.__file__).parent / "_bundled")
    found = [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]
    return max(found, key=lambda wheel: [int(each) for each in re.findall(r"\d+", wheel.name)], default=None)

"""The model types of a repository's own code, `extensions/models/`: found, bundled, described, and kept in mind.

Rules:
1. Looking is cheap: what has not changed since it was described is neither read nor run. What changed is described when somebody
   next needs a type; nothing has to be restarted.
2. A unit that does not import, or a type that can not be used, is an error of whoever needs that type, and of nobody else. A type that
   is declared twice can not be used at all: which of them was meant?
3. The built-in types and swamp's own names are not for units to take.
4. What was described is kept by the SHA-256 of the bundle, below `.swamp/types/`: a cache, which may be removed at any time.

It runs no method. Thread-safe; other processes of the same repository may do the same at the same time.
"""

import ast
import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import attrs

from swamp_orch.definitions.bundles import BundleFiles, Unit, find_units, linked_units, pack
from swamp_orch.definitions.dependencies import holding
from swamp_orch.definitions.describing import Describe, Described, Problem, describe
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.type_checks import type_problems
from swamp_proto.errors import InvalidDefinition, NotFound, SwampError
from swamp_proto.limits import BUNDLE_UNUSED_KEPT_S, DESCRIBE_AGAIN_S
from swamp_proto.version import SWAMP_VERSION
from swamp_worker.models.documents import from_document, to_document
from swamp_worker.models.interface import ModelType

FORMAT: Final = (
    f"1 {SWAMP_VERSION} {platform.python_version()}"  # what was kept by another is described again
)
SETTLED_NS: Final = 2_000_000_000  # clocks of file systems are this coarse at most
LINKED: Final = "it is a symbolic link, and links are not followed: put the code itself here"
AT_ONCE: Final = max(2, os.cpu_count() or 1)


@attrs.frozen
class UnitProblem:
    """`text` starts with file and, where known, line."""

    unit: str
    text: str


@attrs.frozen
class Catalogue:
    """What the units declare at one instant."""

    types: Mapping[str, ModelType] = attrs.field(factory=dict)
    broken: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)  # type -> why it can not be used
    problems: tuple[UnitProblem, ...] = ()
    units: Mapping[str, Unit] = attrs.field(factory=dict, repr=False)

    def suspects(self, name: str) -> tuple[str, ...]:
        """The problems of units that mention `name`, and so may have declared it."""
        mentioned = {unit for unit in {found.unit for found in self.problems} if self._mentions(unit, name)}
        return tuple(found.text for found in self.problems if found.unit in mentioned)

    def _mentions(self, unit: str, name: str) -> bool:
        for file in self.units[unit].files if unit in self.units else ():
            if file.path.endswith(".py"):
                with contextlib.suppress(OSError):
                    if name in file.source.read_text(encoding="utf-8", errors="replace"):
                        return True
        return False


@attrs.frozen
class _Seen:
    """A unit as it was when it was last read."""

    state: str
    sha256: str
    looked_ns: int

    def is_settled(self, unit: Unit) -> bool:
        """Whether a change after the look would show in `state`."""
        return unit.newest_ns + SETTLED_NS < self.looked_ns


@attrs.frozen
class _Kept:
    described: Described
    at_s: float  # monotonic; when it was described or read


class Extensions:
    """The units of one repository."""

    def __init__(
        self,
        repository: Repository,
        built_in: Iterable[str] = (),
        *,
        describe: Describe = describe,
        dependencies: Callable[[Path], Path | None] | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.bundles = BundleFiles(repository.bundles)
        self._folder = repository.extensions / "models"
        self._cache = repository.state / "types"
        self._built_in = frozenset(built_in)
        self._describe = describe
        self._dependencies = dependencies
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] | None = None
        self._kept: dict[str, _Kept] = {}
        self._made_from: tuple[Any, ...] | None = None
        self._catalogue = Catalogue()
        self._told: tuple[UnitProblem, ...] = ()
        self.on_problems: Callable[[tuple[UnitProblem, ...]], object] = lambda new: None
        """Hears of problems that were not there at the look before, in whichever thread looked."""

    def catalogue(self, *, again: bool = False, wanted: str = "") -> Catalogue:
        """What the units declare now. With `again`, units that had problems are asked once more when some time has passed: the cause
        may have been outside of them. Who `wanted` one type, which has not changed, does not wait while another thread is having
        something described. Raises `Broken` when the folder can not be read."""
        if not wanted:
            self._lock.acquire()
        elif not self._lock.acquire(blocking=False):
            if self._is_at_hand(wanted):
                return self._catalogue
            self._lock.acquire()
        try:
            found = self._look(again)
            new = tuple(problem for problem in found.problems if problem not in self._told)
            self._told = found.problems
        finally:
            self._lock.release()
        if new:
            self.on_problems(new)
        return found

    def _is_at_hand(self, name: str) -> bool:
        """Whether the last catalogue has the type, as its unit still is. Without the lock: what it reads is replaced, never changed."""
        found, seen = self._catalogue.types.get(name), self._seen or {}
        return found is not None and any(
            unit.name in seen
            and seen[unit.name].sha256 == found.bundle
            and seen[unit.name].state == unit.state
            for unit in find_units(self._folder)
        )

    def _look(self, again: bool) -> Catalogue:
        looked_ns = self._wall_ns()
        units, linked = find_units(self._folder), linked_units(self._folder)
        if not units and not linked and self._seen is None:
            return self._catalogue  # the common case costs one look
        seen, failed = self._read_changed(units, looked_ns)
        failed = {**failed, **{name: f"extensions/models/{name}: {LINKED}" for name in linked}}
        self._describe_missing({one.sha256 for one in seen.values()}, again)
        made_from = (
            tuple((name, one.sha256, self._kept[one.sha256]) for name, one in seen.items()),
            tuple(failed.items()),
        )
        if made_from != self._made_from:
            self._made_from = made_from
            self._catalogue = self._make(units, seen, failed)
        return self._catalogue

    def of_bundle(self, name: str, sha256: str) -> ModelType:
        """A type as a bundle that is kept declares it, whatever its source says now: for a run that started with it. Raises
        `NotFound`, `InvalidDefinition`."""
        with self._lock:
            if sha256 not in self._kept:
                self._describe_missing({sha256}, again=False)
            described = self._kept[sha256].described
        for found in described.types:
            if found.name == name and self.bundles.has(sha256):
                return attrs.evolve(found, bundle=sha256)
        raise NotFound(
            f"the code of {name} that this run started with is not there any more (bundle {sha256})",
            hint="run it again",
            code="bundle_gone",
        )

    def collect(self, in_use: Callable[[], frozenset[str]], now_s: float) -> int:
        """Remove bundles that the sources do not make any more, that were last made `BUNDLE_UNUSED_KEPT_S` ago and that are not
        `in_use`, with what was kept of them; answers how many."""
        self.catalogue()
        with self._lock:
            current = {found.sha256 for found in (self._seen or {}).values()}
            old = {
                sha256
                for sha256, made_s in self.bundles.names().items()
                if sha256 not in current and made_s + BUNDLE_UNUSED_KEPT_S < now_s
            }
            gone = old - in_use() if old else set()
            for sha256 in gone:
                self.bundles.remove(sha256)
                self._kept.pop(sha256, None)
                with contextlib.suppress(FileNotFoundError):
                    self._cache_file(sha256).unlink()
        return len(gone)

    # ── what changed ────────────────────────────────────────────────────────────────────────────────────────────────
    def _read_changed(self, units: list[Unit], looked_ns: int) -> tuple[dict[str, _Seen], dict[str, str]]:
        """Every unit as it is now, those that can not be bundled apart."""
        before = self._seen if self._seen is not None else self._load_index()
        now: dict[str, _Seen] = {}
        failed: dict[str, str] = {}
        for unit in units:
            known = before.get(unit.name)
            unchanged = known is not None and known.state == unit.state and known.is_settled(unit)
            if known is not None and unchanged and (self._seen is not None or self.bundles.has(known.sha256)):
                now[unit.name] = known
                continue
            try:
                data = pack(unit)
            except InvalidDefinition as error:
                failed[unit.name] = f"{error.message} ({error.hint})"
                continue
            now[unit.name] = _Seen(unit.state, self.bundles.put(data), looked_ns)
        if now != before:
            self._save_index(now)
        self._seen = now
        return now, failed

    def _load_index(self) -> dict[str, _Seen]:
        try:
            document = json.loads((self._cache / "index.json").read_bytes())
            if document["format"] != FORMAT:
                return {}
            return {name: _Seen(**row) for name, row in document["units"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _save_index(self, seen: Mapping[str, _Seen]) -> None:
        rows = {name: attrs.asdict(found) for name, found in seen.items()}
        self._save(self._cache / "index.json", {"format": FORMAT, "units": rows})

    # ── describing ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _describe_missing(self, names: set[str], again: bool) -> None:
        missing = []
        for sha256 in sorted(names):
            kept = self._kept.get(sha256) or self._load(sha256)
            if kept is not None and not (kept.described.problems and again and _is_old(kept)):
                self._kept[sha256] = kept
            else:
                missing.append(sha256)
        if len(missing) == 1:
            self._kept[missing[0]] = self._ask(missing[0])
        elif missing:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="describe") as pool:
                self._kept.update(zip(missing, pool.map(self._ask, missing), strict=True))

    def _ask(self, sha256: str) -> _Kept:
        with tempfile.TemporaryDirectory(prefix="swamp-unit-", ignore_cleanup_errors=True) as folder:
            try:
                self.bundles.unpack(sha256, Path(folder))
                dependencies = None if self._dependencies is None else self._dependencies(Path(folder))
                with holding(dependencies):
                    found = self._describe(Path(folder), dependencies)
            except SwampError as error:
                found = Described.failed(
                    f"{error.message} ({error.hint})" if error.hint else error.message, passing=True
                )
        if not found.passing:
            document = {
                "format": FORMAT,
                "types": [to_document(item) for item in found.types],
                "problems": [attrs.asdict(problem) for problem in found.problems],
            }
            self._save(self._cache_file(sha256), document)
        return _Kept(found, time.monotonic())

    def _load(self, sha256: str) -> _Kept | None:
        try:
            document = json.loads(self._cache_file(sha256).read_bytes())
            if document["format"] != FORMAT:
                return None
            found = Described(
                tuple(from_document(row) for row in document["types"]),
                tuple(Problem(**row) for row in document["problems"]),
            )
        except (OSError, ValueError, TypeError, KeyError, SwampError):
            return None
        return _Kept(found, -DESCRIBE_AGAIN_S)

    def _cache_file(self, sha256: str) -> Path:
        return self._cache / f"{sha256}.json"

    def _save(self, path: Path, document: Mapping[str, Any]) -> None:
        """Without a sync, and without an error: it is a cache."""
        with contextlib.suppress(OSError):
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".new-", dir=self._cache)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
            Path(temporary).replace(path)

    # ── the catalogue ───────────────────────────────────────────────────────────────────────────────────────────────
    def _make(self, units: list[Unit], seen: Mapping[str, _Seen], failed: Mapping[str, str]) -> Catalogue:
        problems = [UnitProblem(name, text) for name, text in failed.items()]
        declared: dict[str, list[tuple[Unit, ModelType]]] = {}
        for unit in units:
            if unit.name not in seen:
                continue
            sha256 = seen[unit.name].sha256
            described = self._kept[sha256].described
            problems += [UnitProblem(unit.name, _told(unit, problem)) for problem in described.problems]
            for found in described.types:
                declared.setdefault(found.name, []).append((unit, attrs.evolve(found, bundle=sha256)))
        types: dict[str, ModelType] = {}
        broken: dict[str, tuple[str, ...]] = {}
        for name, found_in in sorted(declared.items()):
            wrong = self._wrong(name, found_in)
            if wrong:
                broken[name] = wrong
                problems += [UnitProblem(found_in[0][0].name, text) for text in wrong]
            else:
                types[name] = found_in[0][1]
        ordered = sorted(set(problems), key=lambda found: (found.unit, found.text))
        return Catalogue(types, broken, tuple(ordered), {unit.name: unit for unit in units})

    def _wrong(self, name: str, found_in: list[tuple[Unit, ModelType]]) -> tuple[str, ...]:
        if len(found_in) > 1:
            places = sorted(_place(unit, found) for unit, found in found_in)
            return (
                f"{places[0]}: the type {name} is declared more than once, also in {', '.join(places[1:])}",
            )
        unit, found = found_in[0]
        if name in self._built_in:
            wrong = [f"the type {name} comes with swamp and can not be declared again"]
        else:
            wrong = type_problems(found, [file.path for file in unit.files])
        return tuple(f"{_place(unit, found)}: {text}" for text in wrong)


def _is_old(kept: _Kept) -> bool:
    return time.monotonic() - kept.at_s > DESCRIBE_AGAIN_S


def _told(unit: Unit, problem: Problem) -> str:
    place = unit.shown(problem.file) if problem.file else f"extensions/models/{unit.name}"
    return f"{place}:{problem.line}: {problem.text}" if problem.line else f"{place}: {problem.text}"


def _place(unit: Unit, found: ModelType) -> str:
    """`extensions/models/inventory.py:12`: where the class of a type is declared."""
    path, _, class_name = found.entry.partition(":")
    source = next((file.source for file in unit.files if file.path == path), None)
    if source is not None:
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            for node in ast.walk(ast.parse(source.read_bytes())):
                if isinstance(node, ast.ClassDef) and node.name == class_name:
                    return f"{unit.shown(path)}:{node.lineno}"
        return unit.shown(path)
    return f"extensions/models/{unit.name}"

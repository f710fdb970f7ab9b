"""Definition files in their folders: naming, finding, listing, ids.

Rules:
1. A name is looked up by path first: nothing else is parsed. Only what is not a name is looked up as an id,
   or as the beginning of one (at least three characters), and then every file is parsed.
2. A file that cannot be read or parsed is never passed over in silence: it is named by whatever needed it.
3. A missing `id` is generated and written back, under a lock, so that two processes agree on it, once the rest of the
   file is found right; nothing else in it changes. Two files with one id are refused: their data would mix.

It does not know what is in a definition beyond `id` and `name`.
"""

import contextlib
import fcntl
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from swamp_orch.definitions.fields import NAME_RULE, Fields, suggestion
from swamp_orch.definitions.files import disk_error, write_atomically
from swamp_orch.definitions.repository import Repository
from swamp_orch.definitions.values import Source
from swamp_orch.definitions.yaml_source import load, load_text, shown_path
from swamp_proto.errors import Conflict, InvalidDefinition, LocalError, NotFound, SwampError
from swamp_proto.ids import is_name, is_uuid
from swamp_proto.limits import IDENTIFIER_PREFIX_MIN

D = TypeVar("D")

_PREFIX: Final = re.compile(r"[0-9a-f][0-9a-f-]*")


@attrs.frozen
class Unreadable:
    """A definition file with something wrong in it."""

    path: Path
    error: InvalidDefinition


@attrs.frozen
class Listing:
    """Everything in a folder: definitions by name, and the files that are none."""

    found: tuple[Any, ...]
    unreadable: tuple[Unreadable, ...]


class Folder:
    """One sort of definition files."""

    def __init__(
        self,
        repository: Repository,
        folder: Path,
        noun: str,
        prefix: str,
        read: Callable[[Any, Source, Path], Any],
    ) -> None:
        """`noun` is `model` or `workflow`; file names are `{prefix}{name}.yaml`; `read` makes a definition of
        the data of a file (whose `id` is there)."""
        self.repository = repository
        self.folder = folder
        self.noun = noun
        self.prefix = prefix
        self.read = read

    def files(self) -> list[Path]:
        """All definition files, sorted. Hidden files and folders are not looked at."""
        found: list[Path] = []
        pending = [self.folder]
        while pending:
            folder = pending.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise disk_error("list", folder, error) from error
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif entry.name.endswith((".yaml", ".yml")):
                    found.append(Path(entry.path))
        return sorted(found)

    def names(self) -> list[str]:
        """Names by file name alone; nothing is parsed (shell completion)."""
        return sorted({name for name in map(self.name_of, self.files()) if name})

    def name_of(self, path: Path) -> str:
        """The name a file stands for; empty when its own name is not in the form for definitions."""
        if path.suffix != ".yaml" or not path.name.startswith(self.prefix):
            return ""
        return path.name.removeprefix(self.prefix).removesuffix(".yaml")

    def shown(self, path: Path) -> Path:
        return shown_path(path, self.repository.root)

    def open(self, path: Path, *, write_id: bool = True) -> Any:
        """Read one file. Raises `InvalidDefinition` for everything that is wrong with it."""
        shown = self.shown(path)
        if path.suffix == ".yml":
            raise InvalidDefinition(
                f"{shown}: definition files end in .yaml", hint=f"mv {shown} {shown.with_suffix('.yaml')}"
            )
        if not self.name_of(path):
            raise InvalidDefinition(
                f"{shown}: {self.noun} files are called {self.prefix}NAME.yaml", hint="rename the file"
            )
        try:
            data, source = load(path, root=self.repository.root)
        except NotFound:
            raise InvalidDefinition(
                f"{shown}: a link to a file that is not there", hint=f"rm {shown}"
            ) from None
        if isinstance(data, dict) and "id" not in data:
            found = self.read({"id": str(uuid.UUID(int=0)), **data}, source, path)
            if not write_id:
                return found
            data, source = self._give_id(path)  # only now: a file that is refused stays as it is
        return self.read(data, source, path)

    def all(self, *, write_id: bool = True) -> Listing:
        """Every file, parsed; those that do not parse, and those that share an id, apart."""
        found: list[Any] = []
        unreadable: list[Unreadable] = []
        for path in self.files():
            try:
                found.append(self.open(path, write_id=write_id))
            except InvalidDefinition as error:
                unreadable.append(Unreadable(path, error))
        by_id: dict[str, list[Any]] = {}
        for definition in found:
            by_id.setdefault(definition.id, []).append(definition)
        for shared in by_id.values():
            if len(shared) > 1 and not (not write_id and shared[0].id == str(uuid.UUID(int=0))):
                for definition in shared:
                    others = [other for other in shared if other is not definition]
                    shared_id = _shared(definition.source.at("id"), [other.source.file for other in others])
                    unreadable.append(Unreadable(self.repository.root / definition.source.file, shared_id))
                    found.remove(definition)
        found.sort(key=lambda definition: str(definition.name))
        return Listing(tuple(found), tuple(sorted(unreadable, key=lambda item: item.path)))

    def find(self, name: str) -> Any:
        """By name, id, or a unique beginning of an id. Raises `NotFound`, `Conflict` (ambiguous),
        `InvalidDefinition`."""
        path = self.path_of(name)
        if path is not None:
            definition = self.open(path)
            self.refuse_taken_id(definition.id, definition.source.at("id"), path)
            return definition
        listing = self.all()
        if _PREFIX.fullmatch(name) and len(name) >= IDENTIFIER_PREFIX_MIN:
            hits = [found for found in listing.found if found.id.startswith(name)]
            if len(hits) == 1 and (not listing.unreadable or hits[0].id == name):
                return hits[0]
            if len(hits) > 1:
                listed = ", ".join(f"{hit.name} ({hit.id})" for hit in hits)
                raise Conflict(
                    f"'{name}' is the beginning of several {self.noun} ids: {listed}",
                    hint="use the name",
                    code="ambiguous",
                )
        known = self.names()
        broken = "".join(f"\n{item.error.message}" for item in listing.unreadable)
        if broken:
            broken = f"\nThese {self.noun} files cannot be read, and it may be one of them:{broken}"
        label = self.noun.capitalize()
        raise NotFound(
            f"{label} not found: {name}.{suggestion(name, known)}{broken}",
            hint=self._hint(name),
            code=f"{self.noun}_not_found",
        )

    def path_of(self, name: str) -> Path | None:
        """The file of that name, or None. Raises `Conflict` when there are several."""
        if not is_name(name):
            return None
        wanted = {f"{self.prefix}{name}.yaml", f"{self.prefix}{name}.yml"}
        hits = [path for path in self.files() if path.name in wanted]
        if len(hits) > 1:
            listed = ", ".join(str(self.shown(path)) for path in hits)
            raise Conflict(
                f"several files define the {self.noun} '{name}': {listed}",
                hint="names are unique in a repository: rename or remove one",
                code="ambiguous",
            )
        return hits[0] if hits else None

    def _hint(self, name: str) -> str:
        if self.noun == "model":
            return f"swamp model search, or swamp model create command/shell {name} --arg execute.run='…'"
        return f"swamp workflow search, or swamp workflow create {name} --file F"

    def refuse_taken_id(self, identity: str, where: str, path: Path | None = None) -> None:
        """Raise `InvalidDefinition` when a file other than `path` has the id: somebody copied a file. Only
        bytes are looked at: this is on the way of every run."""
        pattern = re.compile(
            rb"^[\"']?id[\"']?[ \t]*:[ \t]*[\"']?" + re.escape(identity.encode()), re.MULTILINE
        )
        others = []
        for other in self.files():
            if other != path:
                with contextlib.suppress(OSError):
                    if pattern.search(other.read_bytes()):
                        others.append(self.shown(other))
        if others:
            raise _shared(where, others)

    def keep_id(self, path: Path, text: str) -> tuple[str, Any, Source]:
        """`text` for the file `path`, with the id that the file has when `text` says none; its data, and the
        lines of the text as it was typed. Raises `LocalError` when it says another id: data and runs belong
        to the old."""
        from swamp_orch.definitions.yaml_edit import set_key

        shown = self.shown(path)
        data, source = load_text(text, shown)
        if not isinstance(data, dict):
            return text, data, source
        try:
            old, _ = load(path, root=self.repository.root)
        except SwampError:
            old = None
        identity = old.get("id") if isinstance(old, dict) else self._id_in_text(path)
        known = isinstance(identity, str) and is_uuid(identity)
        if "id" not in data:
            identity = identity if known else str(uuid.uuid4())
            text = set_key(text, ("id",), identity, first=True, shown=shown)
            return text, {"id": identity, **data}, source
        if known and data["id"] != identity:
            raise LocalError(
                f"{source.at('id')}: the id of a {self.noun} cannot change: "
                f"its data and runs belong to {identity}",
                hint=f"keep id: {identity}, or make a new {self.noun} with swamp {self.noun} create",
            )
        return text, data, source

    def _id_in_text(self, path: Path) -> str | None:
        """The id in a file that does not parse."""
        with contextlib.suppress(OSError):
            match = re.search(rb"^id:[ \t]*[\"']?([0-9a-f-]{36})", path.read_bytes(), re.MULTILINE)
            return match[1].decode() if match else None
        return None

    def _give_id(self, path: Path) -> tuple[Any, Source]:
        """Generate the missing `id` and write it back as the first key."""
        from swamp_orch.definitions.yaml_edit import set_key
        from swamp_orch.definitions.yaml_source import decode

        with self.lock():
            data, source = load(path, root=self.repository.root)
            if "id" not in data:
                text = decode(path.read_bytes(), source.file)
                write_atomically(
                    path, set_key(text, ("id",), str(uuid.uuid4()), first=True, shown=source.file)
                )
                data, source = load(path, root=self.repository.root)
        return data, source

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time changes definition files of this repository."""
        path = self.repository.state / "definitions.lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error("lock", path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _shared(where: str, others: list[Path]) -> InvalidDefinition:
    return InvalidDefinition(
        f"{where}: the id is also that of {', '.join(map(str, others))}",
        hint="remove the `id` line of the copy: swamp writes a new one",
    )


def read_identity(fields: Fields, data: Mapping[str, Any], expected: str, rename: str) -> tuple[str, str]:
    """`id` and `name`, checked against the file's own name."""
    identity = fields.text("id", required=True)
    if identity and not is_uuid(identity):
        fields.problem(
            f"'id' on {fields.what} is not a UUID (lower case): '{identity}'",
            "remove the line: swamp writes a new one",
            "id",
        )
    name = fields.text("name", required=True)
    if name and not is_name(name):
        fields.problem(f"'{name}' is not a {fields.noun} name", NAME_RULE, "name")
    elif name and expected and name != expected:
        fields.problem(
            f"the name is '{name}' but the file stands for '{expected}'",
            f"rename the file to {rename}",
            "name",
        )
    return identity, name

"""Extension code as modules: from a file below a root to the class that an entry names.

An entry is `inventory.py:Inventory` or `inventory/types.py:Inventory`: a file below the root, and a class in it. The root is
first on `sys.path`, so that a package imports its own modules by their names. A module that would hide one of Python's or
ours is refused: whoever imports that one later would get the extension instead. An `__init__.py` at the root makes the unit a
package, `unit`: it is one whose name nobody need know, since a bundle does not say what its folder was called.
"""

import importlib
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Final

from swamp_worker.sdk.declarations import declared
from swamp_worker.sdk.errors import DeclarationError

UNIT: Final = "unit"
"""The package that a root with an `__init__.py` is."""

_PART: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN: Final = frozenset(
    {"swamp_worker", "swamp_proto", "swamp_orch", "trio", "outcome", "sniffio", "sortedcontainers", "attr", "attrs", "cattr",
     "cattrs", "msgpack", "idna", "httpx", "httpcore", "h11", "anyio", "certifi", "trio_websocket", "wsproto"}
)  # fmt: skip
"""What a runner has imported before it imports the extension, or may import after it."""

OWN_ROOT: Final = Path(__file__).resolve().parents[3]
"""Where the types that come with swamp are found."""


def module_name(file: str) -> str:
    """`inventory/types.py` is `inventory.types`. Raises `DeclarationError` for what no import could name."""
    path = PurePosixPath(file)
    parts = [*path.parts[:-1], path.stem]
    if path.suffix != ".py" or not all(_PART.fullmatch(part) for part in parts):
        raise DeclarationError(
            f"{file} can not be imported: names of files and folders are letters, digits and _"
        )
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) or UNIT


def load(root: Path, file: str, more: tuple[str, ...] = ()) -> ModuleType:
    """The module in `file` below `root`; `more` are further folders to import from. Raises whatever the module raises."""
    for folder in (*reversed(more), str(root)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    name = module_name(file)
    top = name.partition(".")[0]
    if root != OWN_ROOT:
        known = sys.modules.get(top)
        taken = known is not None and not _is_below(known, root)
        if top in _TAKEN or top in sys.stdlib_module_names or taken:
            raise DeclarationError(
                f"{file}: a module named {top!r} is there already; call yours something else"
            )
    return _unit(root) if name == UNIT and file == "__init__.py" else importlib.import_module(name)


def _unit(root: Path) -> ModuleType:
    """The root itself as a package."""
    known = sys.modules.get(UNIT)
    if known is not None:
        return known
    spec = spec_from_file_location(UNIT, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    made = sys.modules[UNIT] = module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[UNIT]
        raise
    return made


def _is_below(module: ModuleType, root: Path) -> bool:
    places = [module.__file__] if module.__file__ else list(getattr(module, "__path__", ()))
    return any(Path(place).resolve().is_relative_to(root.resolve()) for place in places)


def find_class(root: Path, entry: str, more: tuple[str, ...] = ()) -> type[Any]:
    """The class that `entry` names. Raises `DeclarationError` when it is no type, and whatever its module raises."""
    file, _, name = entry.partition(":")
    found = getattr(load(root, file, more), name, None)
    if not isinstance(found, type) or declared(found) is None:
        raise DeclarationError(f"{file} has no type {name!r}")
    return found

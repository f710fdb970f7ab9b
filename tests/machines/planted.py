"""Planting bugs: a module's text with one place changed, as a module of its own."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def planted(original: ModuleType, before: str, after: str, *, extra: str = "") -> ModuleType:
    """The module with the one occurrence of `before` replaced, and `extra` defined in it.

    A text that is not there exactly once is an error here.
    """
    path = Path(str(original.__file__))
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} is in {path.name} {text.count(before)} times"
    name = f"planted_{abs(hash((before, after)))}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(extra, module.__dict__)
        exec(compile(text.replace(before, after), f"{path.name} (planted)", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module

"""Planting bugs: modules with one place changed, as modules of their own."""

import sys
from pathlib import Path
from types import ModuleType


def planted(chain: tuple[ModuleType, ...], before: str, after: str, *, extra: str = "") -> ModuleType:
    """The last module of `chain` (each may import the ones before it), with the one occurrence of `before`
    in any of them replaced, and `extra` defined where it was.

    A text that is not there exactly once is an error here. The real modules stay as they are.
    """
    texts = [Path(str(module.__file__)).read_text() for module in chain]
    count = sum(text.count(before) for text in texts)
    assert count == 1, f"{before!r} is there {count} times"
    kept = {module.__name__: module for module in chain}
    made = ModuleType("planted")
    try:
        for original, text in zip(chain, texts, strict=True):
            made = ModuleType(original.__name__)
            made.__file__ = original.__file__
            sys.modules[original.__name__] = made
            if before in text:
                exec(extra, made.__dict__)
            code = compile(text.replace(before, after), f"{original.__file__} (planted)", "exec")
            exec(code, made.__dict__)
    finally:
        sys.modules.update(kept)
    return made

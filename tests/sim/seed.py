"""Chance from one integer: an independent stream of it for every name.

A stream depends on the seed and its own name alone, so that a new kind of fault, or one more draw for one
machine, changes nothing for the others. Nothing here depends on Python's hash of a text.
"""

import random
from hashlib import sha256


class Chance:
    """All streams of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: dict[str, random.Random] = {}
        self._uuids = 0

    def of(self, name: str) -> random.Random:
        """The stream of this name; the same object every time."""
        found = self._streams.get(name)
        if found is None:
            digest = sha256(f"{self.seed}/{name}".encode()).digest()
            found = self._streams[name] = random.Random(int.from_bytes(digest[:8], "big"))
        return found

    def uuid(self) -> str:
        """A uuid nobody had before in this world. They grow, so that a trace can be read."""
        self._uuids += 1
        return f"{self._uuids:08x}-0000-4000-8000-{self.seed % 16**12:012x}"

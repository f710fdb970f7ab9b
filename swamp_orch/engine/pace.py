"""How often an upload that takes long is told to whoever watches: once a second at most, once per hundredth at most, and when it is whole.

One that is whole within the first second is never told. It knows no clock: it is asked with an instant.
"""

from typing import Final

import attrs

PROGRESS_S: Final = 1.0


@attrs.frozen
class _Told:
    """When it was last told how far an upload is, and how far it was, in hundredths."""

    at_s: float
    share: int = -1
    times: int = 0


class Pace:
    """The uploads of one dispatch."""

    def __init__(self) -> None:
        self._told: dict[int, _Told] = {}  # those that are not whole

    def due(self, number: int, here: int, of: int, now_s: float) -> bool:
        """Whether it is told now that `here` bytes `of` upload `number` are here."""
        told = self._told.setdefault(number, _Told(now_s))
        if here >= of:
            del self._told[number]
            return told.times > 0
        share = here * 100 // of
        if now_s < told.at_s + PROGRESS_S or share <= told.share:
            return False
        self._told[number] = _Told(now_s, share, told.times + 1)
        return True

"""Durations as people write them: `30s`, `5m`, `1h30m`, `250ms`, or a plain number of seconds."""

import re
from typing import Final

UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
DURATION_S_MAX: Final = 10 * 365 * 86_400.0
FORMS: Final = "seconds, or a text like 30s, 5m, 1h30m"

_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_TEXT: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d|w))+")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with what is wrong, in words that fit behind the name of a key or flag."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be a duration ({FORMS})")
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif _TEXT.fullmatch(text):
            parts = _PART.findall(text)
            units = [unit for _, unit in parts]
            if len(set(units)) != len(units):
                raise ValueError(f"names a unit twice: {value!r}")
            seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
        else:
            raise ValueError(f"must be a duration ({FORMS}), not {value!r}")
    else:
        seconds = float(value)
    if not 0 <= seconds <= DURATION_S_MAX:
        raise ValueError("must be between 0 and 10 years")
    return seconds


def format_duration(seconds: float) -> str | int:
    """The shortest form that `parse_duration` reads as the same: `5m`, `90s`, `250ms`."""
    millis = round(seconds * 1000)
    for unit in ("w", "d", "h", "m", "s", "ms"):
        size = round(UNITS_S[unit] * 1000)
        if millis and millis % size == 0:
            return f"{millis // size}{unit}"
    return 0

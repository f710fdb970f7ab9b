"""Durations as people type them: token lifetimes (`24h`, `7d`, `1mo`), timeouts (`400ms`, `30s`, `5m`, bare seconds).

Only the grammar; what a duration is good for is its caller's.
"""

import re
from typing import Final

from swamp_orch.definitions.durations import parse_duration
from swamp_proto.errors import UsageError
from swamp_proto.limits import TOKEN_LIFETIME_S_MAX

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "mo": 30 * 86400, "y": 365 * 86400}
_GRAMMAR: Final = re.compile(r"([0-9]{1,9})(mo|y|h|m|d|w|s)")


def lifetime_ms(text: str) -> int:
    """A token's lifetime in milliseconds. Raises `UsageError`."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise UsageError(f'Invalid duration format: "{text}". Expected format like 1h, 1d, 7d, 1w, 1mo')
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds == 0:
        raise UsageError(f'Invalid --duration value "{text}": must be positive')
    if seconds > TOKEN_LIFETIME_S_MAX:
        raise UsageError(f'Invalid --duration value "{text}": at most 10y')
    return seconds * 1000


def seconds(text: str, flag: str) -> float:
    """A timeout in seconds, in every form that definitions take: `400ms`, `30s`, `5m`, `1h30m`, or a bare number. Raises
    `UsageError`."""
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f'Invalid {flag} value "{text}": {error}. Expected seconds, or a format like 400ms, 30s, 5m, 1h30m'
        ) from None
    if found <= 0:
        raise UsageError(f'Invalid {flag} value "{text}": must be positive')
    return found

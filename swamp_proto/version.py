"""The version of swamp and of its wire protocol.

Rule: orchestrator and worker run in lockstep. Both numbers travel in the enroll frame and both must be equal;
there is no negotiation (SPEC §7, `protocol_mismatch`).
"""

import re
from typing import Final

SWAMP_VERSION: Final = "0.1.0"
PROTOCOL_VERSION: Final = 1
CONTROL_PATH: Final = "/control/v1"  # of the WebSocket on the orchestrator's port

VERSION_PATTERN: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


def is_version(text: str) -> bool:
    """Whether `text` may be repeated to people as the version a peer claims."""
    return VERSION_PATTERN.fullmatch(text) is not None

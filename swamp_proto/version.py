"""The version of swamp and of its wire protocol.

Rule: orchestrator and worker run in lockstep. Both numbers travel in the enroll frame and both must be equal;
there is no negotiation (SPEC §7, `protocol_mismatch`).
"""

from typing import Final

SWAMP_VERSION: Final = "0.1.0"
PROTOCOL_VERSION: Final = 1

"""What is remembered about a worker: the attributes of its `swamp/worker` record.

Facts are kept apart (connected, draining, unverified, what it runs) and the one-word status is derived from
them, so that no change of one can overwrite another. Knows nothing of sockets: the gateway makes these
values, the store keeps them.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from swamp_orch.store.bookkeeping import from_iso, iso


class WorkerStatus(StrEnum):
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    UNVERIFIED = "unverified"
    DISCONNECTED = "disconnected"


@attrs.frozen
class WorkerState:
    """One member of the pool, connected or not."""

    name: str
    token_name: str
    mint_id: str
    machine_id: str
    instance: str
    boot_id: str
    host: str
    pid: int
    platform: str
    arch: str
    labels: Mapping[str, str]
    swamp_version: str
    protocol_version: int
    capacity: int
    enrolled_ms: int  # first enrollment of this instance
    last_seen_ms: int
    token_expires_ms: int
    link_epoch: int  # grows with every link of this worker
    counter: int = 0  # of the newest enroll frame of this instance
    connected: bool = True
    disconnected_ms: int | None = None
    operator_drain: bool = False  # until undrained; survives re-enrollment
    announced_drain: bool = False  # the process itself said so
    drain_reason: str = ""
    unverified: str | None = None  # why its verification failed or is missing
    active: tuple[str, ...] = ()  # dispatch ids
    stuck: int = 0  # slots whose process group could not be emptied
    version: int = 0  # of the record this was read from; what a write must expect

    @property
    def draining(self) -> bool:
        return self.operator_drain or self.announced_drain

    @property
    def status(self) -> WorkerStatus:
        if not self.connected:
            return WorkerStatus.DISCONNECTED
        if self.draining:
            return WorkerStatus.DRAINING
        if self.unverified is not None:
            return WorkerStatus.UNVERIFIED
        return WorkerStatus.BUSY if self.active else WorkerStatus.IDLE

    def to_attributes(self) -> dict[str, Any]:
        """The record's attributes, camelCase, wall instants as ISO 8601; absent facts are left out."""
        found: dict[str, Any] = {
            "name": self.name,
            "instanceUuid": self.instance,
            "tokenName": self.token_name,
            "mintId": self.mint_id,
            "status": self.status.value,
            "labels": dict(self.labels),
            "platform": self.platform,
            "arch": self.arch,
            "swampVersion": self.swamp_version,
            "protocolVersion": self.protocol_version,
            "enrolledAt": iso(self.enrolled_ms),
            "lastSeenAt": iso(self.last_seen_ms),
            "capacity": self.capacity,
            "activeDispatchIds": list(self.active),
            "machineId": self.machine_id,
            "bootId": self.boot_id,
            "host": self.host,
            "pid": self.pid,
            "linkEpoch": self.link_epoch,
            "enrollCounter": self.counter,
            "tokenExpiresAt": iso(self.token_expires_ms),
            "draining": self.draining,
            "operatorDrain": self.operator_drain,
            "stuckSlots": self.stuck,
        }
        if self.drain_reason:
            found["drainReason"] = self.drain_reason
        if self.unverified is not None:
            found["verifyFailureReason"] = self.unverified
        if self.disconnected_ms is not None:
            found["disconnectedAt"] = iso(self.disconnected_ms)
        return found

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], version: int = 0) -> "WorkerState":
        """Read a record's attributes back. Raises KeyError, TypeError or ValueError on anything else."""
        disconnected = attributes.get("disconnectedAt")
        operator_drain = bool(attributes["operatorDrain"])
        return cls(
            name=attributes["name"],
            token_name=attributes["tokenName"],
            mint_id=attributes["mintId"],
            machine_id=attributes["machineId"],
            instance=attributes["instanceUuid"],
            boot_id=attributes["bootId"],
            host=attributes["host"],
            pid=int(attributes["pid"]),
            platform=attributes["platform"],
            arch=attributes["arch"],
            labels=dict(attributes["labels"]),
            swamp_version=attributes["swampVersion"],
            protocol_version=int(attributes["protocolVersion"]),
            capacity=int(attributes["capacity"]),
            enrolled_ms=from_iso(attributes["enrolledAt"]),
            last_seen_ms=from_iso(attributes["lastSeenAt"]),
            token_expires_ms=from_iso(attributes["tokenExpiresAt"]),
            link_epoch=int(attributes["linkEpoch"]),
            counter=int(attributes["enrollCounter"]),
            connected=WorkerStatus(attributes["status"]) is not WorkerStatus.DISCONNECTED,
            disconnected_ms=None if disconnected is None else from_iso(disconnected),
            operator_drain=operator_drain,
            announced_drain=bool(attributes["draining"]) and not operator_drain,
            drain_reason=attributes.get("drainReason", ""),
            unverified=attributes.get("verifyFailureReason"),
            active=tuple(attributes["activeDispatchIds"]),
            stuck=int(attributes["stuckSlots"]),
            version=version,
        )

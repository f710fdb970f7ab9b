"""The weather of one world, drawn from its seed: how often what goes wrong, and how slow everything is.

Everything scales with the grace window. `calm` is the liveness phase: links are quick, disks have room,
nothing fails any more; what is broken already stays so until its owner notices.
"""

from typing import TYPE_CHECKING

from swamp_proto.messages import Side

from .seed import Chance

if TYPE_CHECKING:
    from .loop import Loop

FAULTS = (
    "cut", "half_open", "partition", "kill_worker", "reboot", "stop_worker", "crash", "crash_at_effect",
    "kill_at_effect", "stop_orchestrator", "slow_disk", "full_disk", "clock_step", "cancel", "time_out", "revoke",
    "renew", "drain", "end_elsewhere", "data_loss",
)  # fmt: skip


class Weather:
    def __init__(self, chance: Chance, loop: "Loop", grace_s: float) -> None:
        dice = chance.of("weather")
        self._loop = loop
        self._chance = chance
        self.grace_s = grace_s
        self.calm = False
        self.as_bytes = dice.random() < 0.1
        self.delay_s = dice.choice((0.0005, 0.005, 0.05, grace_s / 60))
        self.spikes = dice.choice((0.0, 0.0, 0.01, 0.05))
        self.commit_s = dice.choice((0.0003, 0.002, 0.02))
        self.write_loss = dice.choice((0.0, 0.1, 0.4))
        self.keeper_trouble = dice.choice((0.0, 0.0, 0.3))
        self.moments = dice.choice((0.0, 0.0, 0.03, 0.15))  # chance of a fault at a delicate moment
        self.short_tokens = dice.random() < 0.15
        # Each kind of fault is off in many worlds and frequent in some: they hide each other otherwise.
        self.rates = {fault: dice.choice((0.0, 0.0, 0.05, 0.15, 0.5)) for fault in FAULTS}  # per grace window
        self._slow_until = self._full_until = 0.0
        self._slow_s = 0.0
        self._blocked: dict[tuple[str, Side], float] = {}

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────
    def delay(self, machine: str) -> float:
        dice = self._chance.of(f"link/{machine}")
        if not self.calm and dice.random() < self.spikes:
            return dice.random() * self.grace_s / 4
        return self.delay_s * (0.5 + dice.random())

    def block(self, machine: str, side: Side, seconds: float) -> None:
        """What this side of this machine's links sends does not pass for so long; it is not lost."""
        self._blocked[machine, side] = max(self._blocked.get((machine, side), 0.0), self._loop.now + seconds)

    def blocked_until(self, machine: str, side: Side) -> float:
        return self._blocked.get((machine, side), 0.0)

    def reachable(self, machine: str) -> bool:
        return all(self.blocked_until(machine, side) <= self._loop.now for side in Side)

    def clear_up(self) -> None:
        self.calm = True
        self._blocked.clear()
        self._slow_until = self._full_until = 0.0

    # ── the disk ────────────────────────────────────────────────────────────────────────────────────────────
    def commit_latency(self) -> float:
        slow_s = self._slow_s if self._loop.now < self._slow_until else 0.0
        return self.commit_s * (0.5 + self._chance.of("disk").random()) + slow_s

    def slow_disk(self, seconds: float, slow_s: float) -> None:
        self._slow_until, self._slow_s = self._loop.now + seconds, slow_s

    def full_disk(self, seconds: float) -> None:
        self._full_until = self._loop.now + seconds

    def is_full(self) -> bool:
        return self._loop.now < self._full_until

    def flush_s(self) -> float:
        """A thread's trip to the disk that is no commit."""
        return self.commit_s * self._chance.of("flush").random()

    # ── machines ────────────────────────────────────────────────────────────────────────────────────────────
    def verify_queue_s(self) -> float:
        dice = self._chance.of("verify")
        return dice.random() * self.grace_s / 8 if not self.calm and dice.random() < 0.1 else 0.0

    def _keeper(self) -> bool:
        return not self.calm and self._chance.of("keeper").random() < self.keeper_trouble

    def keeper_sleeps(self) -> bool:
        """It hears nothing of its holder's death; the instants in its registry are kept all the same."""
        return self._keeper()

    def keeper_delay_s(self) -> float:
        return 0.002 + 0.2 * self._chance.of("keeper").random()

    def can_reap(self) -> bool:
        """Whether a new process can kill and count what its predecessor left."""
        return not self._keeper()

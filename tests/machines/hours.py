"""The state machines for as long as you like, each time with new seeds: `./dev machines --hours 1`.

A counter-example is printed as hypothesis prints it and kept in `.hypothesis`, where the next run of the tests finds it. The
profile that CI runs is fixed and short; this is how rare weather is met.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "proto"))

import test_lease_machine as leases
import test_proto_session_machine as sessions
import test_token_machine as tokens
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from swamp_orch.core import leases as lease_core
from swamp_orch.core import tokens as token_core

MACHINES: dict[str, Callable[[], type[RuleBasedStateMachine]]] = {
    "tokens": lambda: tokens.machine_of(token_core),
    "tokens, long lives": lambda: tokens.storm_of(token_core),
    "leases, long lives": lambda: leases.storm_of(lease_core),
    "sessions": lambda: sessions.Conversation,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev machines", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    first = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    until = time.monotonic() + options.hours * 3600
    rounds = 0
    while rounds == 0 or time.monotonic() < until:
        for name, build in MACHINES.items():
            number = first + rounds
            profile = settings(
                max_examples=200,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            try:
                run_state_machine_as_test(seed(number)(build()), settings=profile)
            except BaseException:
                print(
                    f"{name}: a counter-example; again with: ./dev machines --hours 0 --seed {number}",
                    flush=True,
                )
                raise
        rounds += 1
        print(f"round {rounds}, seed {first + rounds - 1}: no counter-example", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

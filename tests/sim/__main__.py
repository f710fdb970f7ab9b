"""`python -m tests.sim --seed N [--trace]`, or `--seeds N [--seed FIRST]` for many."""

import argparse
import sys
import time
import traceback

from .world import Cores, World


def main(arguments: list[str]) -> int:
    """Exit code: 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the seed, or the first of many")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--trace", action="store_true", help="print everything the cores were told")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args(arguments)
    began, steps, faults, failed = time.monotonic(), 0, 0, []
    rows: set[tuple[object, object, object]] = set()
    for seed in range(options.seed, options.seed + options.seeds):
        world = World(seed, cores=Cores(rows=rows), trace=options.trace)
        try:
            world.run()
        except Exception as error:  # whatever it is, it is this seed's
            failed.append(seed)
            if not options.keep_going:
                traceback.print_exc()
            print(f"seed {seed} FAILED at {world.loop.now:.3f} s: {type(error).__name__}: {error}")
            print(f"  again: ./dev sim --seed {seed} --trace")
            if not options.keep_going:
                break
        steps += world.loop.steps
        faults += world.faults
    took = time.monotonic() - began
    print(
        f"{options.seeds} seeds, {len(failed)} failed, {steps:,} steps, {faults:,} faults, {took:.1f} s, "
        f"{steps / max(took, 1e-9):,.0f} steps/s"
    )
    if options.seeds == 1 and not failed:
        print(f"digest {world.journal.digest}, {world.journal.count} events")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

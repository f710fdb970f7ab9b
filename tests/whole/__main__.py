"""`python -m tests.whole --seed N [--trace]`, or `--seeds N [--seed FIRST]` for many."""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .loop import scratch
from .weather import World


def main(arguments: list[str]) -> int:
    """Exit code: 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.whole", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the seed, or the first of many")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failure")
    options = parser.parse_args(arguments)
    began, faults, asked, failed = time.monotonic(), 0, 0, []
    for seed in range(options.seed, options.seed + options.seeds):
        root = Path(tempfile.mkdtemp(dir=scratch()))
        world = World(seed, root, print if options.trace else lambda line: None)
        try:
            world.run()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failed.append(seed)
            if not options.keep_going:
                traceback.print_exc()
            print(
                f"seed {seed} FAILED: {first(error)!r:.600}\n  again: ./dev sim --whole --seed {seed} --trace"
            )
            if not options.keep_going:
                break
        finally:
            shutil.rmtree(root, ignore_errors=True)
        faults += world.faults
        asked += len(world.witness.asked)
    took = time.monotonic() - began
    print(f"{options.seeds} seeds, {len(failed)} failed, {asked:,} asked, {faults:,} faults, {took:.1f} s")
    return 1 if failed else 0


def first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

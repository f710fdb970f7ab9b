"""`python -m swamp_proto.vectors`: say which files are stale (exit 1 if any are); `--write` renews them."""

import sys

from swamp_proto.vectors import stale, write


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        for name in write():
            sys.stdout.write(f"wrote {name}\n")
        return 0
    if arguments:
        sys.stderr.write("usage: python -m swamp_proto.vectors [--write]\n")
        return 2
    found = stale()
    for name in found:
        sys.stdout.write(f"stale {name}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

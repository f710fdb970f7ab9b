"""`python -m swamp_orch.cli`: the same as `swamp`."""

from swamp_orch.cli.main import main

if __name__ == "__main__":
    main()

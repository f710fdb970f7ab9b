"""The simulator: the cores that serve runs, in simulated weather, from one integer. See README.md."""

"""Level B of the simulator: the real orchestrator and real workers in one loop, on a clock that jumps, over wires that break."""

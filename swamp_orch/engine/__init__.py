"""Runs at work: a nursery per run, a cancel scope per step, a lease per dispatch."""

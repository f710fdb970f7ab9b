"""Planted bugs that the fixed seeds must find: core, mutant, the seed that found it first."""

from typing import Final

from .mutants import Mutant

CAUGHT: Final[tuple[tuple[str, Mutant, int], ...]] = (
    ("leases", Mutant("leases._deadlines", "always", 2), 4),
    ("leases", Mutant("leases._deadlines", "never", 1), 4),
    ("leases", Mutant("lease_ends._cancelled", "swap", 1), 6),
    ("leases", Mutant("leases._commit_failed", "always", 5), 5),
    ("leases", Mutant("lease_ends._ended_elsewhere", "unset", 3), 9),
    ("leases", Mutant("leases._deadlines", "always", 5), 12),
    ("leases", Mutant("reconcile._found", "flip", 1), 1),
    ("leases", Mutant("leases._adopt", "swap", 1), 1),
    ("leases", Mutant("lease_ends._found_dead", "unsaid", 2), 3),
    ("leases", Mutant("leases._adopt", "swap", 3), 1),
    ("leases", Mutant("leases._committed", "swap", 2), 1),
    ("leases", Mutant("leases._cancel", "swap", 3), 5),
    ("leases", Mutant("leases._granted", "always", 1), 1),
    ("leases", Mutant("lease_ends._over", "unsaid", 1), 3),
    ("leases", Mutant("leases._write", "always", 1), 1),
    ("leases", Mutant("leases._write", "never", 1), 5),
    ("leases", Mutant("leases._write", "swap", 1), 1),
    ("leases", Mutant("lease_ledger._pump", "always", 5), 1),
    ("leases", Mutant("lease_ledger._pump", "unset", 2), 1),
    ("leases", Mutant("lease_ledger._pump", "flip", 2), 1),
    ("leases", Mutant("leases._stored_otherwise", "always", 2), 118),
    ("leases", Mutant("leases._stored_otherwise", "never", 3), 118),
    ("slots", Mutant("slots._apply", "swap", 3), 3),
    ("slots", Mutant("slots.handle", "always", 3), 1),
    ("tokens", Mutant("tokens._change", "always", 1), 1),
)

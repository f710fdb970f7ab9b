"""Decisions: pure, synchronous, deaf and blind. No trio, clock, randomness, I/O or logging in here."""

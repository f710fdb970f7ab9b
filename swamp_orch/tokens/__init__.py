"""Enrollment tokens and workers at the edge: verification of secrets, and their records in the store."""

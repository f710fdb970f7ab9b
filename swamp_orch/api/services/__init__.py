"""One service per area: call names to synchronous, thread-safe functions that answer JSON."""

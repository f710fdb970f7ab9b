"""One application interface; in process and over the wire."""

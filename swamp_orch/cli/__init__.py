"""The command line: one command, `swamp`. Nothing here decides or remembers anything; it asks a `Session`."""

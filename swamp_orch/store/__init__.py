"""What is remembered: versioned records and blobs, behind one interface (`interface.py`) with two implementations."""

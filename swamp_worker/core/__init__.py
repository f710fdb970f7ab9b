"""Pure, synchronous decisions of a worker: when to dial, what fits, what is held. No clock, no I/O, no
randomness.
"""

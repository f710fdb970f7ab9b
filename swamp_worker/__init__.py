"""Everything needed to execute a step: dialling home, slots, the executor, built-in models, process control."""

"""One frozen description of a run: checks, programs, store, checkpoints, report."""

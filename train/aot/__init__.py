"""Compiles programs for TPUs that need not be present: memory, FLOPs, communication and an estimate of the time."""

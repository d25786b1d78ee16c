"""The `steerling` command: a thin front over the core and the wings. Importing it imports no JAX."""

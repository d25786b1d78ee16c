"""The `steerling` command and what its subcommands share. Importing it does not import JAX."""

"""What `steerling features` reads and shows."""

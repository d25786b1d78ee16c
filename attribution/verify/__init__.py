"""Computing the figures of a recorded trace again, and how far they agree."""

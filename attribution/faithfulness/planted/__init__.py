"""The planted world: a small artificial corpus in which the truth is known, and models trained on it."""

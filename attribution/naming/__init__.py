"""Names of discovered concepts: `steerling name` chooses them in a corpus, scores them and writes the catalogue."""

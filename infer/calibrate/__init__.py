"""Strengths of steering for each concept of a model: `steerling calibrate` measures them and writes the catalogue."""

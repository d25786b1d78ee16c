"""Faithfulness of concept attribution."""

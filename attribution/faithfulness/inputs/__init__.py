"""Faithfulness of input attribution."""

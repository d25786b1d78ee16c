"""Faithfulness of training-data attribution, measured in the planted world."""

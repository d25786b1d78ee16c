"""Explanations of traces, and their output formats: terminal, JSON document, tables, HTML page, attribution graph."""

"""A trace explained, and the shapes in which it is shown: terminal, JSON, tables, a page, a graph."""

"""The explorer's server: texts as they are written, and what explains them, for a page in a browser."""

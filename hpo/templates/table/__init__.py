"""A network on a table of numbers."""

"""Level and power of the sequential test."""

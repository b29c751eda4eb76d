"""Negative traces and negative estimates."""

"""Traces and norms from the outputs."""

"""Probes against batches at a fixed budget."""

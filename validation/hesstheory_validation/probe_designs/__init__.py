"""Probes per sample, orthogonal probes, Hadamard signs across layers."""

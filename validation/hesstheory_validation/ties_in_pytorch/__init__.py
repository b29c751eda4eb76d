"""Bias of tied weights."""

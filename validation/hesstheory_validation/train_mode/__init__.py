"""Batch norm and dropout in train mode."""

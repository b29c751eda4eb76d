"""Variance and covariance of one product."""

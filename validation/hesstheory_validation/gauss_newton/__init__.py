"""Where H and the Gauss-Newton matrix have the same diagonal."""

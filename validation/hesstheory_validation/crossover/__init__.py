"""Full-vector against separated probes."""

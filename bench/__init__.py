"""Benchmarks beside peers: `backpass bench`."""

"""The models that benchmarks train, as plain JAX."""

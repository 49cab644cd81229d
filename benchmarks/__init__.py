"""Benchmarks of pab_compile; run them with `python -m benchmarks`."""

"""Benchmark `frontier`: what is best at equal cost."""

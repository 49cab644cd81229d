"""Axes: what every dimension of every tensor is."""

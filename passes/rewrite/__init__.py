"""Rewrites: what becomes of the sites."""

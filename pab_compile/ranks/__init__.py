"""Ranks: several processes that share a model, and agree on what they compile."""

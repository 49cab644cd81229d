"""Tuning: plans with fitted weights, found by running generations with them."""
